"""The lifted form: a block of the IR as a differentiable ``torch.fx.GraphModule``.

``lift`` builds it, ``Lifted.quantize_weight`` and ``Lifted.quantize_activation`` put fake
quantizers on its edges, ``commit`` writes trained constants back. Importing this package imports
torch; nothing that ``import qcompiler`` reaches may import it at its top.
"""

from __future__ import annotations

from qcompiler.lift.build import block_inputs, block_outputs, lift, liftable, refusals
from qcompiler.lift.lifted import Lifted, commit
from qcompiler.lift.operands import array_to_torch
from qcompiler.lift.operators import OPERATORS
from qcompiler.lift.quantize import fake_quantize
from qcompiler.lift.quantizers import (
    DynamicFakeQuantize,
    FakeQuantize,
    GivenIntegers,
    LearnedRounding,
)

__all__ = [
    "OPERATORS",
    "DynamicFakeQuantize",
    "FakeQuantize",
    "GivenIntegers",
    "LearnedRounding",
    "Lifted",
    "array_to_torch",
    "block_inputs",
    "block_outputs",
    "commit",
    "fake_quantize",
    "lift",
    "liftable",
    "refusals",
]
