"""ONNX Runtime's CPU provider on x86: unsigned activations, signed weights.

Only u8 x s8 has a fast integer kernel there; u8 x u8 runs at the speed of float and s8 activations
fall back to scalar code.
"""

from __future__ import annotations

from qcompiler.schemes import QSpec
from qcompiler.targets.costs import cpu_amx, cpu_avx2, cpu_avx512, cpu_vnni
from qcompiler.targets.onnxruntime_float8 import FLOAT8_REFERENCES
from qcompiler.targets.onnxruntime_traps import DISABLED_OPTIMIZERS, TRAPS
from qcompiler.targets.schema import CacheType, Carry, Form, Kernel, Scheme, Target

__all__ = ["CACHES", "CARRIES", "CPU_AMX", "CPU_AVX2", "CPU_AVX512", "CPU_VNNI", "DYNAMIC_KERNELS"]

U8 = QSpec.parse("u8tz")
U8_DYNAMIC = QSpec.parse("u8tzd")
U8_TOKEN = QSpec.parse("u8kd")
S8_COLUMNS = QSpec.parse("s8c@1")
S8_FILTERS = QSpec.parse("s8c@0")
S8_ROWS = QSpec.parse("s8c@0")
U8_BLOCKS = QSpec.parse("u8g128@0")
U8_ROW_BLOCKS = QSpec.parse("u8g128@1")

MATMUL_INTEGER_TO_FLOAT = "com.microsoft:MatMulIntegerToFloat"
OPERATORS = "https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md"
CONTRIB = "https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md"
PROBED = "probed on onnxruntime 1.31.1 (AMX and AVX512-VNNI)"

# kernels that quantize activations themselves, or not at all: the same on x86 and ARM
DYNAMIC_KERNELS = (
    Kernel(
        id="matmul-dynamic",
        op="MatMul",
        scheme=Scheme.DYNAMIC,
        inputs=(U8_DYNAMIC, S8_COLUMNS),
        output=None,
        runtime_op="com.microsoft:DynamicQuantizeMatMul",
        qdq_ops=(MATMUL_INTEGER_TO_FLOAT,),
        conditions=("constant-weight", "weight-rank-2"),
        fuses=("Add",),
        source=f"{CONTRIB}#com.microsoft.DynamicQuantizeMatMul; {PROBED}",
    ),
    Kernel(
        id="matmul-token",
        op="MatMul",
        scheme=Scheme.TOKEN,
        inputs=(U8_TOKEN, S8_COLUMNS),
        output=None,
        runtime_op=MATMUL_INTEGER_TO_FLOAT,
        forms=(Form.ORT,),  # as QDQ the row scale stands between DequantizeLinear and MatMul
        conditions=("constant-weight", "weight-rank-2"),
        source=f"{CONTRIB}#com.microsoft.MatMulIntegerToFloat; row scales {PROBED}",
    ),
    Kernel(
        id="matmul-weight",
        op="MatMul",
        scheme=Scheme.WEIGHT,
        inputs=(None, U8_BLOCKS),
        output=None,
        runtime_op="com.microsoft:MatMulNBits",
        conditions=("constant-weight", "weight-rank-2", "nbits-layout", "unpacking-opset"),
        fuses=("Add",),
        source=f"{CONTRIB}#com.microsoft.MatMulNBits; {PROBED}",
    ),
    Kernel(
        id="matmul-weight-float",
        op="MatMul",
        scheme=Scheme.WEIGHT,
        inputs=(None, U8_BLOCKS),
        output=None,
        runtime_op="",
        conditions=("constant-weight", "weight-rank-2", "no-nbits-layout", "unpacking-opset"),
        reference=True,
        source=f"{OPERATORS}: functions of constants are folded when the model is loaded; {PROBED}",
    ),
    Kernel(
        id="gather-weight-blocks",
        op="Gather",
        scheme=Scheme.WEIGHT,
        inputs=(U8_ROW_BLOCKS, None),
        output=None,
        runtime_op="com.microsoft:GatherBlockQuantized",
        forms=(Form.ORT,),
        conditions=("constant-table", "table-rank-2", "gather-axis-0", "table-blocks"),
        source=f"{CONTRIB}#com.microsoft.GatherBlockQuantized; {PROBED}",
    ),
    Kernel(
        id="gather-weight",
        op="Gather",
        scheme=Scheme.WEIGHT,
        inputs=(S8_ROWS, None),
        output=None,
        runtime_op="Gather",
        conditions=("constant-table", "table-rank-2", "gather-axis-0"),
        source=f"{OPERATORS}; {PROBED}: 187 us per tensor, 323 us with row scales, 4400 us as DQ",
    ),
)

