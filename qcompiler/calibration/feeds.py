"""Calibration data as a stream of checked feeds, whatever form the user has it in.

One feed is in memory at a time. A source that can be read again (a list, a loader, a callable, a
path) is; a generator is read once, its first feed kept and replayed.
"""

from __future__ import annotations

import collections.abc
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.files import open_file
from qcompiler.diagnostics import Code, QcError
from qcompiler.pipeline.contract import Feed

if TYPE_CHECKING:
    from qcompiler.runtime.inputs import InputSpec

__all__ = ["FeedSource", "guarded", "named_arrays", "open_feeds"]

_SOURCE = "calibration"
_FORMS = (
    "give an iterable of feeds (dict name -> array, tuple in input order, or one array), a "
    "callable returning one, a torch DataLoader, or a path to .npz, .npy or a folder of them"
)


class FeedSource:
    """An iterable of checked feeds; each iteration is a pass over the data.

    Attributes:
        reiterable: Whether it can be iterated more than once.
        count_hint: How many feeds a pass gives, or None when the source cannot tell.
        of_text: Whether the feeds were made of text or tokens.
        digest: SHA-256 of names, types, shapes and numbers of all feeds, known once a pass has
            come to its end.
    """

    digest: str | None = None

    def __init__(
        self,
        start: Callable[[], Iterator[Any]],
        specs: Sequence[InputSpec],
        *,
        reiterable: bool,
        count_hint: int | None = None,
        max_samples: int | None = None,
        of_text: bool = False,
    ) -> None:
        """A source whose passes are ``start()``; users call :func:`open_feeds`.

        Args:
            start: Begins a pass over raw items.
            specs: The model's inputs.
            reiterable: Whether ``start`` may be called again.
            count_hint: Items in a pass, when known.
            max_samples: End a pass after this many feeds.
            of_text: Whether the items were made of text.
        """
        self.of_text = of_text
        self.reiterable = reiterable
        self.count_hint = count_hint
        if max_samples is not None and count_hint is not None:
            self.count_hint = min(count_hint, max_samples)
        self._start = start
        self._specs = tuple(specs)
        self._limit = max_samples
        self._running: Iterator[Any] | None = None  # of a source that can be read once
        self._first: Feed | None = None
        self._consumed = False

    @property
    def first(self) -> Feed:
        """The first feed, checked. A generator is advanced by one; iteration replays it.

        Raises:
            QcError: QC201 when there is none, QC202 to QC205 when it does not suit the model.
        """
        if self._first is None:
            items = self._begin()
            if not self.reiterable:
                self._running = items
            item = next(items, None)
            if item is None:
                raise self._empty()
            self._first = self._checked(item, 0)
        return self._first

    def __iter__(self) -> Iterator[Feed]:
        """Checked feeds of one pass.

        Raises:
            QcError: QC201 no feed at all; QC202 to QC205 a feed that does not suit the model;
                QC208 a second pass over a source that can be read once.
        """
        if self.reiterable:
            return self._pass(self._begin())
        if self._consumed:
            raise QcError(
                Code.CALIBRATION_SOURCE,
                _SOURCE,
                "the source is a generator and was read already",
                "give a list, or a callable that returns a fresh generator",
            )
        self._consumed = True
        if self._first is None:
            return self._pass(self._begin())
        assert self._running is not None, "the first feed came from a running pass"
        return self._pass(self._running, self._first)

    def split(self, every: int) -> tuple[FeedSource, FeedSource] | None:
        """All but each ``every``-th feed, and these; None when there are less than two feeds.

        With fewer than ``every`` feeds the last one is the second part.

        Raises:
            QcError: See :meth:`__iter__`.
        """
        assert self.reiterable, "both parts read the same source"
        first = sum(1 for _ in itertools.islice(self, every))
        if first < 2:
            return None

        def part(held_out: bool) -> FeedSource:
            def start() -> Iterator[Feed]:
                for index, feed in enumerate(self):
                    if (index % first == first - 1) is held_out:
                        yield feed

            count = self.count_hint
            of = None if count is None else count // first
            if of is not None and count is not None and not held_out:
                of = count - of
            return FeedSource(start, self._specs, reiterable=True, count_hint=of)

        return part(held_out=False), part(held_out=True)

    def _begin(self) -> Iterator[Any]:
        try:
            return guarded(iter(self._start()))
        except QcError:
            raise
        except TypeError as error:
            raise QcError(
                Code.CALIBRATION_SOURCE, _SOURCE, f"cannot be iterated: {error}", _FORMS
            ) from error
        except Exception as error:
            raise _source_failed(error, 0) from error

    def _pass(self, items: Iterator[Any], first: Feed | None = None) -> Iterator[Feed]:
        """Checked feeds, ``first`` being one that was taken from ``items`` before."""
        digest = None if self.digest else hashlib.sha256()
        found = False
        for feed in self._all_checked(items, first):
            found = True
            if digest is not None:
                _add_feed(digest, feed)
            yield feed
        if not found:
            raise self._empty()
        if digest is not None:
            self.digest = digest.hexdigest()

    def _all_checked(self, items: Iterator[Any], first: Feed | None) -> Iterator[Feed]:
        if first is not None:
            yield first
        taken = int(first is not None)
        more = None if self._limit is None else self._limit - taken
        for index, item in enumerate(itertools.islice(items, more), taken):
            yield self._checked(item, index)

    def _checked(self, item: Any, index: int) -> Feed:
        from qcompiler.runtime.inputs import check_feed

        try:
            feed = check_feed(named_arrays(item, self._specs), self._specs)
        except QcError as error:
            found = error.diagnostic
            raise QcError(
                found.code,
                f"{_SOURCE}[{index}].{found.where}",
                found.message,
                found.hint,
                **{**found.values, "index": index},
            ) from error
        _check_finite(feed, index)
        return feed

    def _empty(self) -> QcError:
        return QcError(
            Code.EMPTY_CALIBRATION, _SOURCE, "found no feed, wanted at least one", _FORMS
        )


