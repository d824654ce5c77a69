"""The peers' environments: made on demand in the cache, never the project's own."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import subprocess
import sys

from qcompiler_models.assets import cache_root

__all__ = ["Peers", "no_peers", "open_peers"]

_FOLDER = pathlib.Path(__file__).parents[1]
_SECONDS = 1200  # about 300 MB come down
_LIST = (
    "import importlib.metadata as m, json, sys; "
    "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Peers:
    """An environment with what could be installed.

    Attributes:
        python: Its interpreter.
        versions: Version by package, of what was asked for and is there.
        missing: Why a package is not there, by package.
    """

    python: pathlib.Path
    versions: dict[str, str]
    missing: dict[str, str]

    def why_not(self, packages: tuple[str, ...]) -> str | None:
        """The reason why the packages can't be used, None if all are there."""
        for name in packages:
            if name not in self.versions:
                why = self.missing.get(name, "not in peers-requirements.txt")
                return f"{name} is not installed: {why}"
        return None


def no_peers() -> Peers:
    """No environment: for a run without peers."""
    why = "peers were left out of this run"
    return Peers(pathlib.Path(sys.executable), {}, dict.fromkeys(map(_name, _wanted()), why))


def open_peers(name: str = "") -> Peers:
    """An environment, made at first use and whenever its requirements change.

    Every requirement is tried by itself when they do not install together, so one package that
    can't be had takes down its own rows only.

    Args:
        name: Of a peer that has an environment to itself, ``peers-requirements-{name}.txt``; ""
            for the one that the others share.
    """
    wanted = _wanted(name)
    pin = f"onnxruntime=={importlib.metadata.version('onnxruntime')}"
    digest = hashlib.sha256("\n".join([*wanted, pin, sys.version]).encode()).hexdigest()[:12]
    folder = cache_root() / "peers" / digest
    python = folder / "bin" / "python"
    stamp = folder / "missing.json"
    if not stamp.is_file():
        print(f"installing the peers into {folder} (once, some minutes)", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        failure = _run([sys.executable, "-m", "venv", str(folder)])
        if failure:
            return Peers(python, {}, {_name(line): failure for line in wanted})
        missing = _install(python, folder, wanted, pin, binary=not name)
        if missing:  # not stamped: the next call tries again
            return Peers(python, _versions(python, wanted), missing)
        stamp.write_text("{}", encoding="utf-8")
    return Peers(python, _versions(python, wanted), {})


def _wanted(name: str = "") -> list[str]:
    file = _FOLDER / (f"peers-requirements-{name}.txt" if name else "peers-requirements.txt")
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _install(
    python: pathlib.Path, folder: pathlib.Path, wanted: list[str], pin: str, *, binary: bool
) -> dict[str, str]:
    """Install all at once, else one by one; the reason for each that does not.

    Some torch tools are published as sources only, of Python alone.
    """
    constraints = folder / "constraints.txt"
    constraints.write_text(f"{pin}\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--only-binary=:all:" if binary else "--prefer-binary"]
    pip += ["--constraint", str(constraints)]
    if not _run([*pip, *wanted]):
        return {}
    failures = {_name(line): _run([*pip, line]) for line in wanted}
    return {name: why for name, why in failures.items() if why}


def _run(command: list[str]) -> str:
    """``""`` if it went well, else the last thing it said."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    if done.returncode == 0:
        return ""
    return said[-1] if said else f"exit status {done.returncode}"


def _versions(python: pathlib.Path, wanted: list[str]) -> dict[str, str]:
    if not python.is_file():
        return {}
    listed = subprocess.run([str(python), "-c", _LIST], capture_output=True, text=True, check=False)
    found: dict[str, str] = json.loads(listed.stdout) if listed.returncode == 0 else {}
    names = [_name(line) for line in wanted]
    return {name: found[name] for name in names if name in found}


def _name(requirement: str) -> str:
    return requirement.partition("==")[0].strip().lower()
