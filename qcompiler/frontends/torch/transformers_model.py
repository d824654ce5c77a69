"""Front end for transformers: inputs and dynamic axes worked out from the configuration."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends.admission import admit, with_diagnostics
from qcompiler.frontends.config_file import class_assumed
from qcompiler.frontends.opened import Opened
from qcompiler.frontends.quiet_loading import without_bars
from qcompiler.frontends.torch.example_inputs import (
    ExampleInputs,
    doubled,
    example_feed,
    without_bfloat16,
)
from qcompiler.frontends.torch.export import (
    evaluation_mode,
    export_to_ir,
    kept_buffers,
    output_names,
    run_once,
)

__all__ = ["open_folder", "open_pretrained"]

_BATCH = 2
_SEQUENCE = 16
_SAMPLES = 16000  # one second of speech at 16 kHz
_IMAGE = 224  # for convolutional networks, whose configuration does not say
_CHANNELS = 3
_TOKEN_AXES = {0: "batch", 1: "sequence"}
# Dynamic axes by the names that transformers gives its inputs.
_AXES: dict[str, dict[int, str]] = {
    "input_ids": _TOKEN_AXES,
    "attention_mask": _TOKEN_AXES,
    "token_type_ids": _TOKEN_AXES,
    "position_ids": _TOKEN_AXES,
    "input_values": {0: "batch", 1: "samples"},
    "pixel_values": {0: "batch"},
    "bool_masked_pos": {0: "batch"},
}


def open_folder(folder: pathlib.Path, example_inputs: Any = None) -> Opened:
    """Load a local folder in float32 and export it. No code of the folder runs.

    Raises:
        QcError: QC707 when transformers cannot read the folder, and as :func:`open_pretrained`.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        names = getattr(config, "architectures", None) or []
        cls = getattr(transformers, names[0], None) if names else None
        loader = cls or transformers.AutoModel
        with without_bars():
            model = loader.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # its classes check files and fields by errors of many kinds
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            str(folder),
            f"transformers cannot load the folder: {' '.join(str(error).split())[:300]}",
            "the folder needs config.json and model.safetensors of a class transformers knows",
        ) from error
    opened = open_pretrained(model, example_inputs, str(folder))
    if cls is not None:
        return opened
    return with_diagnostics(opened, class_assumed(folder, type(model).__name__))


def open_pretrained(model: Any, example_inputs: Any, source: str) -> Opened:
    """Export a ``PreTrainedModel`` with dynamic batch and sequence, and ONNX users' names.

    Inputs follow from the configuration: ``input_ids``, ``attention_mask`` and, when the model has
    more than one token type, ``token_type_ids``; ``pixel_values`` of the image size;
    ``input_values``, samples or a spectrogram; or ``input_features`` of Whisper's encoder. Outputs
    are named as the model's output class names them.

    Raises:
        QcError: QC707 for encoder-decoders, QC708 when the inputs cannot be worked out, QC705 when
            it does not export.
    """
    if example_inputs is None:
        example_inputs = _example(model, source)
    inputs = ExampleInputs.bind(model, example_inputs, source)
    model, inputs, notes = without_bfloat16(model, inputs, source)
    with evaluation_mode(model), _without_cache(model):
        with kept_buffers(model):
            result = run_once(model, inputs, source)
        names = output_names(result, tuple(inputs.named))
        dynamic = {name: _axes(name, item) for name, item in inputs.named.items()}
        exported = export_to_ir(model, doubled(inputs), source, dynamic=dynamic, outputs=names)
    opened = admit(exported, "transformers", source, example_feed(exported, inputs.tensors()))
    return with_diagnostics(opened, *notes)


class _without_cache:  # noqa: N801 - reads as a statement
    """``config.use_cache`` off while exporting: a cache is no tensor and no output."""

    def __init__(self, model: Any) -> None:
        self._config = model.config
        self._before = getattr(model.config, "use_cache", None)

    def __enter__(self) -> None:
        if self._before:
            self._config.use_cache = False

    def __exit__(self, *_: object) -> None:
        if self._before:
            self._config.use_cache = self._before


