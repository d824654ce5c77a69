"""Low-bit integers in int32 words, as GPTQ and AWQ checkpoints of the torch world hold them.

GPTQ packs along an axis as one stream of bits, lowest first; at 3 bits an integer may lie across
two words (https://github.com/IST-DASLab/gptq, ``quant.py``). AWQ packs 4 bits along the last axis,
eight neighbours to a word, in an order that suits its kernel
(https://github.com/casper-hansen/AutoAWQ, ``awq/modules/linear/gemm.py``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.numerics.packing import pack_bits, unpack_bits

__all__ = ["WIDTHS", "integers_per_step", "join_awq", "join_words", "split_awq", "split_words"]

WIDTHS = (2, 3, 4, 8)  # bits that GPTQ packs so

Words = npt.NDArray[np.int32]
Codes = npt.NDArray[np.uint8]

# Which of eight neighbouring columns lies in each four bits of a word, lowest first.
_AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])


def integers_per_step(bits: int) -> int:
    """The smallest number of integers that fill whole words: 8 of 4 bits, 32 of 3."""
    return 32 // bits if 32 % bits == 0 else 32


def split_words(words: Words, bits: int) -> Codes:
    """The integers of a stream along the last axis.

    Args:
        words: ``[..., w]``.
        bits: One of :data:`WIDTHS`.

    Returns:
        ``[..., w * 32 / bits]``.
    """
    little = np.ascontiguousarray(words.astype("<i4", copy=False))
    data = little.view(np.uint8).reshape(*words.shape[:-1], -1)
    count = words.shape[-1] * 32 // bits
    if 8 % bits == 0:
        return unpack_bits(data, bits, count)
    single = np.unpackbits(data, axis=-1, bitorder="little")
    fields = single.reshape(*words.shape[:-1], count, bits)
    codes: Codes = np.packbits(fields, axis=-1, bitorder="little")[..., 0]
    return codes


def join_words(codes: npt.NDArray[np.integer[Any]], bits: int) -> Words:
    """What :func:`split_words` takes apart; the last axis must fill whole words."""
    bytewise: Codes = np.ascontiguousarray(codes, np.uint8)
    if 8 % bits == 0:
        data = pack_bits(bytewise, bits)
    else:
        fields = np.unpackbits(bytewise[..., None], axis=-1, count=bits, bitorder="little")
        stream = fields.reshape(*bytewise.shape[:-1], -1)
        data = np.packbits(stream, axis=-1, bitorder="little")
    return np.ascontiguousarray(data).view("<i4").astype(np.int32, copy=False)


def split_awq(words: Words) -> Codes:
    """The 4-bit integers of AWQ words: ``[..., n / 8]`` to ``[..., n]``."""
    places = split_words(words, 4).reshape(*words.shape, 8)
    columns: Codes = places[..., np.argsort(_AWQ_ORDER)]
    return columns.reshape(*words.shape[:-1], -1)


def join_awq(codes: npt.NDArray[np.integer[Any]]) -> Words:
    """What :func:`split_awq` takes apart; the last axis is a multiple of 8."""
    columns = np.asarray(codes).reshape(*codes.shape[:-1], -1, 8)
    return join_words(columns[..., _AWQ_ORDER].reshape(codes.shape), 4)
