"""Intel OpenVINO: Q/DQ, u8 activations with zero points, s8 weights per channel."""

from __future__ import annotations

from qcompiler.schemes import QSpec
from qcompiler.targets.schema import Carry, Form, Kernel, Scheme, Target, Unify

__all__ = ["OPENVINO"]

U8 = QSpec.parse("u8tz")
S8_COLUMNS = QSpec.parse("s8c@1")
S8_FILTERS = QSpec.parse("s8c@0")
U4_BLOCKS = QSpec.parse("u4g128@0z")

PRECISION = (
    "https://docs.openvino.ai/2025/documentation/openvino-extensibility/openvino-plugin-library/"
    "advanced-guides/low-precision-transformations.html: from documentation"
)
WEIGHTS = (
    "https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/"
    "weight-compression.html: from documentation"
)

OPENVINO = Target(
    name="openvino",
    runtime="openvino",
    description="Intel OpenVINO (CPU and GPU), u8 activations with zero point, s8 weights",
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
            source=PRECISION,
        ),
        Kernel(
            id="conv-static",
            op="Conv",
            scheme=Scheme.STATIC,
            inputs=(U8, S8_FILTERS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "constant-bias"),
            source=PRECISION,
        ),
        Kernel(
            id="add-static",
            op="Add",
            scheme=Scheme.STATIC,
            inputs=(U8, U8),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("activations-only", "no-normalization-behind"),
            source=PRECISION,
        ),
        Kernel(
            id="mul-static",
            op="Mul",
            scheme=Scheme.STATIC,
            inputs=(U8, U8),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("activations-only",),
            source=PRECISION,
        ),
        Kernel(
            id="average-pool-static",
            op="AveragePool",
            scheme=Scheme.STATIC,
            inputs=(U8,),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            source=PRECISION,
        ),
        Kernel(
            id="global-average-pool-static",
            op="GlobalAveragePool",
            scheme=Scheme.STATIC,
            inputs=(U8,),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            source=PRECISION,
        ),
        Kernel(
            id="matmul-weight",
            op="MatMul",
            scheme=Scheme.WEIGHT,
            inputs=(None, U4_BLOCKS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "weight-rank-2", "group-divides-in-features"),
            fuses=("Add",),
            source=WEIGHTS,
        ),
    ),
    carries=(
        Carry("Reshape", PRECISION),
        Carry("Transpose", PRECISION),
        Carry("Squeeze", PRECISION),
        Carry("Unsqueeze", PRECISION),
        Carry("Flatten", PRECISION),
        Carry("Identity", PRECISION),
        Carry("Slice", PRECISION),
        Carry("Split", PRECISION),
        Carry("MaxPool", PRECISION, ("one-output",)),
        Carry("DepthToSpace", PRECISION),
        Carry("Resize", PRECISION, ("resize-nearest",)),
    ),
    unifies=(Unify("Concat", PRECISION, ("activations-only",)),),
    fixed={"Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0)},
    source="no costs: everything that has a row is quantized",
)