def open_feeds(
    calibration: Any, specs: Sequence[InputSpec], max_samples: int | None = None
) -> FeedSource:
    """The feeds that ``calibration`` means.

    Args:
        calibration: An iterable of feeds; a callable that returns one (called anew for each
            pass); a torch ``DataLoader``; one ``dict`` of arrays, transformers ``BatchEncoding``,
            array or tensor, which is a single feed; a path to ``.npz``, ``.npy`` or a folder of
            them; a :class:`FeedSource`. A feed is a mapping from input names to arrays or
            tensors, a sequence in input order, or one array for a model of one input. A
            ``(x, label)`` pair of a loader may have items behind the inputs, which are dropped.
        specs: The model's inputs, in order.
        max_samples: Take at most this many feeds.

    Raises:
        QcError: QC208, the source is of no known kind or cannot be read; QC201, an empty list.
    """
    if isinstance(calibration, FeedSource):
        return calibration

    def source(start: Callable[[], Iterator[Any]], again: bool, count: int | None) -> FeedSource:
        return FeedSource(start, specs, reiterable=again, count_hint=count, max_samples=max_samples)

    if isinstance(calibration, str | os.PathLike):
        start, count = open_file(pathlib.Path(calibration), specs)
        return source(start, True, count)
    if isinstance(calibration, Mapping | np.ndarray) or hasattr(calibration, "detach"):
        return source(lambda: iter((calibration,)), True, 1)
    if callable(calibration) and not isinstance(calibration, collections.abc.Iterable):
        return source(lambda: iter(calibration()), True, None)
    if isinstance(calibration, collections.abc.Iterator):
        return source(lambda: calibration, False, None)
    if isinstance(calibration, collections.abc.Iterable) or hasattr(calibration, "__getitem__"):
        count = _length(calibration)
        if count == 0:
            raise QcError(Code.EMPTY_CALIBRATION, _SOURCE, "the source has no feed", _FORMS)
        return source(lambda: iter(calibration), True, count)
    raise QcError(
        Code.CALIBRATION_SOURCE,
        _SOURCE,
        f"found a {type(calibration).__name__}, which is no source of feeds",
        _FORMS,
    )