KERNELS = (
    Kernel(
        id="matmul-static",
        op="MatMul",
        scheme=Scheme.STATIC,
        inputs=(U8, S8_COLUMNS),
        output=None,
        runtime_op=MATMUL_INTEGER_TO_FLOAT,
        qdq_ops=("com.microsoft:QGemm", "QLinearMatMul"),  # the latter with a Q behind
        conditions=("constant-weight", "weight-rank-2"),
        fuses=("Add",),
        source=f"{CONTRIB}#com.microsoft.MatMulIntegerToFloat; {PROBED}",
    ),
    Kernel(
        id="matmul-static-u8",
        op="MatMul",
        scheme=Scheme.STATIC,
        inputs=(U8, S8_COLUMNS),
        output=U8,
        runtime_op="QLinearMatMul",
        conditions=("constant-weight", "weight-rank-2", "no-bias-behind"),
        source=f"https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html; {PROBED}",
    ),
    Kernel(
        id="conv-static",
        op="Conv",
        scheme=Scheme.STATIC,
        inputs=(U8, S8_FILTERS),
        output=U8,
        runtime_op="QLinearConv",
        qdq_ops=("com.microsoft:QLinearConv",),
        conditions=("constant-weight", "conv-rank", "constant-bias"),
        fuses=("Relu", "Clip"),
        source=f"https://onnx.ai/onnx/operators/onnx__QLinearConv.html; {PROBED}",
    ),
    Kernel(
        id="add-static",
        op="Add",
        scheme=Scheme.STATIC,
        inputs=(U8, U8),
        output=U8,
        runtime_op="com.microsoft:QLinearAdd",
        conditions=("activations-only", "no-normalization-behind"),
        fuses=("Relu",),
        source=f"{CONTRIB}#com.microsoft.QLinearAdd; {PROBED}",
    ),
    Kernel(
        id="mul-static",
        op="Mul",
        scheme=Scheme.STATIC,
        inputs=(U8, U8),
        output=U8,
        runtime_op="com.microsoft:QLinearMul",
        conditions=("activations-only",),
        source=f"{CONTRIB}#com.microsoft.QLinearMul; {PROBED}",
    ),
    Kernel(
        id="sigmoid-static",
        op="Sigmoid",
        scheme=Scheme.STATIC,
        inputs=(U8,),
        output=U8,
        runtime_op="com.microsoft:QLinearSigmoid",
        source=f"{CONTRIB}#com.microsoft.QLinearSigmoid; {PROBED}",
    ),
    Kernel(
        id="leaky-relu-static",
        op="LeakyRelu",
        scheme=Scheme.STATIC,
        inputs=(U8,),
        output=U8,
        runtime_op="com.microsoft:QLinearLeakyRelu",
        source=f"{CONTRIB}#com.microsoft.QLinearLeakyRelu; {PROBED}",
    ),
    Kernel(
        id="average-pool-static",
        op="AveragePool",
        scheme=Scheme.STATIC,
        inputs=(U8,),
        output=U8,
        runtime_op="com.microsoft:QLinearAveragePool",
        conditions=("activation-rank-4", "no-dilation", "floor-mode"),
        source=f"{CONTRIB}#com.microsoft.QLinearAveragePool; {PROBED}",
    ),
    Kernel(
        id="global-average-pool-static",
        op="GlobalAveragePool",
        scheme=Scheme.STATIC,
        inputs=(U8,),
        output=U8,
        runtime_op="com.microsoft:QLinearGlobalAveragePool",
        conditions=("activation-rank-4",),
        source=f"{CONTRIB}#com.microsoft.QLinearGlobalAveragePool; {PROBED}",
    ),
    Kernel(
        id="concat-static",
        op="Concat",
        scheme=Scheme.STATIC,
        inputs=(U8,),  # as many as the node has
        output=U8,
        runtime_op="com.microsoft:QLinearConcat",
        conditions=("activations-only",),
        source=f"{CONTRIB}#com.microsoft.QLinearConcat; {PROBED}",
    ),
    *DYNAMIC_KERNELS,
    *FLOAT8_REFERENCES,
)

