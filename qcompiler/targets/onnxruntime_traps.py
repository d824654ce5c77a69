"""Where ONNX Runtime's CPU provider miscomputes or falls off a cliff, and what is done instead."""

from __future__ import annotations

from qcompiler.targets.schema import Trap

__all__ = ["DISABLED_OPTIMIZERS", "TRAPS"]

# B5 (WeightBiasQuantization) and fusions into kernels that are slower than what they replace
DISABLED_OPTIMIZERS = (
    "WeightBiasQuantization;SkipLayerNormFusion;BiasSkipLayerNormFusion;BiasGeluFusion"
)

SEEN = "probed on onnxruntime 1.31.1, default session options"
READ = "read in the source of onnxruntime 1.30"

TRAPS = (
    Trap(
        id="row-scale-bias",
        kernels=("matmul-token",),
        condition="followed-by-bias",
        effect="MatMulIntegerToFloat with a row scale multiplies the bias by it: silently wrong",
        remedy="the bias stays a separate Add, and MatMulIntegerToFloatFusion is not run",
        source=SEEN,
    ),
    Trap(
        id="weight-axis-0-matmul",
        kernels=("matmul-static", "matmul-static-u8", "matmul-dynamic"),
        condition="weight-axis-0",
        effect="scales along the reduced axis: silently wrong for square weights, else a failure",
        remedy="weights of linear layers are quantized per column only",
        source=SEEN,
        blocks=True,
        mended="1.32.0",
    ),
    Trap(
        id="weight-axis-1-conv",
        kernels=("conv-static",),
        condition="weight-axis-1",
        effect="scales along the input channels: silently wrong for square weights, else a failure",
        remedy="weights of convolutions are quantized per filter only",
        source=SEEN,
        blocks=True,
    ),
    Trap(
        id="row-scale-in-qdq",
        kernels=("matmul-token",),
        condition="form-qdq",
        effect="a vector of activation scales is fused, then fails: a zero point must be scalar",
        remedy="the row scale is multiplied in and out of the graph; the row has no QDQ form",
        source=SEEN,
        blocks=True,
    ),
    Trap(
        id="float-weight-quantized",
        kernels=("*",),
        condition="form-qdq",
        effect="WeightBiasQuantization quantizes the float weight of Conv, ConvTranspose, Gemm or "
        "MatMul + Add that stands between DequantizeLinear and QuantizeLinear, per tensor",
        remedy="the optimizer is switched off in the session options of the artifact",
        source=SEEN,
    ),
    Trap(
        id="weight-only-activations",
        kernels=("matmul-weight",),
        condition="form-qdq",
        effect="a weight-only MatMul becomes MatMulNBits with accuracy level 4, which quantizes "
        "activations to int8 in blocks of 32",
        remedy="told in the report; session.qdq_matmulnbits_accuracy_level=0 keeps 4 bits exact",
        source=SEEN,
    ),
    Trap(
        id="dynamic-bias-in-qdq",
        kernels=("matmul-dynamic",),
        condition="bias-in-qdq",
        effect="MatMulAddFusion makes a Gemm of it, which ends as MatMulNBits: quantized twice",
        remedy="MatMulAddFusion is switched off, or the final operators are emitted",
        source=SEEN,
    ),
    Trap(
        id="x64-quant-precision",
        kernels=("matmul-*", "conv-static"),
        condition="vnni",
        effect="session.x64quantprecision=1 turns weights into u8: 6 times slower, and no overflow "
        "to avoid with VNNI or AMX",
        remedy="the option is never set",
        source="probed on onnxruntime 1.31.1 with AMX; with VNNI " + READ,
    ),
    Trap(
        id="static-bias-in-qdq",
        kernels=("matmul-static",),
        condition="bias-in-qdq",
        effect="MatMul + float bias without a QuantizeLinear behind it is not fused: a float Gemm, "
        "and DequantizeLinear of the weight in every run",
        remedy="MatMulAddFusion is switched off, or the bias is an int32 DequantizeLinear",
        source=SEEN,
    ),
    Trap(
        id="signed-activations",
        kernels=("matmul-static", "matmul-static-u8", "conv-static"),
        condition="always",
        effect="s8 activations run in scalar code on x86: 0.1 to 0.2 of the speed of float",
        remedy="activations are u8 on x86",
        source=SEEN,
    ),
    Trap(
        id="unsigned-weights",
        kernels=("matmul-static", "matmul-static-u8", "matmul-dynamic", "conv-static"),
        condition="always",
        effect="u8 weights have no VNNI or AMX kernel: the speed of float",
        remedy="weights are s8",
        source=SEEN,
    ),
    Trap(
        id="conv-integer",
        kernels=("conv-static",),
        condition="always",
        effect="ConvInteger does not pack its weight: 0.15 of the speed of float",
        remedy="dynamic convolutions stay in float",
        source=SEEN,
    ),
    Trap(
        id="qlinear-softmax",
        kernels=("*",),
        condition="always",
        effect="QLinearSoftmax takes 6.5 times as long as Softmax",
        remedy="Softmax stays in float: there is no row for it",
        source=SEEN,
    ),
    Trap(
        id="skip-layer-norm",
        kernels=("*",),
        condition="always",
        effect="SkipLayerNormalization takes 6.8 times as long as Add and LayerNormalization",
        remedy="the fusion is switched off in the session options of the artifact",
        source=SEEN,
    ),
    Trap(
        id="bias-gelu",
        kernels=("*",),
        condition="always",
        effect="BiasGelu takes 1.2 times as long as Add and Gelu",
        remedy="the fusion is switched off in the session options of the artifact",
        source=SEEN,
    ),
    Trap(
        id="nbits-accuracy-level",
        kernels=("matmul-weight",),
        condition="always",
        effect="MatMulNBits with the default accuracy level 0 is 10 to 16 times slower than float "
        "for 8 and 2 bits",
        remedy="accuracy_level=4 is emitted",
        source=SEEN,
    ),
    Trap(
        id="nbits-float-zero-point",
        kernels=("matmul-weight",),
        condition="always",
        effect="MatMulNBits with a float zero point is 15 times slower than float",
        remedy="zero points are packed integers",
        source=SEEN,
    ),
    Trap(
        id="nbits-half-chain",
        kernels=("matmul-weight",),
        condition="always",
        effect="chains of float16 MatMulNBits, Cast and elementwise operators overwrite their own "
        "inputs below graph optimization level all: silently wrong",
        remedy="the kernel is given float32, between Casts that stand in the graph",
        source="probed on onnxruntime 1.31.1, levels disable to extended",
    ),
    Trap(
        id="dequantized-table",
        kernels=("gather-weight",),
        condition="form-qdq",
        effect="DequantizeLinear before Gather dequantizes the whole table in every run: 25 times "
        "slower",
        remedy="rows are gathered as int8 and then scaled",
        source=SEEN,
    ),
    Trap(
        id="float8-relu",
        kernels=(
            "matmul-static-e4m3",
            "matmul-static-e5m2",
            "conv-static-e4m3",
            "conv-static-e5m2",
        ),
        condition="always",
        effect="a Relu in front of a QuantizeLinear with a zero point of 8-bit floats is dropped, "
        "as if they were unsigned: silently wrong",
        remedy="from opset 21 on QuantizeLinear names its type by an attribute and has no zero "
        "point; before, ReluQuantRewrite is switched off in the artifact's session options",
        source=SEEN,
    ),
    Trap(
        id="float8-fused",
        kernels=("matmul-static-e4m3", "matmul-static-e5m2"),
        condition="always",
        effect="DequantizeLinear of 8-bit floats and MatMul become MatMulIntegerToFloat, which "
        "does not take them: the model does not load",
        remedy="session.disable_quant_qdq=1 in the session options of the artifact",
        source=SEEN,
        mended="1.32.0",
    ),
    Trap(
        id="last-axis-quantize",
        kernels=("*",),
        condition="always",
        effect="QuantizeLinear with scales along the last axis takes 42 ns per element, not 0.2",
        remedy="activations have one scale per tensor, or are scaled by Mul before",
        source=SEEN,
    ),
)
