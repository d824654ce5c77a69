"""ONNX Runtime's CPU provider and 8-bit floats: it has the types, and no kernel that computes them.

The rows are references: the numbers of the precision, at the price of Q and DQ around float
operators. Weights are E4M3 beside both types of activations: no GPU multiplies
E5M2 by E5M2.
"""

from __future__ import annotations

from qcompiler.schemes import QSpec
from qcompiler.targets.schema import Form, Kernel, Scheme

__all__ = ["FLOAT8_REFERENCES"]

E4M3 = QSpec.parse("e4m3t")
E5M2 = QSpec.parse("e5m2t")
E4M3_COLUMNS = QSpec.parse("e4m3c@1")
E4M3_FILTERS = QSpec.parse("e4m3c@0")

PROBED = (
    "probed on onnxruntime 1.31.1: Q and DQ take 6 to 10 ns per element, what is between runs in "
    "float, and nothing is gained"
)

FLOAT8_REFERENCES = (
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
        reference=True,
        source=PROBED,
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
        reference=True,
        source=PROBED,
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
        reference=True,
        source=PROBED,
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
        reference=True,
        source=PROBED,
    ),
)
