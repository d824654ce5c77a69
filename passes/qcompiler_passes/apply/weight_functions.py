"""ONNX functions that make weights of what a file holds of them: planes of bits, codes, groups.

A runtime without a kernel for a format still computes with it: it inlines the functions, and one
that folds constants (ONNX Runtime from level "basic" on) runs them once, when it loads the model.
Unpacking is explained in :mod:`qcompiler.numerics.nbits`.
"""

from __future__ import annotations

import re

import onnx
import onnx_ir as ir

from qcompiler.ir.edit import import_domain
from qcompiler.ir.walk import all_nodes
from qcompiler.numerics.nbits import plane_mask, planes_of

__all__ = [
    "COLUMN_STEPS",
    "DOMAIN",
    "LOOK_UP",
    "SCALE_ROWS",
    "SHIFT_ROWS",
    "define_functions",
    "unpack_name",
]

DOMAIN = "qcompiler"

# entry of each code, times the scale of its group of rows
LOOK_UP = "LookUpRows"
# (code - zero point) * scale, both of its group of rows
SCALE_ROWS = "ScaleRows"

# the same with float zero points
SHIFT_ROWS = "ShiftRows"

# steps of the columns of a weight in int8, [N], and its scales in these steps, [blocks, N] float16,
# from scales [N, blocks] and zero points [blocks, N]
COLUMN_STEPS = "ColumnSteps"

_GROUPS = """
    numbers = Cast <to = 6> (codes)
    shape = Shape <start = 0, end = 1> (numbers)
    rows = Squeeze (shape)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    range = Range (zero, rows, one)
    group = Div (range, size)
    steps = Gather <axis = 0> (scale, group)
"""

_BODIES = {
    LOOK_UP: f"""(codes, table, scale, size) => (y) {{{_GROUPS}
    entries = Gather (table, numbers)
    y = Mul (entries, steps)
}}""",
    SHIFT_ROWS: f"""(codes, zero_point, scale, size) => (y) {{{_GROUPS}
    from = Gather <axis = 0> (zero_point, group)
    floats = Cast <to = 1> (numbers)
    distance = Sub (floats, from)
    y = Mul (distance, steps)
}}""",
    SCALE_ROWS: f"""(codes, zero_point, scale, size) => (y) {{{_GROUPS}
    zeros = Cast <to = 6> (zero_point)
    from = Gather <axis = 0> (zeros, group)
    distance = Sub (numbers, from)
    floats = Cast <to = 1> (distance)
    y = Mul (floats, steps)
}}""",
    COLUMN_STEPS: """(scale, zero_point, last) => (steps, ratio) {
    zero = Cast <to = 1> (zero_point)
    above = Sub (last, zero)
    reach = Max (zero, above)
    by_block = Transpose <perm = [1, 0]> (scale)
    numbers = Mul (reach, by_block)
    magnitudes = Abs (numbers)
    blocks = Constant <value_ints = [0]> ()
    largest = ReduceMax <keepdims = 0> (magnitudes, blocks)
    most = Constant <value_float = 127.0> ()
    even = Div (largest, most)
    tiny = Constant <value_float = 1e-30> ()
    steps = Max (even, tiny)
    relative = Div (by_block, steps)
    ratio = Cast <to = 10> (relative)
}""",
}


def unpack_name(planes: tuple[int, ...], bits: int, first: int = 0) -> str:
    """Name of the function that joins planes into bytes of ``bits``-bit elements.

    Args:
        planes: Bits of each plane, lowest first.
        bits: Of an element of the result.
        first: Where the lowest bit of a code goes; the bits below become 1.
    """
    return f"Unpack{sum(planes)}To{bits}" + (f"From{first}" if first else "")


def define_functions(model: ir.Model) -> None:
    """Add the functions that the model calls, and import their domain."""
    used = sorted({node.op_type for node in all_nodes(model) if node.domain == DOMAIN})
    if not used:
        return
    import_domain(model, DOMAIN)
    opset = model.graph.opset_imports[""]
    for name in used:
        text = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]> {name} {_body(name)}'
        function = ir.from_proto(onnx.parser.parse_function(text))
        model.functions.setdefault(function.identifier(), function)


def _body(name: str) -> str:
    unpack = re.fullmatch(r"Unpack(\d)To(\d)(?:From(\d))?", name)
    if unpack is None:
        return _BODIES[name]
    width, bits, first = (int(part or 0) for part in unpack.groups())
    planes = planes_of(width)
    inputs = ", ".join(f"plane{plane}" for plane in planes)
    lines = [f"({inputs}, shape) => (y) {{", "last = Constant <value_ints = [-1]> ()"]
    offset, parts = first, []
    for plane in planes:
        shifts = [start * plane for start in range(bits // plane)]
        lines += [
            f"shifts{plane} = Constant <value = uint8[{len(shifts)}] {_braces(shifts)}> ()",
            f"mask{plane} = Constant <value = uint8 {{{plane_mask(bits, plane)}}}> ()",
            f"place{plane} = Constant <value = uint8 {{{offset}}}> ()",
            f"columns{plane} = Unsqueeze (plane{plane}, last)",
            f'shifted{plane} = BitShift <direction = "RIGHT"> (columns{plane}, shifts{plane})',
            f"masked{plane} = BitwiseAnd (shifted{plane}, mask{plane})",
            f'placed{plane} = BitShift <direction = "LEFT"> (masked{plane}, place{plane})',
            f"part{plane} = Reshape (placed{plane}, shape)",
        ]
        parts.append(f"part{plane}")
        offset += plane
    if first:
        low = plane_mask(bits, first)
        lines.append(f"below = Constant <value = uint8 {{{low}}}> ()")
        parts.append("below")
    whole = parts[0]
    for index, part in enumerate(parts[1:]):
        lines.append(f"joined{index} = BitwiseOr ({whole}, {part})")
        whole = f"joined{index}"
    return "\n".join([*lines, f"y = Identity ({whole})", "}"])


def _braces(numbers: list[int]) -> str:
    return "{" + ", ".join(map(str, numbers)) + "}"
