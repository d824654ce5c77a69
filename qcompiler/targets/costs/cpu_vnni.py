"""Two threads of an AMD EPYC (Zen 5, AVX512-VNNI, 2.6 GHz, 1 MB L2 per core), onnxruntime 1.31.1.

Fitted with :func:`qcompiler.targets.fit.fit_cost` to lower quartiles of interleaved runs, one
process per model: linear layers of 384 to 4096 features at 1 to 1024 rows (predictions within 20 %
of all measurements), convolutions of EfficientNet and ResNet shapes at batch 1 and 8 by the
runtime's profile, without the layout conversions at the ends of a chain (dense within 13 %,
pointwise within 33 %, depthwise within a factor of 2: its time depends on the cache), elementwise
operators on 12 thousand to 1.6 million elements. Pools, Concat, Gather, 2-bit weights and
attention are from single runs relative to those.
"""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.targets.schema import Cost

__all__ = ["COSTS"]

COSTS: Mapping[str, Cost] = {
    "float": Cost(fixed_us=1.5, per_element_ns=0.1),
    "float.MatMul": Cost(
        fixed_us=0.888,
        per_mac_ns=((1, 0.0238), (8, 0.00573), (32, 0.0046), (128, 0.00477), (1024, 0.00449)),
    ),
    "float.MatMul/batched": Cost(
        fixed_us=2,
        per_mac_ns=((1, 0.04), (32, 0.0085), (128, 0.006), (1024, 0.005)),
        per_element_ns=0.02,
    ),
    "float.Gemm": Cost(
        fixed_us=0.888,
        per_mac_ns=((1, 0.0238), (8, 0.00573), (32, 0.0046), (128, 0.00477), (1024, 0.00449)),
    ),
    "float.Attention": Cost(
        fixed_us=12,
        per_mac_ns=((1, 0.04), (32, 0.0085), (128, 0.006), (1024, 0.005)),
        per_element_ns=0.15,
    ),
    "float.Conv": Cost(
        fixed_us=6.53,
        per_mac_ns=((64, 0.00418), (1024, 0.0042), (8192, 0.0042)),
        per_element_ns=0.0176,
    ),
    "float.Conv/dense": Cost(
        fixed_us=0,
        per_mac_ns=((64, 0.00456), (1024, 0.0041), (8192, 0.00405)),
        per_element_ns=0.0846,
    ),
    "float.Conv/pointwise": Cost(
        fixed_us=8.18,
        per_mac_ns=((64, 0.00388), (1024, 0.00421), (8192, 0.00436)),
        per_element_ns=0.0132,
    ),
    "float.Conv/depthwise": Cost(
        fixed_us=3.45, per_mac_ns=((64, 0.015), (1024, 0.0074), (8192, 0.009), (25088, 0.016))
    ),
    "float.Conv/stem": Cost(fixed_us=0, per_mac_ns=((1024, 0.00408),), per_element_ns=0.0331),
    "float.ConvTranspose": Cost(fixed_us=5, per_mac_ns=((1024, 0.008),), per_element_ns=0.3),
    "float.LayerNormalization": Cost(fixed_us=1.3, per_element_ns=0.2),
    "float.RMSNormalization": Cost(fixed_us=1.6, per_element_ns=0.12),
    "float.Softmax": Cost(fixed_us=2.2, per_element_ns=0.125),
    "float.Gelu": Cost(fixed_us=2.9, per_element_ns=0.216),
    "float.Add": Cost(fixed_us=1, per_element_ns=0.066),
    "float.Mul": Cost(fixed_us=1.1, per_element_ns=0.05),
    "float.Sub": Cost(fixed_us=1, per_element_ns=0.06),
    "float.Div": Cost(fixed_us=2, per_element_ns=0.09),
    "float.Sigmoid": Cost(fixed_us=2.3, per_element_ns=0.132),
    "float.Tanh": Cost(fixed_us=2.2, per_element_ns=0.12),
    "float.Erf": Cost(fixed_us=2.7, per_element_ns=0.17),
    "float.HardSwish": Cost(fixed_us=1.7, per_element_ns=0.135),
    "float.HardSigmoid": Cost(fixed_us=1.4, per_element_ns=0.056),
    "float.Swish": Cost(fixed_us=2.7, per_element_ns=0.226),
    "float.Relu": Cost(fixed_us=1.1, per_element_ns=0.041),
    "float.LeakyRelu": Cost(fixed_us=1.1, per_element_ns=0.1),
    "float.Clip": Cost(fixed_us=1, per_element_ns=0.042),
    "float.MaxPool": Cost(fixed_us=2, per_element_ns=0.12),
    "float.AveragePool": Cost(fixed_us=2, per_element_ns=0.35),
    "float.GlobalAveragePool": Cost(fixed_us=2, per_element_ns=0.065),
    "float.Concat": Cost(fixed_us=1.2, per_element_ns=0.08),
    "float.Transpose": Cost(fixed_us=3, per_element_ns=0.156),
    "float.Split": Cost(fixed_us=1.1, per_element_ns=0.062),
    "float.Resize": Cost(fixed_us=3, per_element_ns=0.3),
    "float.Gather": Cost(fixed_us=1.5, per_element_ns=0.06),
    "float.Slice": Cost(fixed_us=1.5, per_element_ns=0.08),
    "float.ReduceMean": Cost(fixed_us=1.5, per_element_ns=0.04),
    "float.ReduceMax": Cost(fixed_us=1.1, per_element_ns=0.03),
    "carry.MaxPool": Cost(fixed_us=2, per_element_ns=0.05),
    "carry.Transpose": Cost(fixed_us=3, per_element_ns=0.15),
    "carry.Concat": Cost(fixed_us=1.2, per_element_ns=0.017),
    "carry.Resize": Cost(fixed_us=3, per_element_ns=0.3),
    "carry.Split": Cost(fixed_us=1.1, per_element_ns=0.03),
    "carry.Slice": Cost(fixed_us=1.5, per_element_ns=0.03),
    "carry.Gather": Cost(fixed_us=1.5, per_element_ns=0.05),
    "matmul-static": Cost(
        fixed_us=1.69,
        per_mac_ns=((1, 0.00748), (8, 0.00163), (32, 0.00118), (128, 0.00123), (1024, 0.00103)),
        per_element_ns=0.119,
    ),
    "matmul-static-u8": Cost(
        fixed_us=1.49,
        per_mac_ns=((1, 0.00668), (8, 0.00151), (32, 0.00116), (128, 0.0012), (1024, 0.00103)),
        per_element_ns=0.112,
    ),
    "matmul-dynamic": Cost(
        fixed_us=1.96,
        per_mac_ns=((1, 0.00727), (8, 0.0016), (32, 0.00114), (128, 0.00117), (1024, 0.000948)),
        per_element_ns=0.205,
    ),
    "matmul-token": Cost(
        fixed_us=1.69,
        per_mac_ns=((1, 0.00748), (8, 0.00163), (32, 0.00118), (128, 0.00123), (1024, 0.00103)),
        per_element_ns=0.179,
    ),
    "matmul-weight": Cost(
        fixed_us=1.56,
        per_mac_ns=((1, 0.00505), (8, 0.00227), (32, 0.0021), (128, 0.00257), (1024, 0.00226)),
        per_element_ns=0.723,
    ),
    "matmul-weight/8": Cost(
        fixed_us=1.56,
        per_mac_ns=((1, 0.00505), (8, 0.00227), (32, 0.0021), (128, 0.00257), (1024, 0.00226)),
        per_element_ns=0.723,
    ),
    "matmul-weight/4": Cost(
        fixed_us=1.59,
        per_mac_ns=((1, 0.00297), (8, 0.00229), (32, 0.00221), (128, 0.00261), (1024, 0.00236)),
        per_element_ns=0.683,
    ),
    "matmul-weight/2": Cost(
        fixed_us=1.6,
        per_mac_ns=((1, 0.003), (8, 0.0028), (32, 0.0028), (128, 0.0033), (1024, 0.003)),
        per_element_ns=0.72,
    ),
    "gather-weight": Cost(fixed_us=5, per_element_ns=0.105),
    # 1024 rows of 384: 397 us in 8 bits, 948 us in 4 (one thread of the AMX machine)
    "gather-weight-blocks": Cost(fixed_us=6.5, per_element_ns=1.2),
    "conv-static": Cost(
        fixed_us=4.58,
        per_mac_ns=((64, 0.00129), (1024, 0.00106), (8192, 0.00103)),
        per_element_ns=0.0221,
    ),
    "conv-static/dense": Cost(
        fixed_us=6.46,
        per_mac_ns=((64, 0.00122), (1024, 0.00109), (8192, 0.00103)),
        per_element_ns=0.0295,
    ),
    "conv-static/pointwise": Cost(
        fixed_us=4.01,
        per_mac_ns=((64, 0.00139), (1024, 0.000996), (8192, 0.000931)),
        per_element_ns=0.0249,
    ),
    "conv-static/depthwise": Cost(
        fixed_us=10.3, per_mac_ns=((64, 0.00885), (1024, 0.0074), (8192, 0.0092), (25088, 0.0112))
    ),
    "conv-static/stem": Cost(fixed_us=8.6, per_mac_ns=((1024, 0.00165),), per_element_ns=0.06),
    "add-static": Cost(fixed_us=1.6, per_element_ns=0.055),
    "mul-static": Cost(fixed_us=2.2, per_element_ns=0.104),
    "sigmoid-static": Cost(fixed_us=2.5, per_element_ns=0.138),
    "leaky-relu-static": Cost(fixed_us=2.5, per_element_ns=0.138),
    "average-pool-static": Cost(fixed_us=3, per_element_ns=0.72),
    "global-average-pool-static": Cost(fixed_us=2, per_element_ns=0.016),
    "concat-static": Cost(fixed_us=1.5, per_element_ns=0.017),
    "quantize": Cost(fixed_us=1, per_element_ns=0.034),
    "layout": Cost(per_element_ns=0.3),  # ReorderOutput and Transpose, EfficientNet-Lite0
    "dequantize": Cost(fixed_us=0.6, per_element_ns=0.1),
    "quantize-dynamic": Cost(fixed_us=1.5, per_element_ns=0.058),
    "quantize-token": Cost(fixed_us=5.5, per_element_ns=0.21),
}
