"""Independent array work on all processors."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["on_all_cores"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_all_cores(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``function`` of each item, in the items' order.

    Threads are enough: numpy works outside the interpreter lock. What they call should leave other
    cores alone (:func:`~qcompiler.runtime.products.small_product`).

    Raises:
        Whatever ``function`` raises, for the first item in order that fails.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))
