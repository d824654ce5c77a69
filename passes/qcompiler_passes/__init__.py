"""The built-in passes, found through the entry-point group ``qcompiler.passes`` like any other's.

``PASSES`` is the default pipeline: the order within a phase is the order here.
"""

from __future__ import annotations

from qcompiler.pipeline.contract import Pass
from qcompiler_passes.apply.correct_biases import CorrectBiases
from qcompiler_passes.apply.insert_qdq import InsertQdq
from qcompiler_passes.apply.insert_switches import InsertSwitches
from qcompiler_passes.decide.allot_bits import AllotBits
from qcompiler_passes.decide.observe_shapes import ObserveShapes
from qcompiler_passes.decide.place_precision import PlacePrecision
from qcompiler_passes.float.canonicalize_linear import CanonicalizeLinear
from qcompiler_passes.float.canonicalize_mean import CanonicalizeMean
from qcompiler_passes.float.fold_batch_norm import FoldBatchNorm
from qcompiler_passes.float.fold_constants import FoldConstants
from qcompiler_passes.float.fuse_attention import FuseAttention
from qcompiler_passes.float.fuse_gelu import FuseGelu
from qcompiler_passes.float.fuse_layer_norm import FuseLayerNorm
from qcompiler_passes.float.fuse_rms_norm import FuseRmsNorm
from qcompiler_passes.float.fuse_silu import FuseSilu
from qcompiler_passes.float.merge_qkv import MergeQkv
from qcompiler_passes.float.raise_opset import RaiseOpset
from qcompiler_passes.float.remove_dead import RemoveDead
from qcompiler_passes.float.remove_no_ops import RemoveNoOps
from qcompiler_passes.float.share_duplicates import ShareDuplicates
from qcompiler_passes.float.simplify_mask import SimplifyMask
from qcompiler_passes.lower.add_prefill import AddPrefill
from qcompiler_passes.lower.finish_qdq import FinishQdq
from qcompiler_passes.lower.fuse_skip_norm import FuseSkipNorm
from qcompiler_passes.lower.pack_products import PackProducts
from qcompiler_passes.lower.pack_qkv import PackQkv
from qcompiler_passes.lower.quantize_cache import QuantizeCache
from qcompiler_passes.lower.share_transposed import ShareTransposed
from qcompiler_passes.lower.tile_attention import TileAttention
from qcompiler_passes.lower.to_ort import ToOrt
from qcompiler_passes.measure.calibrate import Calibrate
from qcompiler_passes.measure.measure_cache import MeasureCache
from qcompiler_passes.prepare.absorb_biases import AbsorbBiases
from qcompiler_passes.prepare.equalize_gates import EqualizeGates
from qcompiler_passes.prepare.equalize_layers import EqualizeLayers
from qcompiler_passes.prepare.learn_factors import LearnFactors
from qcompiler_passes.prepare.scale_salient_channels import ScaleSalientChannels
from qcompiler_passes.prepare.smooth_activations import SmoothActivations
from qcompiler_passes.quantized.adopt_quantized import AdoptQuantized
from qcompiler_passes.quantized.import_quantized import ImportQuantized
from qcompiler_passes.weights.clip_by_outputs import ClipByOutputs
from qcompiler_passes.weights.distill_scales import DistillScales
from qcompiler_passes.weights.learn_by_block import LearnByBlock
from qcompiler_passes.weights.learn_rounding import LearnRounding
from qcompiler_passes.weights.measure_mean_errors import MeasureMeanErrors
from qcompiler_passes.weights.quantize_weights import QuantizeWeights
from qcompiler_passes.weights.refine_rounding import RefineRounding
from qcompiler_passes.weights.round_in_stages import RoundInStages

__all__ = ["PASSES"]

PASSES: tuple[type[Pass], ...] = (
    # float
    RaiseOpset,
    ImportQuantized,
    FoldConstants,
    RemoveNoOps,
    ShareDuplicates,
    CanonicalizeLinear,
    CanonicalizeMean,
    FoldBatchNorm,
    SimplifyMask,
    FuseLayerNorm,
    FuseRmsNorm,
    FuseGelu,
    FuseSilu,
    FuseAttention,
    MergeQkv,
    RemoveDead,
    # prepare
    EqualizeGates,
    EqualizeLayers,
    AbsorbBiases,
    SmoothActivations,
    ScaleSalientChannels,
    LearnFactors,
    # decide
    ObserveShapes,
    AllotBits,
    PlacePrecision,
    # measure
    Calibrate,
    MeasureCache,
    # weights
    QuantizeWeights,
    ClipByOutputs,
    RoundInStages,
    LearnByBlock,
    DistillScales,
    RefineRounding,
    LearnRounding,
    MeasureMeanErrors,
    # apply
    CorrectBiases,
    AdoptQuantized,
    InsertQdq,
    InsertSwitches,
    # lower
    TileAttention,
    ToOrt,
    PackQkv,
    QuantizeCache,
    AddPrefill,
    PackProducts,
    FuseSkipNorm,
    FinishQdq,
    ShareTransposed,
)