CARRIED = f"{OPERATORS}; {PROBED}: in and out with the same scale and zero point"

CARRIES = (
    Carry("Reshape", CARRIED),
    Carry("Transpose", CARRIED),
    Carry("Squeeze", CARRIED),
    Carry("Unsqueeze", CARRIED),
    Carry("Flatten", CARRIED),
    Carry("Identity", CARRIED),
    Carry("Slice", CARRIED),
    Carry("Split", CARRIED),
    Carry("Gather", CARRIED),
    Carry("GatherElements", CARRIED),
    Carry("Tile", CARRIED),
    Carry("Expand", CARRIED),
    Carry("MaxPool", CARRIED, ("one-output",)),
    Carry("ReduceMax", CARRIED),
    Carry("ReduceMin", CARRIED),
    Carry("DepthToSpace", CARRIED),
    Carry("Resize", CARRIED, ("resize-nearest",)),
)

FIXED = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0)}

CACHED = (
    f"{CONTRIB}#com.microsoft.GroupQueryAttention; probed on onnxruntime 1.27.0, 1.31.1 and 1.32.0;"
    " 1.25.0 and 1.26.0 fail; keys and values must be scaled alike"
)

CACHES = (
    CacheType("int8-channel", "com.microsoft:GroupQueryAttention", "1.27", CACHED),
    CacheType("int8-tensor", "com.microsoft:GroupQueryAttention", "1.27", CACHED),
)

OPTIONS = {"optimization.disable_specified_optimizers": DISABLED_OPTIMIZERS}

CPU_AMX = Target(
    name="cpu-amx",
    runtime="onnxruntime",
    description="x86 with AMX-INT8 (Intel Xeon, 4th generation and later) on ONNX Runtime",
    form=Form.ORT,
    opset=23,
    kernels=KERNELS,
    carries=CARRIES,
    fixed=FIXED,
    caches=CACHES,
    traps=TRAPS,
    isa=("amx_int8", "avx512_vnni"),
    costs=cpu_amx.COSTS,
    options=OPTIONS,
    source="operator timings of onnxruntime 1.31.1 on a Xeon with AMX at 2.1 GHz",
)

CPU_VNNI = Target(
    name="cpu-vnni",
    runtime="onnxruntime",
    description="x86 with AVX512-VNNI or AVX-VNNI on ONNX Runtime",
    form=Form.ORT,
    opset=23,
    kernels=KERNELS,
    carries=CARRIES,
    fixed=FIXED,
    caches=CACHES,
    traps=TRAPS,
    isa=("vnni",),
    costs=cpu_vnni.COSTS,
    options=OPTIONS,
    source="operator timings of onnxruntime 1.31.1 on an EPYC with AVX512-VNNI at 2.6 GHz",
)

CPU_AVX512 = Target(
    name="cpu-avx512",
    runtime="onnxruntime",
    description="x86 with AVX-512 but without VNNI on ONNX Runtime: weights of 7 bits",
    form=Form.ORT,
    opset=23,
    kernels=KERNELS,
    carries=CARRIES,
    fixed=FIXED,
    caches=CACHES,
    traps=TRAPS,
    isa=("avx512bw",),
    # vpmaddubsw adds two products in int16: 255 * 127 * 2 saturates, 255 * 63 * 2 does not
    weight_bits=7,
    costs=cpu_avx512.COSTS,
    options=OPTIONS,
    source="derived from the AMX machine's float timings and instruction counts, not measured",
)

CPU_AVX2 = Target(
    name="cpu-avx2",
    runtime="onnxruntime",
    description="x86 with AVX2 but without VNNI on ONNX Runtime: weights of 7 bits",
    form=Form.ORT,
    opset=23,
    kernels=KERNELS,
    carries=CARRIES,
    fixed=FIXED,
    caches=CACHES,
    traps=TRAPS,
    isa=("avx2",),
    weight_bits=7,  # as cpu-avx512
    costs=cpu_avx2.COSTS,
    options=OPTIONS,
    source="derived from the AMX machine's float timings and instruction counts, not measured",
)
