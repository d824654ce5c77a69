"""How one tensor is quantized: :class:`QSpec`, and its one-word text form."""

from __future__ import annotations

import dataclasses
import enum
import re

import onnx_ir as ir

__all__ = ["Granularity", "QSpec"]


class Granularity(enum.Enum):
    """How many elements share one scale."""

    TENSOR = "t"
    CHANNEL = "c"  # one scale per index of ``axis``
    TOKEN = "k"  # one scale per row of the last axis, computed at run time
    BLOCK = "g"  # one scale per ``group_size`` consecutive elements along ``axis``


_NAMES = {
    "s8": ir.DataType.INT8,
    "u8": ir.DataType.UINT8,
    "s4": ir.DataType.INT4,
    "u4": ir.DataType.UINT4,
    "s2": ir.DataType.INT2,
    "u2": ir.DataType.UINT2,
    "s16": ir.DataType.INT16,
    "u16": ir.DataType.UINT16,
    "s32": ir.DataType.INT32,
    "e4m3": ir.DataType.FLOAT8E4M3FN,
    "e5m2": ir.DataType.FLOAT8E5M2,
}
_WORDS = {dtype: word for word, dtype in _NAMES.items()}
# formats whose codes stand for the entries of a table (qcompiler.numerics.codebooks): the type that
# holds a code, its bits, and the largest entry
_CODEBOOKS = {
    "nf4": (ir.DataType.UINT4, 4, 1),
    "fp4": (ir.DataType.UINT4, 4, 6),
    "fp4bnb": (ir.DataType.UINT4, 4, 12),
    "b1": (ir.DataType.UINT2, 1, 1),
}
# largest value of the 8-bit floats (arXiv 2209.05433, table 1)
_LARGEST = {ir.DataType.FLOAT8E4M3FN: 448, ir.DataType.FLOAT8E5M2: 57344}
_GRAMMAR = re.compile(
    r"(?P<dtype>s8|u8|s4|u4|s2|u2|s16|u16|s32|e4m3|e5m2|nf4|fp4bnb|fp4|b1)"
    r"(?:r(?P<bits>\d))?"
    r"(?P<granularity>[tkc]|g(?P<group>\d+))(?P<axis>@-?\d+)?(?P<zero>[zf]?)(?P<dynamic>d?)"
)


