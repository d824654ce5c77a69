"""The artifact: a folder that ONNX Runtime deploys, with the plan, the report and the manifest.

``model.onnx`` (and ``model.onnx.data`` when large), ``plan.json``, ``report.json``,
``manifest.json`` (hashes, versions, session options). The same inputs give the same ``model.onnx``,
``plan.json`` and ``manifest.json``, byte for byte; ``report.json`` holds times.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.pipeline.contract import Feed
from qcompiler.plan import Plan
from qcompiler.report.model import Report
from qcompiler.runtime.settings import SessionSettings

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["Artifact", "model_bytes"]

MODEL, PLAN, REPORT, MANIFEST = "model.onnx", "plan.json", "report.json", "manifest.json"
_FORMAT = 1
_INLINE_LIMIT = 1_500_000_000  # protobuf ends at 2 GiB; leave room for the graph itself


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A compiled model with everything that was decided and proven about it.

    Attributes:
        model: The quantized model.
        plan: Every node's verdict.
        report: Coverage, fidelity, kernels seen, sizes, timings, diagnostics.
        settings: Session options the model needs.
        manifest: Hashes, versions, target, recipe, seed, pipeline text.
    """

    model: ir.Model
    plan: Plan
    report: Report
    settings: SessionSettings
    manifest: Mapping[str, Any]

    def session(self, *, threads: int | None = None) -> ort.InferenceSession:
        """An ONNX Runtime session with the artifact's session options.

        Args:
            threads: Intra-op threads; None leaves it to the runtime.
        """
        from qcompiler.runtime.session import open_session

        return open_session(self.model, settings=self.settings, threads=threads)

    def run(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name for one feed (a session is made once and kept)."""
        from qcompiler.runtime.session import run

        return run(self._session, feed)

    @functools.cached_property
    def _session(self) -> ort.InferenceSession:
        return self.session()

    def save(self, folder: str | os.PathLike[str]) -> pathlib.Path:
        """Write the artifact; nothing half-written is left behind.

        Files go to a temporary folder beside the target, which is then renamed. An artifact that
        was there before is replaced; a folder with anything else in it is refused.

        Raises:
            QcError: QC706, the place cannot be written, is full, or holds other files.
        """
        final = pathlib.Path(folder)
        _check_place(final)
        staging: pathlib.Path | None = None
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            staging = pathlib.Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
            staging.chmod(0o755)
            self._write(staging)
            _swap(staging, final)
        except OSError as error:
            raise QcError(
                Code.NOT_WRITABLE,
                str(final),
                f"cannot be written: {error.strerror or error}",
                "choose another folder, or free some space",
            ) from error
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
        return final

    def _write(self, folder: pathlib.Path) -> None:
        if model_bytes(self.model) > _INLINE_LIMIT:
            ir.save(self.model, folder / MODEL, external_data=f"{MODEL}.data")
        else:
            (folder / MODEL).write_bytes(ir.to_proto(self.model).SerializeToString(deterministic=True))
        _write_json(folder / PLAN, self.plan.to_dict())
        _write_json(folder / REPORT, self.report.to_dict())
        files = {path.name: _digest(path) for path in sorted(folder.iterdir()) if path.name != REPORT}
        manifest = {
            "format": _FORMAT,
            **self.manifest,
            "session": self.settings.to_dict(),
            "files": files,
        }
        _write_json(folder / MANIFEST, manifest)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, check: bool = True) -> Artifact:
        """Read an artifact folder.

        Args:
            folder: What :meth:`save` wrote.
            check: Compare the files' hashes with the manifest.

        Raises:
            QcError: QC709, the folder is not an artifact or a file was changed or is missing.
        """
        root = pathlib.Path(folder)
        manifest = _read_json(root / MANIFEST)
        if manifest.get("format") != _FORMAT:
            raise QcError(
                Code.NOT_ARTIFACT,
                str(root),
                f"manifest has format {manifest.get('format')!r}, wanted {_FORMAT}",
                "compile it again with this version",
            )
        for name, digest in manifest.get("files", {}).items():
            path = root / name
            if pathlib.PurePath(name).name != name or not path.is_file():
                raise QcError(Code.NOT_ARTIFACT, str(path), "is missing", "compile it again")
            if check and _digest(path) != digest:
                raise QcError(
                    Code.NOT_ARTIFACT,
                    str(path),
                    "is not what the manifest says (its hash differs)",
                    "to compile an edited plan use qcompile(..., plan=...)",
                )
        settings = SessionSettings.from_dict(manifest["session"])
        keep = {k: v for k, v in manifest.items() if k not in ("format", "session", "files")}
        return cls(
            model=ir.load(root / MODEL),
            plan=Plan.load(root / PLAN),
            report=Report.from_dict(_read_json(root / REPORT)),
            settings=settings,
            manifest=keep,
        )


def model_bytes(model: ir.Model) -> int:
    """Bytes of all constants of the model, nested bodies included; shared tensors count once."""
    from qcompiler.ir.walk import all_graphs

    tensors: dict[int, int] = {}
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                tensors[id(value.const_value)] = value.const_value.nbytes
    return sum(tensors.values())


def _check_place(final: pathlib.Path) -> None:
    if final.is_file():
        raise QcError(Code.NOT_WRITABLE, str(final), "is a file, wanted a folder")
    if final.is_dir() and any(final.iterdir()) and not (final / MANIFEST).is_file():
        raise QcError(
            Code.NOT_WRITABLE,
            str(final),
            "holds other files and is not an artifact",
            "choose an empty or new folder",
        )


def _swap(staging: pathlib.Path, final: pathlib.Path) -> None:
    """Rename ``staging`` to ``final``; what was there is put back when the rename fails."""
    if not final.exists():
        staging.rename(final)
        return
    old = pathlib.Path(tempfile.mkdtemp(prefix=f".{final.name}.old.", dir=final.parent))
    final.rename(old / "was")
    try:
        staging.rename(final)
    except OSError:
        (old / "was").rename(final)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


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
        raise QcError(Code.NOT_ARTIFACT, str(path), "is not a JSON table")
    return data
