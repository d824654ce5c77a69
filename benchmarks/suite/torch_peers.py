"""Quantizers of the torch world: they write a folder, and what it holds is compiled as it is."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from suite.jobs import JobError, run_job
from suite.peers import open_peers

__all__ = ["TORCH_PEERS", "run_torch_peer"]

TORCH_PEERS = ("auto-round", "gptqmodel", "hqq")


def run_torch_peer(
    name: str,
    model: pathlib.Path,
    data: pathlib.Path,
    out: pathlib.Path,
    seconds: float,
    learning: Mapping[str, int],
) -> tuple[dict[str, Any], pathlib.Path]:
    """What the tool measured, and an artifact with the integers that it chose.

    A checkpoint becomes the products of few bits that ours are, with nothing rounded again. What
    has no checkpoint leaves its weights as floats, and says itself what it stores.

    Args:
        name: ``tool:bits:group:sym|asym|float``.
        model: A transformers folder.
        data: Folder of feeds with ``input_ids``.
        out: Where the tool writes, and the artifact.
        seconds: After this a process is ended.
        learning: ``iters`` and ``batch_size`` of a tool that learns.

    Raises:
        JobError: If the tool is not there, or fails.
    """
    tool, bits, group, kind = name.split(":")
    peers = open_peers(tool)
    if why := peers.why_not((tool,)):
        raise JobError(why)
    made = out / name.replace(":", "-")
    job = {"bits": int(bits), "group_size": int(group), "symmetric": kind == "sym", **learning}
    done = run_job(peers.python, f"quantize_{tool.replace('-', '_')}.py", {
        **job, "model": str(model), "output": str(made), "calibration": str(data),
    }, seconds)  # fmt: skip
    recipe = {
        "base": "float" if tool == "hqq" else "weight-int4",
        "embeddings": False,
        "rules": [{"match": "lm_head", "scheme": "float"}],
        "verify": {"enabled": False},
    }
    compiled = made.with_name(f"{made.name}-onnx")
    run_job(pathlib.Path(sys.executable), "compile_ours.py", {
        "model": str(made), "output": str(compiled), "recipe": recipe, "form": None,
        "calibration": None,
    }, seconds)  # fmt: skip
    return {**done, "versions": peers.versions}, compiled
