"""Whatever a user gives as data becomes feeds, text by the tokenizer that lies beside the model."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from qcompiler.calibration.feeds import FeedSource, open_feeds
from qcompiler.calibration.text import TextModel, open_text
from qcompiler.calibration.text_source import is_text, look_at
from qcompiler.diagnostics import Diagnostic
from qcompiler.frontends.tokenizer import find_tokenizer, longest_text
from qcompiler.recipe import TextOptions
from qcompiler.runtime.inputs import input_specs

__all__ = ["open_data"]


def open_data(
    data: Any, model: ir.Model, source: Any, text: TextOptions, most: int | None = None
) -> tuple[FeedSource, tuple[Diagnostic, ...]]:
    """Checked feeds for ``model``.

    Args:
        data: Anything that :func:`qcompiler.qcompile` takes as ``calibration``, but None.
        model: Who will read them.
        source: The model as the user gave it, or its path: a tokenizer may lie there.
        text: How text is cut into samples.
        most: Samples at most, of what is no text.

    Returns:
        The feeds, and what is to be said of them (QC209, QC215).

    Raises:
        QcError: The data cannot be read (QC208, QC212), or do not fit the model (QC20x, QC411).
    """
    specs = input_specs(model)
    data, seen = look_at(data)
    if is_text(seen, specs):
        reader = TextModel(specs, find_tokenizer(source), longest_text(source))
        return open_text(data, reader, text)
    return open_feeds(data, specs, most), ()
