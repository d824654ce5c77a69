"""A generated feed for a model that does not state all its sizes: what runs is found by trying."""

from __future__ import annotations

import itertools

import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.inputs import FreeSizes, generate_feed
from qcompiler.runtime.settings import SessionSettings

__all__ = ["runnable_feed"]

# The usual sizes first. Models of speech take windows of some hundred samples, and a batch may be
# one without saying so.
_SIZES = tuple(
    FreeSizes(batch, sequence, leads)
    for sequence, leads, batch in itertools.product((32, 256, 512), (False, True), (2, 1))
)
_PLAIN = SessionSettings("disable", {"session.disable_prepacking": "1"})  # it runs once


def runnable_feed(model: ir.Model, seed: int = 0) -> Feed:
    """The first generated feed on which the model runs; where all sizes are stated, the only one.

    Args:
        model: The model. Large weights are zeros while it is tried, which takes no memory.
        seed: Seed of the random numbers.

    Raises:
        QcError: QC607, it runs on no feed that was tried.
    """
    by_shapes: dict[tuple[tuple[int, ...], ...], Feed] = {}
    for sizes in _SIZES:
        feed = generate_feed(model, seed, sizes=sizes)
        by_shapes.setdefault(tuple(array.shape for array in feed.values()), feed)
    usual, *others = by_shapes.values()
    if not others:
        return usual
    failures = []
    for feed in (usual, *others):
        try:
            _run(model, feed)
        except QcError as error:
            failures.append(error)
        else:
            return feed
    found = failures[0].diagnostic
    if len({str(error) for error in failures}) == 1:  # it is not for the sizes
        raise failures[0]
    raise QcError(
        found.code,
        found.where,
        found.message,
        f"the feed is a generated one, and {len(others)} of other sizes fail, too: give calibration"
        " data, which show the real sizes",
        **found.values,
    ) from failures[0]


def _run(model: ir.Model, feed: Feed) -> None:
    from qcompiler.runtime.observe import weightless
    from qcompiler.runtime.session import open_session, run

    light, fed = weightless(model, feed)
    run(open_session(light, settings=_PLAIN, code=Code.FLOAT_MODEL_FAILS), fed)