@dataclasses.dataclass(frozen=True, slots=True)
class QSpec:
    """How one tensor is quantized; nothing about its ranges.

    The text form is ``<dtype>[r<bits>]<t|c|k|g<size>>[@axis][z|f][d][/<spec of the scales>]``:
    ``u8tz`` is an unsigned static per-tensor activation with a zero point, ``s8c@1`` a symmetric
    weight with one scale per column, ``u8kd`` a per-token dynamic activation, ``u4g32@0z`` 4-bit
    blocks along the rows, ``u4r3g64@0`` 3 bits that sit in 4, ``e4m3t`` an 8-bit float with one
    scale, ``u4g64@0f`` blocks with float zero points, ``nf4g64@0/u8g256@0z`` a codebook with scales
    in 8 bits. Floats and codebooks are symmetric, and use all of their bits.

    Attributes:
        dtype: The stored element type.
        granularity: How many elements share a scale.
        axis: The axis of CHANNEL and BLOCK; None otherwise.
        group_size: Elements per scale of BLOCK; None otherwise.
        symmetric: No zero point to choose: it is 0 for signed types and mid-range for unsigned.
        dynamic: The scale is computed when the model runs.
        bits: Bits really used, when fewer than the type's (7 avoids int16 saturation on AVX2).
        codebook: Elements are codes of this table instead of numbers: ``nf4``, ``fp4`` (e2m1),
            ``fp4bnb`` (that of bitsandbytes), ``b1`` (-1 and 1); "" for numbers.
        float_zero: Zero points are floats instead of integers of the type.
        scales: How the scales are quantized again, as one vector; None leaves them float32.
    """

    dtype: ir.DataType
    granularity: Granularity = Granularity.TENSOR
    axis: int | None = None
    group_size: int | None = None
    symmetric: bool = True
    dynamic: bool = False
    bits: int | None = None
    codebook: str = ""
    float_zero: bool = False
    scales: QSpec | None = None

    def __post_init__(self) -> None:
        needs_axis = self.granularity in (Granularity.CHANNEL, Granularity.BLOCK)
        if needs_axis != (self.axis is not None):
            raise ValueError(f"granularity {self.granularity.name} and axis {self.axis} disagree")
        if (self.granularity is Granularity.BLOCK) != (self.group_size is not None):
            raise ValueError(f"granularity {self.granularity.name} and group_size disagree")
        if self.codebook:
            wanted = _CODEBOOKS[self.codebook]
            if (self.dtype, self.width) != wanted[:2] or not self.symmetric:
                raise ValueError(f"{self.codebook} has codes of {wanted[1]} bits, no zero point")
        elif self.symmetric and not self.is_signed and self.width == 1:
            raise ValueError("one bit is symmetric as the codebook 'b1' only")
        if self.float_zero and (self.symmetric or self.is_signed):
            raise ValueError("float zero points are those of asymmetric unsigned integers")
        if self.is_float8 and (self.bits is not None or not self.symmetric):
            raise ValueError(f"a spec of {self.word} has neither a zero point nor fewer bits")

    @property
    def word(self) -> str:
        """The element type as the text form has it: ``u8``, ``e4m3``, ``nf4``."""
        return self.codebook or _WORDS[self.dtype]

    @property
    def width(self) -> int:
        """Bits that an element takes of what it is stored in."""
        return self.bits or int(self.dtype.bitwidth)

    @property
    def is_signed(self) -> bool:
        """Whether the type has negative numbers: signed integers and floats."""
        return not _WORDS[self.dtype].startswith("u")

    @property
    def is_float8(self) -> bool:
        """Whether the type is an 8-bit float."""
        return _WORDS[self.dtype].startswith("e")

    @property
    def middle(self) -> int:
        """The zero point of a symmetric spec: mid-range for unsigned integers, else 0."""
        return 0 if self.is_signed or self.codebook else 1 << (self.width - 1)

    @property
    def qmin(self) -> int:
        """Smallest number used. Signed symmetric integers leave out the lowest value."""
        if self.codebook:
            return -_CODEBOOKS[self.codebook][2]
        if self.is_float8:
            return -_LARGEST[self.dtype]
        if not self.is_signed:
            return 0
        return -(1 << (self.width - 1)) + int(self.symmetric)

    @property
    def qmax(self) -> int:
        """Largest number used."""
        if self.codebook:
            return _CODEBOOKS[self.codebook][2]
        if self.is_float8:
            return _LARGEST[self.dtype]
        return (1 << (self.width - self.is_signed)) - 1

    def __str__(self) -> str:
        group = str(self.group_size) if self.group_size is not None else ""
        return (
            self.word
            + (f"r{self.bits}" if self.bits and not self.codebook else "")
            + self.granularity.value
            + group
            + (f"@{self.axis}" if self.axis is not None else "")
            + ("" if self.symmetric else "f" if self.float_zero else "z")
            + ("d" if self.dynamic else "")
            + (f"/{self.scales}" if self.scales is not None else "")
        )

    @classmethod
    def parse(cls, text: str) -> QSpec:
        """Read the text form; ``ValueError`` when it is not one."""
        own, _, scales = text.partition("/")
        found = _GRAMMAR.fullmatch(own)
        if found is None:
            raise ValueError(f"{text!r} is not a spec such as 'u8tz', 's8c@1' or 'u4g32@0z'")
        axis, bits = found["axis"], found["bits"]
        dtype, width, _ = _CODEBOOKS.get(found["dtype"], (None, 0, 0))
        if dtype is not None and width < dtype.bitwidth:
            bits = str(width)
        return cls(
            dtype=dtype or _NAMES[found["dtype"]],
            granularity=Granularity(found["granularity"][0]),
            axis=int(axis[1:]) if axis else None,
            group_size=int(found["group"]) if found["group"] else None,
            symmetric=not found["zero"],
            float_zero=found["zero"] == "f",
            dynamic=bool(found["dynamic"]),
            bits=int(bits) if bits else None,
            codebook=found["dtype"] if dtype is not None else "",
            scales=cls.parse(scales) if scales else None,
        )
