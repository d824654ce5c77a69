"""Linear layers of checkpoints that GPTQ, AWQ or AutoRound rounded: the same integers, lazily.

What the file says of bits and groups is read from the shapes of the tensors, so that layers with
settings of their own need no rules of the configuration to be understood.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends.config_file import read_table
from qcompiler.ir.lazy import Stored
from qcompiler.numerics.words import WIDTHS, integers_per_step, split_awq, split_words
from qcompiler.schemes import Granularity, QSpec

__all__ = ["Layout", "QuantizedLinear", "layout_of", "take_quantized"]

Layout = Literal["gptq", "gptq-v2", "awq"]
Codes = npt.NDArray[np.uint8]

# Where tools write their settings when not into config.json.
_SIDE_FILES = ("quantize_config.json", "quantization_config.json", "quant_config.json")
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_READ = "read are gptq (checkpoint_format gptq, gptq_v2), awq (version gemm) and auto-round"
_INSTEAD = (
    "give the float checkpoint and let a recipe quantize it, or let the library that made this "
    "one dequantize it and save the result"
)


def layout_of(folder: pathlib.Path, config: Any) -> Layout | None:
    """How the weights of a transformers folder are packed; None when they are floats.

    Args:
        folder: Its side files are looked at, too.
        config: What transformers made of its ``config.json``.

    Raises:
        QcError: QC707, the checkpoint was quantized in a way that is not read.
    """
    said, where = getattr(config, "quantization_config", None), "config.json"
    if not said:
        side = next((name for name in _SIDE_FILES if (folder / name).is_file()), None)
        if side is None:
            return None
        said, where = read_table(folder / side), side
    if not isinstance(said, Mapping):
        said = said.to_dict()
    method = str(said.get("quant_method") or _method_of_side_file(said)).lower()
    form = str(said.get("checkpoint_format") or said.get("format") or "gptq").lower()
    if method in ("auto-round", "intel/auto-round", "autoround"):
        packing = str(said.get("packing_format") or "auto_round:auto_gptq").lower()
        kind = packing.rpartition(":")[2]
        found: Layout | None = _AUTO_ROUND.get(kind)
        method = f"{method} with packing_format {packing}"
    elif method == "gptq":
        found = _GPTQ.get(form)
        method = f"gptq with checkpoint_format {form}"
    elif method == "awq":
        version = str(said.get("version") or "gemm").lower()
        found = "awq" if version == "gemm" else None
        method = f"awq with version {version}"
    else:
        found = None
    if found is None:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            str(folder),
            f"{where} says that the checkpoint is quantized by {method!r}; {_READ}",
            _INSTEAD,
        )
    return found


_GPTQ: Mapping[str, Layout] = {"gptq": "gptq", "gptq_v2": "gptq-v2"}
_AUTO_ROUND: Mapping[str, Layout] = {
    "auto_gptq": "gptq",
    "auto_awq": "awq",
    "auto_round": "gptq-v2",  # its own packing stores zero points as they are
}


@dataclasses.dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """One linear layer of the checkpoint, in the order in which groups of rows lie together.

    Attributes:
        module: Its path.
        shape: ``(K, N)``: inputs, outputs.
        spec: Unsigned integers in groups along K.
        codes: Gives the integers ``[K, N]``.
        scale: Gives the scales, float32 ``[groups, N]``.
        zero_point: Gives the zero points ``[groups, N]``.
        order: Which input each row belongs to, ``[K]``; None when they are in order. Then
            ``x @ weight == x[:, order] @ dequantized``.
    """

    module: str
    shape: tuple[int, int]
    spec: QSpec
    codes: Callable[[], Codes]
    scale: Callable[[], npt.NDArray[np.float32]]
    zero_point: Callable[[], Codes]
    order: npt.NDArray[np.int64] | None


def take_quantized(
    weights: Mapping[str, Stored], layout: Layout | None, source: str
) -> tuple[dict[str, Stored], dict[str, QuantizedLinear]]:
    """Part a checkpoint into its float tensors and its quantized layers by module.

    Only zero points and the groups of rows are read.

    Raises:
        QcError: QC707, the packed tensors of a layer do not belong together, or there are packed
            tensors without settings that say how, or the other way round.
    """
    modules = [name.removesuffix(".qweight") for name in weights if name.endswith(".qweight")]
    if modules and layout is None:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            source,
            f"{len(modules)} layers are packed integers ({modules[0]}.qweight, ...), and neither "
            "config.json nor a file beside it says how",
            "copy quantize_config.json or the quantization_config of config.json, too",
        )
    if layout is not None and not modules:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            source,
            f"the settings say {layout}, and no layer is packed (there is no *.qweight)",
            "copy the files of weights again, or take quantization_config out of config.json",
        )
    found: dict[str, QuantizedLinear] = {}
    taken: set[str] = set()
    for module in modules:
        parts = {part: weights.get(f"{module}.{part}") for part in _PARTS}
        taken.update(stored.name for stored in parts.values() if stored is not None)
        found[module] = _linear(module, parts, layout or "gptq", source)
    return {name: stored for name, stored in weights.items() if name not in taken}, found


def _linear(
    module: str, parts: Mapping[str, Stored | None], layout: Layout, source: str
) -> QuantizedLinear:
    qweight, qzeros, scales = (parts[part] for part in _PARTS[:3])
    if qweight is None or qzeros is None or scales is None:
        lacking = [part for part in _PARTS[:3] if parts[part] is None]
        raise _broken(source, module, f"lacks {', '.join(lacking)}")
    groups, n = scales.shape
    if layout == "awq":
        bits, k = 4, qweight.shape[0]
        fits = qweight.shape[1] * 8 == n and qzeros.shape == (groups, n // 8)
    else:
        bits = qzeros.shape[1] * 32 // n if n else 0
        k = qweight.shape[0] * 32 // bits if bits in WIDTHS else 0
        fits = k > 0 and qweight.shape[1] == n and qzeros.shape[0] == groups
        fits = fits and n % integers_per_step(bits) == 0
    if not fits:
        shapes = ", ".join(
            f"{part} {list(stored.shape)}" for part, stored in parts.items() if stored is not None
        )
        raise _broken(source, module, f"has {shapes}, which is no {layout} of {WIDTHS} bits")
    order, size = _groups(parts["g_idx"], k, groups, source, module)
    for stored in (qweight, qzeros):
        if (kind := stored.read().dtype) != np.int32:
            raise _broken(source, module, f"has {stored.name} of {kind}, wanted int32")
    zeros = functools.partial(_zeros, qzeros, bits, layout)
    middle = bool((zeros() == 1 << (bits - 1)).all())
    return QuantizedLinear(
        module,
        (k, n),
        _spec(bits, size, symmetric=middle),
        functools.partial(_codes, qweight, bits, layout, order),
        functools.partial(_floats, scales),
        zeros,
        order,
    )


def _spec(bits: int, size: int, *, symmetric: bool) -> QSpec:
    holder = {2: ir.DataType.UINT2, 8: ir.DataType.UINT8}.get(bits, ir.DataType.UINT4)
    return QSpec(
        holder,
        Granularity.BLOCK,
        axis=0,
        group_size=size,
        symmetric=symmetric,
        bits=bits if bits == 3 else None,
    )


def _groups(
    g_idx: Stored | None, k: int, groups: int, source: str, module: str
) -> tuple[npt.NDArray[np.int64] | None, int]:
    """The order that puts rows of one group next to each other, and rows of a group."""
    if g_idx is None:
        if k % groups:
            raise _broken(source, module, f"has {groups} groups, which do not part {k} inputs")
        return None, k // groups
    said = np.asarray(g_idx.read()).reshape(-1).astype(np.int64)
    if said.size != k or said.min() < 0 or said.max() >= groups:
        what = f"has {said.size} inputs in groups {said.min()} to {said.max()} (g_idx)"
        raise _broken(source, module, f"{what}, wanted {k} in groups 0 to {groups - 1}")
    counts = np.bincount(said, minlength=groups)
    size = int(counts.max())
    wanted = np.arange(k) // size
    order = np.argsort(said, kind="stable")
    if wanted[-1] != groups - 1 or not np.array_equal(said[order], wanted):
        what = f"has groups of {counts.min()} to {size} inputs (g_idx)"
        raise _broken(source, module, f"{what}, wanted one size but for the last")
    return (None if np.array_equal(said, wanted) else order), size


def _codes(
    qweight: Stored, bits: int, layout: Layout, order: npt.NDArray[np.int64] | None
) -> Codes:
    words = qweight.read()
    codes = split_awq(words) if layout == "awq" else split_words(words.T, bits).T
    return codes if order is None else codes[order]


def _zeros(qzeros: Stored, bits: int, layout: Layout) -> Codes:
    """Zero points ``[groups, N]``.

    The first GPTQ format stores them less one. Tools subtract that from whole words where a word
    holds whole integers, so a zero point of 0 borrows from its neighbour; adding to the word gives
    it back (https://github.com/ModelCloud/GPTQModel, ``convert_gptq_v1_to_v2_format_module``).
    """
    words = qzeros.read()
    if layout == "awq":
        return split_awq(words)
    if layout == "gptq-v2":
        return split_words(words, bits)
    if 32 % bits:
        return (split_words(words, bits) + np.uint8(1)) & np.uint8((1 << bits) - 1)
    ones = np.uint32(sum(1 << start for start in range(0, 32, bits)))
    return split_words((words.view(np.uint32) + ones).view(np.int32), bits)


def _floats(scales: Stored) -> npt.NDArray[np.float32]:
    return np.asarray(scales.read(), np.float32)


def _method_of_side_file(said: Mapping[str, Any]) -> str:
    """Files of the first tools do not name themselves: AWQ's say ``w_bit``, GPTQ's ``bits``."""
    if "w_bit" in said:
        return "awq"
    return "gptq" if "desc_act" in said else "nothing named"


def _broken(source: str, module: str, what: str) -> QcError:
    return QcError(
        Code.UNSUPPORTED_INPUT,
        source,
        f"the quantized layer {module!r} {what}",
        "the checkpoint is not complete, or packed otherwise than its configuration says; "
        + _INSTEAD,
    )
