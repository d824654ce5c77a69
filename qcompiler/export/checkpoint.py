"""Write an artifact's integers as a GPTQ or AWQ checkpoint of the torch world."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from qcompiler.artifact import Artifact
from qcompiler.diagnostics import Code, Diagnostic, QcError, nearest
from qcompiler.export.formats import WRITERS, Format, Writer, check_layer
from qcompiler.export.layers import Matched, match
from qcompiler.export.safetensors_file import Entry, write_shards
from qcompiler.frontends import open_model
from qcompiler.frontends.config_file import read_table
from qcompiler.frontends.decoder import checkpoint as weights_of
from qcompiler.frontends.decoder.families import FAMILIES
from qcompiler.frontends.decoder.layers import PARTS
from qcompiler.ir.lazy import Stored

__all__ = ["FORMATS", "Exported", "Format", "export_checkpoint"]

FORMATS: tuple[str, ...] = get_args(Format)
_COPIED = (".json", ".jinja", ".model", ".txt")  # beside the weights: tokenizer, generation
_NOT_COPIED = ("config.json", "quantize_config.json", weights_of.INDEX)


@dataclasses.dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        layers: Quantized layers.
        floats: Modules of linear layers in float, as in the artifact.
        diagnostics: In what the checkpoint differs from the artifact.
    """

    folder: pathlib.Path
    layers: int
    floats: tuple[str, ...]
    diagnostics: tuple[Diagnostic, ...]


def export_checkpoint(
    artifact: Artifact,
    against: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    format: Format = "gptq",
) -> Exported:
    """Write a transformers folder with the integers of an artifact.

    Integers and zero points are those of the artifact; scales are rounded to float16, which is
    what the formats hold. Embedding, head and whatever the compiler left alone come from the float
    model; norms, biases and float layers that it changed come from the artifact.

    Args:
        artifact: A decoder compiled from a transformers folder, weights alone rounded.
        against: That folder.
        folder: A new or empty one.
        format: ``gptq`` (2, 3, 4 and 8 bits) or ``awq`` (4 bits, gemm).

    Raises:
        QcError: QC714, the format cannot hold the artifact; QC709, it was not compiled from
            ``against``; QC706, the folder cannot be written; as :func:`open_model`.
    """
    if format not in FORMATS:
        raise QcError(
            Code.NOT_EXPORTABLE,
            "format",
            f"found {format!r}, wanted one of {', '.join(FORMATS)}",
            nearest(format, FORMATS),
        )
    source, final = pathlib.Path(against), _place(folder)
    opened = open_model(source)
    said = read_table(source / "config.json")
    family = FAMILIES.get(str(said.get("model_type")))
    if family is None or opened.quantized:
        found = "is quantized itself" if opened.quantized else "is no decoder that is known"
        raise QcError(
            Code.NOT_EXPORTABLE,
            str(source),
            f"{found}, wanted the folder of the float model",
            "give the transformers folder that the artifact was compiled from",
        )
    matched = match(artifact, opened.model, family.top, str(source))
    for layer in matched.layers.values():
        check_layer(layer, format)
    held = _held_by_weights(artifact, said)
    writer = WRITERS[format](matched)
    weights = weights_of.with_base(weights_of.from_folder(source), family)
    entries = list(_entries(weights, matched, writer))
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        staging = pathlib.Path(tempfile.mkdtemp(prefix=f".{final.name[:100]}.", dir=final.parent))
    except OSError as error:
        raise _not_writable(folder, f"cannot be written: {error.strerror or error}") from error
    try:
        staging.chmod(0o755)
        write_shards(staging, entries)
        settings = writer.settings()
        config = {**said, **held, "quantization_config": settings}
        _write_json(staging / "config.json", config)
        if format == "gptq":  # where loaders older than quantization_config look
            _write_json(staging / "quantize_config.json", settings)
        for path in sorted(source.iterdir()):
            if path.is_file() and path.suffix in _COPIED and path.name not in _NOT_COPIED:
                shutil.copyfile(path, staging / path.name)
        if final.is_dir():
            final.rmdir()
        staging.rename(final)
    except OSError as error:
        raise _not_writable(folder, f"cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    told = list(_differences(matched, writer, format))
    if held:
        message = f"config.json says {held}: the weights hold what the float model's says"
        told.append(Diagnostic(Code.CHECKPOINT_DIFFERS, format, message))
    return Exported(final, len(matched.layers), matched.floats, tuple(told))


def _held_by_weights(artifact: Artifact, said: Mapping[str, Any]) -> dict[str, Any]:
    """Switches of the configuration that the artifact's weights hold, without effect (Granite)."""
    if said.get("residual_multiplier", 1.0) == 1.0:
        return {}
    ends = tuple(f".{part}.scale" for part in PARTS)
    apart = sum(name.endswith(ends) for name in artifact.model.graph.initializers)
    if apart not in (0, len(PARTS) * said["num_hidden_layers"]):
        raise QcError(
            Code.NOT_EXPORTABLE,
            "residual_multiplier",
            f"{apart} layers have it beside their weights and others in them, wanted one of both",
            "compile with the default pipeline",
        )
    return {} if apart else {"residual_multiplier": 1.0}


def _entries(weights: Mapping[str, Stored], matched: Matched, writer: Writer) -> Iterator[Entry]:
    """Every tensor of the checkpoint, in the order of the float one."""
    for name, stored in weights.items():
        layer = matched.layers.get(name.removesuffix(".weight"))
        if layer is not None and name.endswith(".weight"):
            yield from writer.parts(layer)
            continue
        make = matched.changed.get(name, stored.read)
        yield Entry(name, stored.read().dtype, stored.shape, make)


def _differences(matched: Matched, writer: Writer, format: Format) -> Iterator[Diagnostic]:
    if writer.rounding:
        yield Diagnostic(
            Code.CHECKPOINT_DIFFERS,
            format,
            f"scales are float16, which changes them by at most {writer.rounding:.1e} of each",
            values={"largest": writer.rounding},
        )
    if matched.left:
        yield Diagnostic(
            Code.CHECKPOINT_DIFFERS,
            ", ".join(matched.left),
            "quantized in the artifact, float in the checkpoint: the format holds layers of the "
            "decoder alone",
        )
    if matched.changed:
        yield Diagnostic(
            Code.CHECKPOINT_DIFFERS,
            format,
            f"{len(matched.changed)} float tensors are those of the artifact, where the compiler "
            "changed them, in the type of the float model",
            values={"tensors": sorted(matched.changed)},
        )


def _place(folder: str | os.PathLike[str]) -> pathlib.Path:
    final = pathlib.Path(os.path.realpath(folder))
    if final.exists() and not final.is_dir():
        raise _not_writable(folder, "is a file, wanted a folder")
    if final.is_dir() and any(final.iterdir()):
        raise _not_writable(folder, "is not empty")
    return final


def _not_writable(folder: str | os.PathLike[str], what: str) -> QcError:
    return QcError(Code.NOT_WRITABLE, str(folder), what, "choose a new or empty folder")


def _write_json(path: pathlib.Path, said: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
