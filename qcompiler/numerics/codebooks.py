"""Formats whose codes stand for the entries of a table.

- ``nf4``: quantiles of the normal distribution (Dettmers et al. 2023, QLoRA, arXiv 2305.14314,
  appendix E);
- ``fp4``: E2M1 of the OCP Microscaling formats (version 1.0, table 5);
- ``fp4bnb``: the 4-bit float of bitsandbytes, in its order of codes
  (https://github.com/bitsandbytes-foundation/bitsandbytes, functional.py), times 12;
- ``b1``: signs.

An element is the entry of its code times the scale of its group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CODEBOOKS", "nearest_entry", "to_codes"]

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BITSANDBYTES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
_NORMAL_FLOAT = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def _signed(entries: tuple[float, ...]) -> Floats:
    return np.asarray((*entries, *(-entry for entry in entries)), np.float32)


CODEBOOKS: dict[str, Floats] = {
    "nf4": np.asarray(_NORMAL_FLOAT, np.float32),
    "fp4": _signed(_E2M1),
    "fp4bnb": _signed(_BITSANDBYTES),
    "b1": np.asarray((-1.0, 1.0), np.float32),
}


def _sorted(name: str) -> tuple[Floats, Codes, Floats]:
    """Distinct entries ascending, the code of each, and the midpoints between them."""
    entries, codes = np.unique(CODEBOOKS[name], return_index=True)
    return entries, codes.astype(np.uint8), (entries[1:] + entries[:-1]) / np.float32(2.0)


_SORTED = {name: _sorted(name) for name in CODEBOOKS}


def to_codes(x: npt.NDArray[np.floating[Any]], codebook: str) -> Codes:
    """The code of the entry nearest to each element, shape of ``x``; beyond the ends the ends."""
    _, codes, midpoints = _SORTED[codebook]
    return codes[np.searchsorted(midpoints, x)]


def nearest_entry(x: npt.NDArray[np.floating[Any]], codebook: str) -> Floats:
    """The entry nearest to each element, float32, shape of ``x``."""
    entries, _, midpoints = _SORTED[codebook]
    return entries[np.searchsorted(midpoints, x)]
