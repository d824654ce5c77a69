"""Start a walk of the float model and its quantized twin from the state of a compile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.pipeline.contract import State
from qcompiler.schemes import QSpec
from qcompiler_passes.planned import stored_parameters, value_spec

if TYPE_CHECKING:
    from qcompiler.algorithms.side_by_side import SideBySide

__all__ = ["static_activations", "unwalked", "walk_of"]

_SAMPLES = 64  # of the calibration data; their values are held in memory layer by layer

Stored = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], QSpec]


def walk_of(graph: ir.Graph, state: State, key: str, what: str) -> tuple[SideBySide, int]:
    """A walk on some of the calibration data, and how many samples it has.

    Args:
        graph: The float graph.
        state: With plan, weights, and ranges of static activations.
        key: The recipe's key that asks for it, for messages.
        what: Its value, for messages.

    Raises:
        QcError: QC410 there is no data; QC411 torch is not installed, or the data can be read only
            once.
    """
    try:
        from qcompiler.algorithms.side_by_side import SideBySide, first_samples, samples_of
    except ImportError as error:
        raise QcError(
            Code.USAGE, key, f"{what} needs torch, which is not installed", "pip install torch"
        ) from error
    if state.feeds is None:
        raise QcError(
            Code.NEEDS_CALIBRATION,
            key,
            f"{what} found no data, wanted calibration data",
            "give calibration data, or leave the key out",
        )
    if not state.feeds.reiterable:
        raise QcError(
            Code.USAGE,
            key,
            f"{what} found data that can be read once, wanted data that can be read again",
            "give a list of feeds, or a function that starts a generator",
        )
    feeds = first_samples(state.feeds, _SAMPLES)
    assert state.weights is not None
    walk = SideBySide(graph, feeds, state.weights, static_activations(state))
    return walk, samples_of(feeds)


def unwalked(walk: SideBySide, layers: Iterable[ir.Node], code: Code) -> Iterator[Diagnostic]:
    """Tell of the layers that a walk does not come to."""
    for node in layers:
        if node in walk.left:
            why = walk.left[node].diagnostic
            yield Diagnostic(code, node.name or "", f"stands behind {why.where}: {why.message}")


def static_activations(state: State) -> dict[str, Stored]:
    """Scale, zero point and spec of every value that is stored by a calibrated constant."""
    assert state.plan is not None
    found: dict[str, Stored] = {}
    for name in state.plan.values:
        spec = value_spec(state.plan, name)
        if not spec.dynamic:
            found[name] = (*stored_parameters(state, name), spec)
    return found
