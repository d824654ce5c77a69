"""The artifact: a folder that ONNX Runtime deploys, with the plan, the report and the manifest.

``model.onnx`` (and ``model.onnx.data`` when large), companions such as a tokenizer, ``plan.json``,
``report.json`` and the same to look at, ``report.html``, ``manifest.json`` (hashes, versions,
session options); of an encoder-decoder the decoder's, and in the folder ``encoder`` an artifact of
the encoder. The same inputs give the same ``model.onnx``, ``plan.json`` and
``manifest.json``, byte for byte; the report holds times.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from google.protobuf.message import DecodeError

from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends.opened import ENCODER
from qcompiler.ir.inline import inlined
from qcompiler.output_folder import MANIFEST, check_place, lift, staging_prefix, swap
from qcompiler.pipeline.contract import Feed
from qcompiler.plan import Plan
from qcompiler.report.model import Report
from qcompiler.runtime.inputs import InputSpec, check_feed, input_specs
from qcompiler.runtime.settings import SessionSettings
from qcompiler.scratch import Scratch

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["INLINE_LIMIT", "Artifact", "model_bytes"]

MODEL, PLAN, REPORT = "model.onnx", "plan.json", "report.json"
_DATA = f"{MODEL}.data"
_FORMAT = 1
INLINE_LIMIT = 1_500_000_000  # protobuf ends at 2 GiB; leave room for the graph itself


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A compiled model with everything that was decided and proven about it.

    Attributes:
        model: The quantized model.
        plan: Every node's verdict.
        report: Coverage, fidelity, kernels seen, sizes, timings, diagnostics.
        settings: Session options the model needs.
        manifest: Hashes, versions, target, recipe, seed, pipeline text.
        companions: Further files by name, as they came with the model or are made for it.
        encoder: Of an encoder-decoder the other part; ``model`` is the decoder then.
    """

    model: ir.Model
    plan: Plan
    report: Report
    settings: SessionSettings
    manifest: Mapping[str, Any]
    companions: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    encoder: Artifact | None = None

    def __repr__(self) -> str:
        nodes = ", ".join(f"{count} {verdict}" for verdict, count in self.plan.count().items())
        return f"<Artifact for {self.plan.target} by recipe {self.plan.recipe}: {nodes}>"

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: all but the session that :meth:`run` keeps open."""
        return {key: value for key, value in vars(self).items() if key != "_session"}

    @property
    def parts(self) -> dict[str, Artifact]:
        """The artifacts of all graphs by name: ``encoder`` and ``decoder``, or ``model`` alone."""
        if self.encoder is None:
            return {"model": self}
        return {ENCODER: self.encoder, "decoder": self}

    def session(self, *, threads: int | None = None) -> ort.InferenceSession:
        """An ONNX Runtime session with the artifact's session options.

        Args:
            threads: Intra-op threads; None leaves it to the runtime.
        """
        from qcompiler.runtime.session import open_session

        return open_session(self.model, settings=self.settings, threads=threads)

    def run(self, feed: Feed | Sequence[Any] | npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name for one feed (a session is made once and kept).

        Args:
            feed: Arrays by input name, a tuple in the order of the inputs, or the array of a
                single input.

        Raises:
            QcError: QC202 to QC204, the feed does not suit the model; QC606, the runtime fails.
        """
        from qcompiler.calibration.feeds import named_arrays
        from qcompiler.runtime.session import run

        checked = check_feed(named_arrays(feed, self._inputs), self._inputs)
        return run(self._session, checked, code=Code.DOES_NOT_LOAD)

    @functools.cached_property
    def _inputs(self) -> tuple[InputSpec, ...]:
        return input_specs(self.model)

    @functools.cached_property
    def _session(self) -> ort.InferenceSession:
        return self.session()

    def save(self, folder: str | os.PathLike[str]) -> pathlib.Path:
        """Write the artifact; nothing half-written is left behind.

        Files go to a temporary folder beside the target, which is then renamed (or, where the
        folder is empty already, inside it and up). An artifact that was there before is replaced;
        a folder with anything else in it is refused. A link to a folder stays a link.

        Raises:
            QcError: QC706, the place cannot be written, is full, or holds other files.
        """
        final = check_place(folder)
        scratch: Scratch | None = None
        try:
            inside = final.is_dir() and not (final / MANIFEST).is_file()
            home = final if inside else final.parent
            home.mkdir(parents=True, exist_ok=True)
            scratch = Scratch(home, staging_prefix(final))
            staging = scratch.folder / "artifact"
            staging.mkdir()
            self._write(staging)
            if inside:
                lift(staging, final)
            else:
                swap(staging, final)
        except OSError as error:
            raise QcError(
                Code.NOT_WRITABLE,
                str(folder),
                f"cannot be written: {error.strerror or error}",
                "choose another folder, or free some space",
            ) from error
        finally:
            if scratch is not None:
                scratch.remove()
        return final

    def _write(self, folder: pathlib.Path) -> None:
        from qcompiler.report.page import PAGE, write_page  # only who saves needs the templates

        with concurrent.futures.ThreadPoolExecutor(1) as beside:  # the report takes as long
            writing = beside.submit(self._write_model, folder)
            for name, content in self.companions.items():
                (folder / name).write_bytes(content)
            _write_json(folder / PLAN, self.plan.to_dict())
            _write_json(folder / REPORT, self.report.to_dict())
            write_page(self.report, self.plan, folder / PAGE)
            digests = writing.result()
        digests.update((name, _digest(folder / name)) for name in (*self.companions, PLAN))
        files = dict(sorted(digests.items()))
        if self.encoder is not None:
            inside = folder / ENCODER
            inside.mkdir()
            self.encoder._write(inside)
            files[f"{ENCODER}/{MANIFEST}"] = _digest(inside / MANIFEST)
        manifest = {
            "format": _FORMAT,
            **self.manifest,
            "session": self.settings.to_dict(),
            "companions": sorted(self.companions),
            "files": files,
        }
        _write_json(folder / MANIFEST, manifest)

    def _write_model(self, folder: pathlib.Path) -> dict[str, str]:
        """Digests of the files by name."""
        large = model_bytes(self.model) > INLINE_LIMIT
        if large:
            ir.save(self.model, folder / MODEL, external_data=_DATA)
        else:
            proto = ir.to_proto(inlined(self.model))
            (folder / MODEL).write_bytes(proto.SerializeToString(deterministic=True))
        return {name: _digest(folder / name) for name in (MODEL, *((_DATA,) if large else ()))}

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, check: bool = True) -> Artifact:
        """Read an artifact folder.

        Args:
            folder: What :meth:`save` wrote.
            check: Compare the files' hashes with the manifest.

        Raises:
            QcError: QC709, the folder is not an artifact or a file was changed or is missing.
        """
        if not isinstance(folder, str | os.PathLike):
            raise QcError(
                Code.NOT_ARTIFACT,
                "folder",
                f"found a {type(folder).__name__}, wanted a path",
                "give a folder written by `qcompile compile` or Artifact.save",
            )
        root = pathlib.Path(folder)
        if not root.is_dir():
            raise QcError(
                Code.NOT_ARTIFACT,
                str(root),
                "is a file, not a folder" if root.exists() else "there is no such folder",
                "give a folder written by `qcompile compile` or Artifact.save",
            )
        manifest = _read_json(root / MANIFEST)
        if manifest.get("format") != _FORMAT:
            raise QcError(
                Code.NOT_ARTIFACT,
                str(root),
                f"manifest has format {manifest.get('format')!r}, wanted {_FORMAT}",
                "compile it again with this version",
            )
        files, session = manifest.get("files"), manifest.get("session")
        if not isinstance(files, dict) or not isinstance(session, dict):
            raise _damaged(root / MANIFEST, "lacks the tables files and session")
        part = f"{ENCODER}/{MANIFEST}"
        for name, digest in files.items():
            path = root / name
            if (pathlib.PurePath(name).name != name and name != part) or not path.is_file():
                raise QcError(Code.NOT_ARTIFACT, str(path), "is missing", "compile it again")
            if check and _digest(path) != digest:
                raise QcError(
                    Code.NOT_ARTIFACT,
                    str(path),
                    "is not what the manifest says (its hash differs)",
                    "to compile an edited plan use qcompile(..., plan=...)",
                )
        companions = [name for name in manifest.get("companions", ()) if name in files]
        written = ("format", "session", "companions", "files")
        keep = {k: v for k, v in manifest.items() if k not in written}
        report = _read_json(root / REPORT)
        try:
            return cls(
                model=ir.load(root / MODEL),
                plan=Plan.load(root / PLAN),
                report=Report.from_dict(report),
                settings=SessionSettings.from_dict(session),
                manifest=keep,
                companions={name: (root / name).read_bytes() for name in companions},
                encoder=cls.load(root / ENCODER, check=check) if part in files else None,
            )
        except (OSError, KeyError, TypeError, ValueError, DecodeError) as error:
            raise _damaged(root, f"{type(error).__name__}: {error}") from error


def model_bytes(model: ir.Model) -> int:
    """Bytes of all constants of the model, nested bodies included; shared tensors count once."""
    from qcompiler.ir.walk import all_graphs

    tensors: dict[int, int] = {}
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                tensors[id(value.const_value)] = value.const_value.nbytes
    return sum(tensors.values())


def _damaged(path: pathlib.Path, what: str) -> QcError:
    return QcError(
        Code.NOT_ARTIFACT, str(path), f"is damaged: {what}", "compile it again with this version"
    )


def _digest(path: pathlib.Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def _write_json(path: pathlib.Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, default=_plain) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} does not go into JSON")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QcError(
            Code.NOT_ARTIFACT,
            str(path),
            f"cannot be read: {error}",
            "give a folder written by `qcompile compile` or Artifact.save",
        ) from error
    if not isinstance(data, dict):
        raise _damaged(path, "it is no JSON table")
    return data