def _axes(name: str, item: Any) -> dict[int, str] | None:
    if not isinstance(item, torch.Tensor):
        return None
    axes = _AXES.get(name, {0: "batch"})
    if name == "input_values" and item.ndim > 2:  # a spectrogram: its frames have positions
        axes = {0: "batch"}
    return {axis: word for axis, word in axes.items() if axis < item.ndim}


def _example(model: Any, source: str) -> dict[str, torch.Tensor]:
    config = model.config
    accepted = inspect.signature(model.forward).parameters
    both = getattr(config, "is_encoder_decoder", False)  # also what a part of such a model has
    if both and "decoder_input_ids" in accepted:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            source,
            f"encoder-decoders of the architecture {config.model_type!r} are not known: two graphs "
            "with a key-value cache are written for WhisperForConditionalGeneration alone",
            f"give example_inputs ({model.main_input_name} and decoder_input_ids) to export it as "
            "one graph without a cache, or compile a part, as model.get_encoder()",
        )
    if both and "encoder_hidden_states" in accepted and getattr(model, "is_decoder", True):
        raise _needs_inputs(model, source, "a decoder reads encoder_hidden_states besides its text")
    made: dict[str, torch.Tensor] = {}
    if "pixel_values" in accepted:
        made["pixel_values"] = _pixels(config)
    if "input_ids" in accepted:
        made.update(_tokens(config, accepted))
    if not made:
        made.update(_sound(config, accepted))
    if not made:
        found = f"no inputs are known for a model whose main input is {model.main_input_name!r}"
        raise _needs_inputs(model, source, found)
    return made


def _needs_inputs(model: Any, source: str, found: str) -> QcError:
    hint = f"pass example_inputs for forward{inspect.signature(model.forward)}"
    return QcError(Code.NEEDS_EXAMPLE_INPUTS, source, found, hint)


def _tokens(config: Any, accepted: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    text = _part(config, "text_config")
    longest = getattr(text, "max_position_embeddings", None) or _SEQUENCE
    length = min(_SEQUENCE, longest)
    generator = torch.Generator().manual_seed(0)
    vocabulary = getattr(text, "vocab_size", 2)
    made = {
        "input_ids": torch.randint(0, vocabulary, (_BATCH, length), generator=generator),
    }
    if "attention_mask" in accepted:
        made["attention_mask"] = torch.ones(_BATCH, length, dtype=torch.int64)
    if "token_type_ids" in accepted and getattr(text, "type_vocab_size", 0) > 1:
        made["token_type_ids"] = torch.zeros(_BATCH, length, dtype=torch.int64)
    return made


def _pixels(config: Any) -> torch.Tensor:
    vision = _part(config, "vision_config")
    size = getattr(vision, "image_size", None) or _IMAGE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(vision, "num_channels", None) or _CHANNELS
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_BATCH, channels, height, width, generator=generator)


def _sound(config: Any, accepted: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Samples, or the spectrogram that the configuration describes."""
    bands, frames, positions = (
        getattr(config, key, None) for key in ("num_mel_bins", "max_length", "max_source_positions")
    )
    generator = torch.Generator().manual_seed(0)
    if "input_values" in accepted:
        shape = (frames, bands) if bands and frames else (_SAMPLES,)
        return {"input_values": torch.randn(_BATCH, *shape, generator=generator)}
    if "input_features" in accepted and bands and positions:  # Whisper's encoder by itself
        shape = (bands, 2 * positions)
        return {"input_features": torch.randn(_BATCH, *shape, generator=generator)}
    return {}


def _part(config: Any, name: str) -> Any:
    """A nested configuration of a model with several towers, or the configuration itself."""
    return getattr(config, name, None) or config
