"""What a target is: rows of data about somebody else's runtime, each with its source.

Roles of an operator on a target: it *computes* in low precision (a :class:`Kernel` row), it
*carries* low-precision data unchanged (Reshape), it *unifies* (Concat: its inputs share
parameters). What it does not do is float.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any

from qcompiler.schemes import Granularity, QSpec

__all__ = [
    "WEIGHTED", "CacheType", "Carry", "Cost", "Form", "Kernel", "Scheme", "Target", "Trap", "Unify",
]  # fmt: skip

WEIGHTED = ("MatMul", "Conv", "Gemm", "ConvTranspose")  # their second input is the constant one


class Form(str, enum.Enum):
    """How the quantized model is written down."""

    ORT = "ort"  # ONNX Runtime's own operators
    QDQ = "qdq"  # QuantizeLinear / DequantizeLinear around standard operators


class Scheme(str, enum.Enum):
    """When and what a kernel quantizes."""

    STATIC = "static"  # activations by calibrated scales
    DYNAMIC = "dynamic"  # activations by scales of the whole tensor, computed at run time
    TOKEN = "token"  # activations by a scale per row, computed at run time
    WEIGHT = "weight"  # weights only; activations stay float


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Predicted time of one node: ``fixed + per_mac(M) * macs + per_element * elements``.

    ``elements`` counts the larger of the main input and output. ``per_mac`` holds (M, ns) points,
    M being the rows of the activation matrix (batch x sequence) or output pixels; between points
    it is a straight line of log(ns) over log(M), outside held constant.

    Attributes:
        fixed_us: Overhead of a call, microseconds.
        per_mac_ns: Points ``(M, nanoseconds per multiply-accumulate)``, M ascending.
        per_element_ns: Nanoseconds per element.
    """

    fixed_us: float = 0.0
    per_mac_ns: tuple[tuple[float, float], ...] = ()
    per_element_ns: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """One way to compute one operator in low precision.

    Attributes:
        id: Unique, as ``matmul-static``; the key of its cost.
        op: Operator it computes, standard domain unless written ``domain:Op``.
        scheme: When activations are quantized.
        inputs: Spec per input; None is a float (or absent) input. Bias is not listed.
        output: Spec of output 0, or None for float.
        runtime_op: What must be seen in the runtime's optimized graph, ``domain:Op``; "" where the
            runtime shows none.
        forms: Forms in which the row exists.
        conditions: Names of predicates (:mod:`qcompiler.targets.conditions`), all must hold.
        fuses: Operators that may be absorbed behind it (``Relu``, ``Clip``, ``Add``: a bias).
        source: Where the claim comes from: URL, document section, or probe.
        qdq_ops: What may be seen instead of ``runtime_op`` when the model is written as QDQ.
        reference: The runtime has no such kernel: it dequantizes and computes in float, so that
            nothing is gained but the numbers. Only a recipe or rule that forces takes the row.
    """

    id: str
    op: str
    scheme: Scheme
    inputs: tuple[QSpec | None, ...]
    output: QSpec | None
    runtime_op: str
    source: str
    forms: tuple[Form, ...] = (Form.ORT, Form.QDQ)
    conditions: tuple[str, ...] = ()
    fuses: tuple[str, ...] = ()
    qdq_ops: tuple[str, ...] = ()
    reference: bool = False

    def __post_init__(self) -> None:
        if self.op in WEIGHTED and len(self.inputs) < 2:
            raise ValueError(f"inputs: {len(self.inputs)} specs, wanted 2: {self.op} has a weight")
        grains = [spec.granularity for spec in self.inputs if spec is not None]
        if self.scheme is Scheme.WEIGHT and not {Granularity.CHANNEL, Granularity.BLOCK} & {
            *grains
        }:
            raise ValueError("inputs: no weight among them, wanted a spec such as 'u4g32@0'")

    def seen_as(self, form: Form) -> tuple[str, ...]:
        """Operators of which one must be in the runtime's graph; empty: nothing can be proven."""
        ops = (*self.qdq_ops, self.runtime_op) if form is Form.QDQ else (self.runtime_op,)
        return tuple(op for op in ops if op)