def guarded(items: Iterator[Any]) -> Iterator[Any]:
    """The items; what the user's code raises on the way comes out with its place (QC208)."""
    for index in itertools.count():
        try:
            item = next(items)
        except StopIteration:
            return
        except QcError:
            raise
        except Exception as error:
            raise _source_failed(error, index) from error
        yield item


def _source_failed(error: Exception, index: int) -> QcError:
    return QcError(
        Code.CALIBRATION_SOURCE,
        f"{_SOURCE}[{index}]",
        f"the source raised {type(error).__name__}: {error}",
        "iterate over it without the compiler to see where",
        index=index,
    )


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except (TypeError, NotImplementedError):  # a loader over an iterable dataset has no length
        return None


def named_arrays(item: Any, specs: Sequence[InputSpec]) -> dict[str, npt.NDArray[Any]]:
    """One raw item as arrays by input name; names, shapes and types are not checked here.

    Args:
        item: A mapping, a tuple in the order of the inputs, or the array of a single input.
        specs: The model's inputs.

    Raises:
        QcError: QC202, there are fewer arrays than inputs.
    """
    if isinstance(item, Mapping):  # BatchEncoding is a UserDict
        return {str(name): _array(value, str(name)) for name, value in item.items()}
    if _is_positional(item):
        return _by_position(item, specs)
    if len(specs) != 1:
        raise QcError(
            Code.FEED_NAME,
            "feed",
            f"one array for a model of {len(specs)} inputs",
            "give a dict with the names " + ", ".join(spec.name for spec in specs),
        )
    return {specs[0].name: _array(item, specs[0].name)}


def _is_positional(item: Any) -> bool:
    """A tuple, or the list that a torch loader makes of one; plain nested lists are an array."""
    if isinstance(item, list):
        return bool(item) and (isinstance(item[0], Mapping) or hasattr(item[0], "shape"))
    return isinstance(item, tuple)


def _by_position(items: Sequence[Any], specs: Sequence[InputSpec]) -> dict[str, npt.NDArray[Any]]:
    if items and isinstance(items[0], Mapping):  # (inputs, label) of a loader of dicts
        return named_arrays(items[0], specs)
    if len(items) < len(specs):
        raise QcError(
            Code.FEED_NAME,
            "feed",
            f"{len(items)} items for {len(specs)} inputs",
            "give the inputs in this order: " + ", ".join(map(str, specs)),
        )
    # what stands behind the inputs are labels, which a training loader gives and we do not need
    return {spec.name: _array(item, spec.name) for spec, item in zip(specs, items, strict=False)}


def _array(value: Any, name: str) -> npt.NDArray[Any]:
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # numpy has no such type; float32 holds it
            value = value.float()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise QcError(
            Code.FEED_SHAPE, name, f"is not an array: {error}", "give one rectangular array"
        ) from error
    if array.dtype == np.float64:
        return array.astype(np.float32)  # what Python floats become; nothing else is narrowed
    if array.dtype == object and not all(isinstance(item, str) for item in array.flat):
        raise QcError(
            Code.FEED_DTYPE,
            name,
            f"found objects ({type(value).__name__}), wanted numbers",
            "give one rectangular array",
        )
    return array


def _add_feed(digest: hashlib._Hash, feed: Feed) -> None:
    for name, array in sorted(feed.items()):
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        numbers = array if array.dtype != object else np.asarray(array, np.str_)
        # as bytes: bfloat16 and its like lend no buffer
        digest.update(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data)


def _check_finite(feed: Feed, index: int) -> None:
    for name, array in feed.items():
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        place = np.argwhere(~np.isfinite(array))[0]
        raise QcError(
            Code.NOT_FINITE,
            f"{_SOURCE}[{index}].{name}",
            f"feed {index} holds {array[tuple(place)]} at {place.tolist()}",
            "leave the sample out, or mend its preprocessing",
            index=index,
            input=name,
        )
