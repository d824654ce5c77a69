"""Texts that a language model writes itself, to calibrate on where the user has none.

The first token of each text is drawn from the vocabulary, each further one from what the model
foretells (data-free distillation of LLM-QAT: Liu et al. 2023, arXiv 2305.17888).
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.runtime.kv_cache import COSINES, attention_caches
from qcompiler.runtime.session import open_session, runtime_errors, runtime_message

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["Writer", "find_writer", "write_texts"]

_WHERE = "calibration"
_CACHE_BYTES = 1 << 29  # of the texts that are written together
_HINT = "give calibration text"


@dataclasses.dataclass(frozen=True)
class Writer:
    """A decoder that can append to its cache in place.

    Attributes:
        caches: Output by input, with heads and width: ``past_key_values.0.key`` ...
        vocabulary: Number of tokens.
        longest: Tokens of a text at most, as far as the graph says; None when it does not.
    """

    caches: dict[str, tuple[str, int, int]]
    vocabulary: int
    longest: int | None


def find_writer(model: ir.Model) -> Writer | None:
    """What writing takes, if the model's whole cache goes through ``GroupQueryAttention``."""
    logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
    vocabulary = None if logits is None or logits.shape is None else logits.shape[-1]
    found = attention_caches(model.graph)
    if any(cache.past.dtype is not ir.DataType.FLOAT for cache in found):
        return None
    caches = {str(x.past.name): (str(x.present.name), x.heads, x.width) for x in found}
    tables = (item.node.inputs[COSINES] for item in found if len(item.node.inputs) > COSINES)
    shapes = [table.shape for table in tables if table is not None and table.shape is not None]
    rows = [shape[0] for shape in shapes if isinstance(shape[0], int)]
    names = {value.name for value in model.graph.inputs}
    known = {"input_ids", "attention_mask", *caches}
    if not caches or names != known or not isinstance(vocabulary, int):
        return None
    return Writer(caches, vocabulary, min(rows, default=None))


def write_texts(
    model: ir.Model, writer: Writer, count: int, length: int, seed: int
) -> npt.NDArray[np.int64]:
    """Texts drawn from the model, ``[count, length]``; the same seed gives the same texts.

    Args:
        model: The float model.
        writer: Of it.
        count: Texts.
        length: Tokens of each; an end-of-text token does not end it.
        seed: Of all draws.

    Raises:
        QcError: QC410, the float model is larger than the memory; QC607, the runtime cannot run it
            or it gives no finite number.
    """
    _check_memory(model)
    row = 4 * length * sum(heads * width for _, heads, width in writer.caches.values())
    batch = max(1, min(count, _CACHE_BYTES // row))
    session = open_session(model, code=Code.FLOAT_MODEL_FAILS)
    random = np.random.default_rng(seed)
    parts = [
        _write(session, writer, min(batch, count - start), length, random)
        for start in range(0, count, batch)
    ]
    return np.concatenate(parts)


def _write(
    session: ort.InferenceSession,
    writer: Writer,
    count: int,
    length: int,
    random: np.random.Generator,
) -> npt.NDArray[np.int64]:
    from onnxruntime import OrtValue

    binding = session.io_binding()
    for past, (present, heads, width) in writer.caches.items():
        room = OrtValue.ortvalue_from_numpy(np.zeros((count, heads, length, width), np.float32))
        binding.bind_ortvalue_input(past, room)
        binding.bind_ortvalue_output(present, room)
    binding.bind_output("logits")
    columns = [random.integers(0, writer.vocabulary, count)]
    while len(columns) < length:
        binding.bind_cpu_input("input_ids", columns[-1][:, None].copy())
        binding.bind_cpu_input("attention_mask", np.ones((count, len(columns)), np.int64))
        try:
            session.run_with_iobinding(binding)
        except runtime_errors() as error:
            raise QcError(
                Code.FLOAT_MODEL_FAILS,
                _WHERE,
                f"the runtime fails: {runtime_message(error)}",
                _HINT,
            ) from error
        columns.append(_draw(binding.get_outputs()[-1].numpy()[:, -1], random))
    return np.stack(columns, axis=1)


def _draw(logits: npt.NDArray[np.floating], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """One token for each row of logits, by its probability."""
    if not np.isfinite(logits).all():
        raise QcError(Code.FLOAT_MODEL_FAILS, _WHERE, "a logit is not finite", _HINT)
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    sums = shares.cumsum(axis=-1)
    marks = random.random(len(sums))[:, None] * sums[:, -1:]
    places = (sums <= marks).sum(axis=-1)
    chosen: npt.NDArray[np.int64] = np.minimum(places, logits.shape[-1] - 1)
    return chosen


def _check_memory(model: ir.Model) -> None:
    """Refuse what would only swap: writing takes the whole float model at once."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    needed = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise QcError(
            Code.NEEDS_CALIBRATION,
            _WHERE,
            f"there are no data, and the float model of {needed / 1e9:.1f} GB, which could write"
            f" its own, does not fit into {there / 1e9:.1f} GB of memory",
            "give calibration text, or choose rtn, k-quant or hqq",
        )