@dataclasses.dataclass(frozen=True, slots=True)
class Carry:
    """An operator that moves low-precision data unchanged; in and out share parameters."""

    op: str
    source: str
    conditions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Unify:
    """An operator whose low-precision inputs and output share parameters (Concat)."""

    op: str
    source: str
    conditions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class CacheType:
    """A way in which attention keeps keys and values of earlier tokens other than in float.

    Attributes:
        id: What a recipe's ``kv_cache`` says: ``int8-channel``, ``int8-tensor``.
        op: The operator, ``domain:Op``.
        since: First release of the runtime that has it.
        source: Where the claim comes from.
    """

    id: str
    op: str
    since: str
    source: str


@dataclasses.dataclass(frozen=True, slots=True)
class Trap:
    """A condition under which the runtime miscomputes or falls off a cliff.

    Attributes:
        id: Short name, as ``row-scale-bias``.
        kernels: Ids of the kernels it concerns; a trailing ``*`` matches a prefix.
        condition: Name of the predicate that is true when the trap is armed.
        effect: What happens.
        remedy: What the compiler does instead.
        source: Where it was seen, with the runtime's version.
        blocks: The remedy is not to use the kernel where the trap is armed; else lowering or the
            session options avoid the trap.
        mended: First release of the runtime without it; the remedy does no harm there.
    """

    id: str
    kernels: tuple[str, ...]
    condition: str
    effect: str
    remedy: str
    source: str
    blocks: bool = False
    mended: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Everything the compiler knows about where the model will run.

    Attributes:
        name: Built-in name, as ``cpu-vnni``.
        runtime: ``onnxruntime``, ``tensorrt``, ``openvino``, ``qnn``.
        description: One sentence.
        form: Default form.
        opset: ONNX opset the target's operators want.
        isa: CPU features the host must have for its claims to hold (``avx512_vnni``).
        kernels: Rows; for one op and scheme the first that fits is preferred.
        carries: Rows.
        unifies: Rows.
        fixed: Operators whose output range is known: ``{"Sigmoid": (0, 1)}``. ``Sigmoid/u16`` is
            the range for one type of activations.
        traps: Rows.
        caches: How attention can keep keys and values; float it can anyway.
        weight_bits: Bits really used by 8-bit weights (7: no int16 saturation on AVX2).
        costs: Cost by kernel id, and of float operators as ``float.MatMul``, conversions as
            ``quantize``, ``dequantize``.
        options: Session options (string keys of the runtime) its artifacts need.
        threads: Threads the costs were measured with.
        source: Where the costs come from.
    """

    name: str
    runtime: str
    description: str
    form: Form
    opset: int
    kernels: tuple[Kernel, ...]
    carries: tuple[Carry, ...] = ()
    unifies: tuple[Unify, ...] = ()
    fixed: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    traps: tuple[Trap, ...] = ()
    isa: tuple[str, ...] = ()
    caches: tuple[CacheType, ...] = ()
    weight_bits: int | None = None
    costs: Mapping[str, Cost] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    threads: int = 2
    source: str = ""

    def __post_init__(self) -> None:
        if self.opset < 1:
            raise ValueError(f"opset = {self.opset}, wanted 1 or more")
        if self.threads < 1:
            raise ValueError(f"threads = {self.threads}, wanted 1 or more")
        if self.weight_bits is not None and not 2 <= self.weight_bits <= 8:
            raise ValueError(f"weight_bits = {self.weight_bits}, wanted 2 to 8")
        for op, (lo, hi) in self.fixed.items():
            if not -math.inf < lo < hi < math.inf:
                raise ValueError(f"fixed.{op} = [{lo:g}, {hi:g}], wanted lo < hi")

    def kernel(self, id: str) -> Kernel:
        """The row with this id; ``KeyError`` when there is none."""
        for row in self.kernels:
            if row.id == id:
                return row
        raise KeyError(id)

    def fixed_range(self, op: str, spec: QSpec) -> tuple[float, float] | None:
        """The known range of the operator's output when it is stored as ``spec``, or None."""
        return self.fixed.get(f"{op}/{spec.word}", self.fixed.get(op))

    def weight_spec(self, spec: QSpec) -> QSpec:
        """The spec of an 8-bit integer weight with the target's :attr:`weight_bits` applied."""
        is_byte = spec.dtype.bitwidth == 8 and not spec.is_float8
        if self.weight_bits is None or not is_byte or spec.group_size is not None:
            return spec
        return dataclasses.replace(spec, bits=self.weight_bits)
