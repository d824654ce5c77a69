"""ONNX Runtime's CPU provider on ARM64: signed activations, symmetric weights.

SDOT and SMMLA multiply s8 by s8, and with symmetric weights MLAS needs no corrections for the
activations' zero point.
"""

from __future__ import annotations

from qcompiler.schemes import QSpec
from qcompiler.targets.costs import cpu_arm64
from qcompiler.targets.onnxruntime_cpu import CACHES, CARRIES, DYNAMIC_KERNELS, FIXED, OPTIONS
from qcompiler.targets.onnxruntime_float8 import FLOAT8_REFERENCES
from qcompiler.targets.onnxruntime_traps import TRAPS
from qcompiler.targets.schema import Form, Kernel, Scheme, Target

__all__ = ["CPU_ARM64"]

S8 = QSpec.parse("s8tz")  # with a zero point: -128 after Relu, which makes the Relu redundant
S8_COLUMNS = QSpec.parse("s8c@1")
S8_FILTERS = QSpec.parse("s8c@0")

CONTRIB = "https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md"
READ = "types probed on onnxruntime 1.31.1 (x86), dispatch read in the source, not run on ARM"

KERNELS = (
    Kernel(
        id="matmul-static",
        op="MatMul",
        scheme=Scheme.STATIC,
        inputs=(S8, S8_COLUMNS),
        output=None,
        runtime_op="com.microsoft:MatMulIntegerToFloat",
        qdq_ops=("com.microsoft:QGemm", "QLinearMatMul"),  # the latter with a Q behind
        conditions=("constant-weight", "weight-rank-2"),
        fuses=("Add",),
        source=f"{CONTRIB}#com.microsoft.MatMulIntegerToFloat; {READ}",
    ),
    Kernel(
        id="matmul-static-u8",
        op="MatMul",
        scheme=Scheme.STATIC,
        inputs=(S8, S8_COLUMNS),
        output=S8,
        runtime_op="QLinearMatMul",
        conditions=("constant-weight", "weight-rank-2", "no-bias-behind"),
        source=f"https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html; {READ}",
    ),
    Kernel(
        id="conv-static",
        op="Conv",
        scheme=Scheme.STATIC,
        inputs=(S8, S8_FILTERS),
        output=S8,
        runtime_op="QLinearConv",
        qdq_ops=("com.microsoft:QLinearConv",),
        conditions=("constant-weight", "conv-rank", "constant-bias"),
        fuses=("Relu", "Clip"),
        source=f"https://onnx.ai/onnx/operators/onnx__QLinearConv.html; {READ}",
    ),
    Kernel(
        id="add-static",
        op="Add",
        scheme=Scheme.STATIC,
        inputs=(S8, S8),
        output=S8,
        runtime_op="com.microsoft:QLinearAdd",
        conditions=("activations-only", "no-normalization-behind"),
        fuses=("Relu",),
        source=f"{CONTRIB}#com.microsoft.QLinearAdd; {READ}",
    ),
    Kernel(
        id="mul-static",
        op="Mul",
        scheme=Scheme.STATIC,
        inputs=(S8, S8),
        output=S8,
        runtime_op="com.microsoft:QLinearMul",
        conditions=("activations-only",),
        source=f"{CONTRIB}#com.microsoft.QLinearMul; {READ}",
    ),
    Kernel(
        id="sigmoid-static",
        op="Sigmoid",
        scheme=Scheme.STATIC,
        inputs=(S8,),
        output=S8,
        runtime_op="com.microsoft:QLinearSigmoid",
        source=f"{CONTRIB}#com.microsoft.QLinearSigmoid; {READ}",
    ),
    Kernel(
        id="leaky-relu-static",
        op="LeakyRelu",
        scheme=Scheme.STATIC,
        inputs=(S8,),
        output=S8,
        runtime_op="com.microsoft:QLinearLeakyRelu",
        source=f"{CONTRIB}#com.microsoft.QLinearLeakyRelu; {READ}",
    ),
    Kernel(
        id="average-pool-static",
        op="AveragePool",
        scheme=Scheme.STATIC,
        inputs=(S8,),
        output=S8,
        runtime_op="com.microsoft:QLinearAveragePool",
        conditions=("activation-rank-4", "no-dilation", "floor-mode"),
        source=f"{CONTRIB}#com.microsoft.QLinearAveragePool; {READ}",
    ),
    Kernel(
        id="global-average-pool-static",
        op="GlobalAveragePool",
        scheme=Scheme.STATIC,
        inputs=(S8,),
        output=S8,
        runtime_op="com.microsoft:QLinearGlobalAveragePool",
        conditions=("activation-rank-4",),
        source=f"{CONTRIB}#com.microsoft.QLinearGlobalAveragePool; {READ}",
    ),
    Kernel(
        id="concat-static",
        op="Concat",
        scheme=Scheme.STATIC,
        inputs=(S8,),  # as many as the node has
        output=S8,
        runtime_op="com.microsoft:QLinearConcat",
        conditions=("activations-only",),
        source=f"{CONTRIB}#com.microsoft.QLinearConcat; {READ}",
    ),
    *DYNAMIC_KERNELS,
    *FLOAT8_REFERENCES,
)

CPU_ARM64 = Target(
    name="cpu-arm64",
    runtime="onnxruntime",
    description="64-bit ARM with dot product instructions on ONNX Runtime",
    form=Form.ORT,
    opset=23,
    kernels=KERNELS,
    carries=CARRIES,
    fixed=FIXED,
    caches=CACHES,
    traps=TRAPS,
    isa=("asimddp",),
    costs=cpu_arm64.COSTS,
    options=OPTIONS,
    source="derived from the AMX machine's float timings and vector widths, not measured",
)
