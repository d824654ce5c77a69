"""The built-in passes, found through the entry-point group ``qcompiler.passes`` like any other's.

``PASSES`` is the default pipeline: the order within a phase is the order here.
"""

from __future__ import annotations

from qcompiler.pipeline.contract import Pass
from qcompiler_passes.apply.insert_qdq import InsertQdq
from qcompiler_passes.decide.observe_shapes import ObserveShapes
from qcompiler_passes.decide.place_precision import PlacePrecision
from qcompiler_passes.float.fuse_attention import FuseAttention
from qcompiler_passes.float.fuse_gelu import FuseGelu
from qcompiler_passes.float.fuse_layer_norm import FuseLayerNorm
from qcompiler_passes.float.fuse_rms_norm import FuseRmsNorm
from qcompiler_passes.float.fuse_silu import FuseSilu
from qcompiler_passes.float.merge_qkv import MergeQkv
from qcompiler_passes.float.simplify_mask import SimplifyMask
from qcompiler_passes.lower.finish_qdq import FinishQdq
from qcompiler_passes.lower.to_ort import ToOrt
from qcompiler_passes.measure.calibrate import Calibrate
from qcompiler_passes.weights.quantize_weights import QuantizeWeights

__all__ = ["PASSES"]

PASSES: tuple[type[Pass], ...] = (
    # float
    SimplifyMask,
    FuseLayerNorm,
    FuseRmsNorm,
    FuseGelu,
    FuseSilu,
    FuseAttention,
    MergeQkv,
    # prepare
    # decide
    ObserveShapes,
    PlacePrecision,
    # measure
    Calibrate,
    # weights
    QuantizeWeights,
    # apply
    InsertQdq,
    # lower
    ToOrt,
    FinishQdq,
)
