"""NVIDIA GPUs from Ada and Hopper on: 8-bit floats as Q/DQ around MatMul and Conv.

For compilers that fuse Q/DQ into FP8 products. ONNX Runtime's CUDA provider has Q and DQ of 8-bit
floats but no such fusion: there the model runs, with its weights at a quarter of their size, and
multiplies in float. 8-bit integers are left out, since that provider is slower with them than with
half precision; the target ``tensorrt`` has them.
"""

from __future__ import annotations

from qcompiler.schemes import QSpec
from qcompiler.targets.schema import Carry, Form, Kernel, Scheme, Target, Unify

__all__ = ["CUDA"]

E4M3 = QSpec.parse("e4m3t")
E5M2 = QSpec.parse("e5m2t")
E4M3_COLUMNS = QSpec.parse("e4m3c@1")
E4M3_FILTERS = QSpec.parse("e4m3c@0")
U4_BLOCKS = QSpec.parse("u4g128@0")

OPERATORS = (
    "https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md: Q and DQ of 8-bit"
    " floats from opset 19 on, from documentation"
)
# cublasLtMatmul's table of 8-bit types: E4M3 with E4M3 or E5M2, never E5M2 with itself
PRODUCTS = (
    "https://docs.nvidia.com/cuda/cublas/#cublasltmatmul: E5M2 multiplies with E4M3 only, from"
    " documentation"
)
MATMUL_NBITS = (
    "https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md"
    "#com.microsoft.MatMulNBits: 4 and 8 bits on CUDA, from documentation"
)

CUDA = Target(
    name="cuda",
    runtime="cuda",
    description="NVIDIA GPUs with FP8 (Ada, Hopper and later), FP8 as standard Q/DQ",
    form=Form.QDQ,
    opset=21,
    kernels=(
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
            source=PRODUCTS,
        ),
        Kernel(
            id="conv-static-e4m3",
            op="Conv",
            scheme=Scheme.STATIC,
            inputs=(E4M3, E4M3_FILTERS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "constant-bias", "not-grouped"),
            source=OPERATORS,
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
            source=PRODUCTS,
        ),
        Kernel(
            id="conv-static-e5m2",
            op="Conv",
            scheme=Scheme.STATIC,
            inputs=(E5M2, E4M3_FILTERS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "constant-bias", "not-grouped"),
            source=OPERATORS,
        ),
        Kernel(
            id="matmul-weight",
            op="MatMul",
            scheme=Scheme.WEIGHT,
            inputs=(None, U4_BLOCKS),
            output=None,
            runtime_op="",
            forms=(Form.QDQ,),
            conditions=("constant-weight", "weight-rank-2", "nbits-group-size"),
            fuses=("Add",),
            source=MATMUL_NBITS,
        ),
    ),
    carries=(
        Carry("Reshape", OPERATORS),
        Carry("Transpose", OPERATORS),
        Carry("Squeeze", OPERATORS),
        Carry("Unsqueeze", OPERATORS),
        Carry("Flatten", OPERATORS),
        Carry("Identity", OPERATORS),
        Carry("Slice", OPERATORS),
        Carry("MaxPool", OPERATORS, ("one-output",)),
    ),
    unifies=(Unify("Concat", OPERATORS, ("activations-only",)),),
    source="no costs: everything that has a row is quantized",
)
