"""No runtime in particular: standard QuantizeLinear and DequantizeLinear, of 8 bits by default.

The recipe's key ``activations`` chooses the rows of 16-bit integers or 8-bit floats instead.
Without costs: everything that has a row is quantized.
"""

from __future__ import annotations

from qcompiler.schemes import QSpec
from qcompiler.targets.schema import Carry, Form, Kernel, Scheme, Target, Unify

__all__ = ["GENERIC_QDQ"]

U8 = QSpec.parse("u8tz")
U16 = QSpec.parse("u16tz")
U8_DYNAMIC = QSpec.parse("u8tzd")
U8_TOKEN = QSpec.parse("u8kd")
S8_COLUMNS = QSpec.parse("s8c@1")
S8_FILTERS = QSpec.parse("s8c@0")
E4M3 = QSpec.parse("e4m3t")
E5M2 = QSpec.parse("e5m2t")
E4M3_COLUMNS = QSpec.parse("e4m3c@1")
E4M3_FILTERS = QSpec.parse("e4m3c@0")
U8_BLOCKS = QSpec.parse("u8g128@0")

STANDARD = (
    "https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html, "
    "https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html: from documentation"
)
FLOAT8 = f"{STANDARD}, 8-bit floats from opset 19 on"

GENERIC_QDQ = Target(
    name="generic-qdq",
    runtime="onnx",
    description="standard ONNX Q/DQ for any runtime, activations u8 with zero point, weights s8",
    form=Form.QDQ,
    opset=21,
    kernels=(
        Kernel(
            id="matmul-static",
            op="MatMul",
            scheme=Scheme.STATIC,
            inputs=(U8, S8_COLUMNS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "weight-rank-2"),
            fuses=("Add",),
            source=STANDARD,
        ),
        Kernel(
            id="conv-static",
            op="Conv",
            scheme=Scheme.STATIC,
            inputs=(U8, S8_FILTERS),
            output=U8,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "constant-bias"),
            fuses=("Relu", "Clip"),
            source=STANDARD,
        ),
        Kernel(
            id="add-static",
            op="Add",
            scheme=Scheme.STATIC,
            inputs=(U8, U8),
            output=U8,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("activations-only", "no-normalization-behind"),
            fuses=("Relu",),
            source=STANDARD,
        ),
        Kernel(
            id="mul-static",
            op="Mul",
            scheme=Scheme.STATIC,
            inputs=(U8, U8),
            output=U8,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("activations-only",),
            source=STANDARD,
        ),
        Kernel(
            id="average-pool-static",
            op="AveragePool",
            scheme=Scheme.STATIC,
            inputs=(U8,),
            output=U8,
            runtime_op="",
            forms=(Form.QDQ,),
            source=STANDARD,
        ),
        Kernel(
            id="global-average-pool-static",
            op="GlobalAveragePool",
            scheme=Scheme.STATIC,
            inputs=(U8,),
            output=U8,
            runtime_op="",
            forms=(Form.QDQ,),
            source=STANDARD,
        ),
        Kernel(
            id="matmul-dynamic",
            op="MatMul",
            scheme=Scheme.DYNAMIC,
            inputs=(U8_DYNAMIC, S8_COLUMNS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "weight-rank-2"),
            fuses=("Add",),
            source="https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html: "
            "from documentation",
        ),
        Kernel(
            id="matmul-token",
            op="MatMul",
            scheme=Scheme.TOKEN,
            inputs=(U8_TOKEN, S8_COLUMNS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "weight-rank-2"),
            source=STANDARD,
        ),
        Kernel(
            id="matmul-weight",
            op="MatMul",
            scheme=Scheme.WEIGHT,
            inputs=(None, U8_BLOCKS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "weight-rank-2", "group-divides-in-features"),
            fuses=("Add",),
            source=STANDARD,
        ),
        Kernel(
            id="matmul-static-u16",
            op="MatMul",
            scheme=Scheme.STATIC,
            inputs=(U16, S8_COLUMNS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "weight-rank-2"),
            fuses=("Add",),
            source=STANDARD,
        ),
        Kernel(
            id="conv-static-u16",
            op="Conv",
            scheme=Scheme.STATIC,
            inputs=(U16, S8_FILTERS),
            output=U16,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "constant-bias"),
            fuses=("Relu", "Clip"),
            source=STANDARD,
        ),
        Kernel(
            id="add-static-u16",
            op="Add",
            scheme=Scheme.STATIC,
            inputs=(U16, U16),
            output=U16,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("activations-only", "no-normalization-behind"),
            fuses=("Relu",),
            source=STANDARD,
        ),
        Kernel(
            id="mul-static-u16",
            op="Mul",
            scheme=Scheme.STATIC,
            inputs=(U16, U16),
            output=U16,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("activations-only",),
            source=STANDARD,
        ),
        Kernel(
            id="matmul-static-e4m3",
            op="MatMul",
            scheme=Scheme.STATIC,
            inputs=(E4M3, E4M3_COLUMNS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "weight-rank-2"),
            fuses=("Add",),
            source=FLOAT8,
        ),
        Kernel(
            id="conv-static-e4m3",
            op="Conv",
            scheme=Scheme.STATIC,
            inputs=(E4M3, E4M3_FILTERS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "constant-bias"),
            source=FLOAT8,
        ),
        Kernel(
            id="matmul-static-e5m2",
            op="MatMul",
            scheme=Scheme.STATIC,
            inputs=(E5M2, E4M3_COLUMNS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "weight-rank-2"),
            fuses=("Add",),
            source=FLOAT8,
        ),
        Kernel(
            id="conv-static-e5m2",
            op="Conv",
            scheme=Scheme.STATIC,
            inputs=(E5M2, E4M3_FILTERS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "constant-bias"),
            source=FLOAT8,
        ),
    ),
    carries=(
        Carry("Reshape", STANDARD),
        Carry("Transpose", STANDARD),
        Carry("Squeeze", STANDARD),
        Carry("Unsqueeze", STANDARD),
        Carry("Flatten", STANDARD),
        Carry("Identity", STANDARD),
        Carry("Slice", STANDARD),
        Carry("Split", STANDARD),
        Carry("Gather", STANDARD),
        Carry("MaxPool", STANDARD, ("one-output",)),
        Carry("Resize", STANDARD, ("resize-nearest",)),
    ),
    unifies=(Unify("Concat", STANDARD, ("activations-only",)),),
    fixed={"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0)},
    source="no costs: everything that has a row is quantized",
)
