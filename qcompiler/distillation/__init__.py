"""Knowledge distillation: what rounding left of a model learns to give the float model's outputs.

Importing this package imports torch; nothing that ``import qcompiler`` reaches may import it.
"""

from __future__ import annotations

from qcompiler.distillation.scales import Distilled, distill_scales

__all__ = ["Distilled", "distill_scales"]
