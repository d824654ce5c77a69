"""NVIDIA TensorRT: explicit Q/DQ, signed and symmetric, zero points 0; s8 or FP8 (E4M3).

Q/DQ stands at the inputs of Conv and MatMul; their outputs are left to TensorRT's fusion, which
moves the next layer's QuantizeLinear into them.
"""

from __future__ import annotations

from qcompiler.schemes import QSpec
from qcompiler.targets.schema import Carry, Form, Kernel, Scheme, Target, Unify

__all__ = ["TENSORRT"]

S8 = QSpec.parse("s8t")
S8_COLUMNS = QSpec.parse("s8c@1")
S8_FILTERS = QSpec.parse("s8c@0")
E4M3 = QSpec.parse("e4m3t")
E4M3_COLUMNS = QSpec.parse("e4m3c@1")
S4_BLOCKS = QSpec.parse("s4g128@0")

DOCS = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/"
    "work-quantized-types.html: from documentation"
)
FP8 = (
    f"{DOCS}; FP8 products with a scale per channel: https://docs.nvidia.com/deeplearning/tensorrt/"
    "latest/getting-started/release-notes-10/10.6.0.html: from documentation"
)
PARSER = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md: from documentation"

TENSORRT = Target(
    name="tensorrt",
    runtime="tensorrt",
    description="NVIDIA TensorRT 10 and later, explicit quantization, s8 symmetric or FP8",
    form=Form.QDQ,
    opset=21,
    kernels=(
        Kernel(
            id="matmul-static",
            op="MatMul",
            scheme=Scheme.STATIC,
            inputs=(S8, S8_COLUMNS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "weight-rank-2"),
            fuses=("Add",),
            source=DOCS,
        ),
        Kernel(
            id="conv-static",
            op="Conv",
            scheme=Scheme.STATIC,
            inputs=(S8, S8_FILTERS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "constant-bias"),
            source=DOCS,
        ),
        Kernel(
            id="add-static",
            op="Add",
            scheme=Scheme.STATIC,
            inputs=(S8, S8),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("activations-only", "same-shape", "no-normalization-behind"),
            source=DOCS,
        ),
        Kernel(
            id="average-pool-static",
            op="AveragePool",
            scheme=Scheme.STATIC,
            inputs=(S8,),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            source=DOCS,
        ),
        Kernel(
            id="global-average-pool-static",
            op="GlobalAveragePool",
            scheme=Scheme.STATIC,
            inputs=(S8,),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            source=DOCS,
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
            source=FP8,
        ),
        # a scale per channel is documented for products only, and no kernel for groups
        Kernel(
            id="conv-static-e4m3",
            op="Conv",
            scheme=Scheme.STATIC,
            inputs=(E4M3, E4M3),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "constant-bias", "not-grouped"),
            source=DOCS,
        ),
        Kernel(
            id="matmul-weight",
            op="MatMul",
            scheme=Scheme.WEIGHT,
            inputs=(None, S4_BLOCKS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "weight-rank-2", "group-divides-in-features"),
            fuses=("Add",),
            source=f"{DOCS}, weight-only INT4 in symmetric blocks",
        ),
    ),
    carries=(
        Carry("Reshape", PARSER),
        Carry("Transpose", PARSER),
        Carry("Squeeze", PARSER),
        Carry("Unsqueeze", PARSER),
        Carry("Flatten", PARSER),
        Carry("Identity", PARSER),
        Carry("Slice", PARSER),
        Carry("MaxPool", PARSER, ("one-output",)),
        Carry("Resize", PARSER, ("resize-nearest",)),
    ),
    unifies=(Unify("Concat", PARSER, ("activations-only",)),),
    source="no costs: everything that has a row is quantized",
)
