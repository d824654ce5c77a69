"""Who takes part: what each is, and how its model is made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from qcompiler.bench import Candidate
from qcompiler_models.real import RealModel
from suite.jobs import WORKERS, JobError, run_job, write_feeds
from suite.peers import Peers

__all__ = ["CONTESTANTS", "OURS", "PEERS", "Contestant", "Maker", "for_model"]

_TRANSFORMERS = frozenset({"minilm", "whisper-encoder", "whisper-decoder"})
_ROOT = pathlib.Path(__file__).parents[2]
_RECIPES_WITHOUT_DATA = frozenset({"dynamic-int8", "weight-int8", "weight-int4", "float"})


@dataclasses.dataclass(frozen=True, slots=True)
class Contestant:
    """One row of the tables.

    Attributes:
        name: As on the command line.
        label: As in the tables.
        kind: Which worker makes the model; ``as-is`` takes the float model.
        options: Keys of that worker's spec.
        runtime: What runs the model.
        precision: OpenVINO's inference precision; None lets it choose.
        needs: Packages of the peers' environment.
    """

    name: str
    label: str
    kind: Literal["as-is", "ours", "ort", "nncf"]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    precision: str | None = None
    needs: tuple[str, ...] = ()


def _ours(recipe: str, form: str | None = None) -> Contestant:
    name = f"{recipe}-{form}" if form else recipe
    label = f"**qcompiler {recipe}**" + (f" ({form} form)" if form else "")
    return Contestant(name, label, "ours", {"recipe": recipe, "form": form})


def _ort(name: str, label: str, method: str) -> Contestant:
    return Contestant(
        name, label, "ort", {"method": method}, needs=("onnxruntime", "onnx", "sympy")
    )


FLOAT = Contestant("float-ort", "ORT float, as exported", "as-is")
OURS = (
    _ours("static-int8"),
    _ours("static-int8", "qdq"),
    _ours("dynamic-int8"),
    _ours("auto"),
    _ours("weight-int8"),
    _ours("weight-int4"),
    _ours("float"),
    Contestant("own", "**qcompiler, the model's own recipe**", "ours", {"form": None}),
)
PEERS = (
    _ort("ort-dynamic", "ORT quantize_dynamic, per channel", "dynamic"),
    _ort("ort-static-minmax", "ORT quantize_static, QDQ per channel, min-max", "minmax"),
    _ort("ort-static-percentile", "ORT quantize_static, percentile", "percentile"),
    _ort("ort-static-entropy", "ORT quantize_static, entropy", "entropy"),
    Contestant("nncf-ort", "NNCF, ONNX on ORT", "nncf", needs=("nncf", "onnx")),
    Contestant(
        "nncf-openvino", "NNCF, OpenVINO runtime", "nncf", {"form": "xml"}, "openvino",
        needs=("nncf", "openvino"),
    ),
    Contestant(
        "openvino-f32", "OpenVINO runtime, f32", "as-is", {}, "openvino", "f32", ("openvino",)
    ),
    Contestant(
        "openvino-bf16", "OpenVINO runtime, bf16", "as-is", {}, "openvino", "bf16", ("openvino",)
    ),
)  # fmt: skip
CONTESTANTS: Mapping[str, Contestant] = MappingProxyType(
    {item.name: item for item in (FLOAT, *OURS, *PEERS)}
)
"""All, by name; the first is the baseline."""


def for_model(model: RealModel, chosen: Sequence[Contestant]) -> list[Contestant]:
    """Those that take part: ``own`` only where it is not one of the built-in recipes."""
    has_own = not isinstance(model.recipe, str)
    return [item for item in chosen if item.name != "own" or has_own]


class Maker:
    """Makes contestants' models, and finds those made before.

    A model made before counts as long as the sources that made it are the same.
    """

    def __init__(self, folder: pathlib.Path, peers: Peers) -> None:
        self.folder = folder
        self.peers = peers

    def model_of(self, contestant: Contestant, model: RealModel) -> pathlib.Path:
        """Where the contestant's model is, or would be: a file, or an artifact folder."""
        if contestant.kind == "as-is":
            return pathlib.Path(model.onnx())
        place = self.folder / "artifacts" / model.name / contestant.name
        if contestant.kind == "ours":
            return place
        return place / f"model.{contestant.options.get('form', 'onnx')}"

    def make(self, contestant: Contestant, model: RealModel) -> dict[str, Any]:
        """Make it anew; seconds, peak memory and size.

        Raises:
            JobError: It can't be made; the message says why.
        """
        why = self.peers.why_not(contestant.needs)
        if why:
            raise JobError(why)
        made = self.model_of(contestant, model)
        if contestant.kind == "as-is":
            return {"bytes": _size(made)}
        _forget(made)
        feeds = self._calibration(model)
        stamp = self._stamp(contestant, model)
        if contestant.kind == "ours":
            recipe = contestant.options.get("recipe", model.recipe)
            needs_data = isinstance(recipe, Mapping) or recipe not in _RECIPES_WITHOUT_DATA
            measured = run_job(pathlib.Path(sys.executable), "compile_ours.py", {
                "model": str(model.onnx()), "output": str(made), **contestant.options,
                "recipe": recipe, "calibration": str(feeds) if needs_data else None,
            })  # fmt: skip
        else:
            made.parent.mkdir(parents=True, exist_ok=True)
            transformer = model.name in _TRANSFORMERS
            measured = run_job(self.peers.python, f"quantize_{contestant.kind}.py", {
                "model": str(model.onnx()), "output": str(made), **contestant.options,
                "calibration": str(feeds), "transformer": transformer,
                # All operators: cosine 0.38 on MiniLM; these two are what its users choose.
                "operators": ["MatMul", "Gemm"] if transformer else None,
            })  # fmt: skip
        stamp.write_text(self._digest(contestant), encoding="utf-8")
        return {**measured, "bytes": _size(made)}

    def have(self, contestant: Contestant, model: RealModel) -> pathlib.Path:
        """The contestant's model, made unless it is there and up to date.

        Raises:
            JobError: It can't be made.
        """
        made = self.model_of(contestant, model)
        stamp = self._stamp(contestant, model)
        fresh = stamp.is_file() and stamp.read_text(encoding="utf-8") == self._digest(contestant)
        if contestant.kind == "as-is" or not (made.exists() and fresh):
            self.make(contestant, model)
        return made

    def candidate(self, contestant: Contestant, model: RealModel) -> Candidate:
        """What :func:`qcompiler.bench.compare` needs to time it."""
        made = self.have(contestant, model)
        if contestant.runtime == "onnxruntime":
            return Candidate(contestant.name, made)
        command = (str(self.peers.python), str(WORKERS / "openvino_runtime.py"))
        return Candidate(contestant.name, made, command, {"precision": contestant.precision})

    def _calibration(self, model: RealModel) -> pathlib.Path:
        """The model's calibration data on disk, written once a run."""
        return _written(model, self.folder / "feeds" / model.name)

    def _stamp(self, contestant: Contestant, model: RealModel) -> pathlib.Path:
        folder = self.folder / "stamps" / model.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder / contestant.name

    def _digest(self, contestant: Contestant) -> str:
        if contestant.kind == "ours":
            return source_digest()
        script = WORKERS / f"quantize_{contestant.kind}.py"
        text = script.read_text(encoding="utf-8") if script.is_file() else ""
        versions = json.dumps(self.peers.versions, sort_keys=True)
        return hashlib.sha256((text + versions).encode()).hexdigest()[:16]


_WRITTEN: dict[pathlib.Path, None] = {}


def _written(model: RealModel, folder: pathlib.Path) -> pathlib.Path:
    if folder not in _WRITTEN:
        write_feeds(model.calibration(), folder)
        _WRITTEN[folder] = None
    return folder


def source_digest() -> str:
    """Digest of the compiler's sources, so that a changed compiler compiles again."""
    state = hashlib.sha256()
    for path in sorted(_sources()):
        state.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16]


def _sources() -> Iterator[pathlib.Path]:
    for package in ("qcompiler", "passes/qcompiler_passes"):
        yield from (_ROOT / package).rglob("*.py")


def _forget(made: pathlib.Path) -> None:
    """Remove the files of a model made before, so that a failure leaves none behind."""
    folder = made if made.is_dir() else made.parent
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_file():
                path.unlink()
        if folder == made:
            folder.rmdir()


def _size(made: pathlib.Path) -> int:
    """Bytes to deploy: the model with its weights, not the plan and the reports."""
    if made.is_dir():
        return sum(path.stat().st_size for path in made.glob("model.onnx*"))
    files = [made, made.with_suffix(".bin")] if made.suffix == ".xml" else [made]
    return sum(path.stat().st_size for path in files)
