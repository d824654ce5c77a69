"""Two threads of an AMD EPYC (Zen 5, AVX512-VNNI, 2.6 GHz, 1 MB L2 per core), onnxruntime 1.31.1.

Fitted with :func:`qcompiler.targets.fit.fit_cost` to medians of interleaved runs, one process per
model: linear layers of 384 to 4096 features at 1 to 1024 rows, convolutions of EfficientNet and
ResNet shapes at batch 1 and 8, elementwise operators on 12 thousand to 1.6 million elements.
"""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.targets.schema import Cost

__all__ = ["COSTS"]

COSTS: Mapping[str, Cost] = {
    "float": Cost(fixed_us=1.5, per_element_ns=0.1),
    "float.MatMul": Cost(
        fixed_us=1,
        per_mac_ns=(
            (1, 0.0313),
            (4, 0.0121),
            (8, 0.0074),
            (32, 0.0052),
            (128, 0.0044),
            (1024, 0.0045),
        ),
    ),
    "float.MatMul/batched": Cost(
        fixed_us=2,
        per_mac_ns=((1, 0.04), (32, 0.0085), (128, 0.006), (1024, 0.005)),
        per_element_ns=0.02,
    ),
    "float.Gemm": Cost(
        fixed_us=1,
        per_mac_ns=(
            (1, 0.0313),
            (4, 0.0121),
            (8, 0.0074),
            (32, 0.0052),
            (128, 0.0044),
            (1024, 0.0045),
        ),
    ),
    "float.Attention": Cost(
        fixed_us=12,
        per_mac_ns=((1, 0.04), (32, 0.0085), (128, 0.006), (1024, 0.005)),
        per_element_ns=0.15,
    ),
    "float.Conv": Cost(
        fixed_us=2, per_mac_ns=((64, 0.0053), (1024, 0.0043), (4096, 0.0044)), per_element_ns=0.02
    ),
    "float.Conv/dense": Cost(fixed_us=2, per_mac_ns=((64, 0.0052), (1024, 0.0041), (4096, 0.0044))),
    "float.Conv/pointwise": Cost(
        fixed_us=2.3, per_mac_ns=((64, 0.004), (1024, 0.0039), (4096, 0.0043)), per_element_ns=0.118
    ),
    "float.Conv/depthwise": Cost(fixed_us=2, per_mac_ns=((1024, 0.0087),), per_element_ns=0.053),
    "float.Conv/stem": Cost(fixed_us=2, per_mac_ns=((1024, 0.0035),), per_element_ns=0.11),
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
    "float.AveragePool": Cost(fixed_us=2, per_element_ns=0.5),
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
        fixed_us=4.4,
        per_mac_ns=((1, 0.0072), (8, 0.00275), (32, 0.00163), (128, 0.0013), (1024, 0.0013)),
    ),
    "matmul-static-u8": Cost(
        fixed_us=3.5,
        per_mac_ns=((1, 0.0064), (8, 0.0024), (32, 0.00145), (128, 0.00128), (1024, 0.0013)),
    ),
    "matmul-dynamic": Cost(
        fixed_us=5.3,
        per_mac_ns=((1, 0.0066), (8, 0.0029), (32, 0.00153), (128, 0.00147), (1024, 0.00145)),
    ),
    "matmul-token": Cost(
        fixed_us=4.4,
        per_mac_ns=((1, 0.0072), (8, 0.00275), (32, 0.00163), (128, 0.0013), (1024, 0.0013)),
        per_element_ns=0.03,
    ),
    "matmul-weight": Cost(
        fixed_us=3.8,
        per_mac_ns=((1, 0.0052), (8, 0.0059), (32, 0.00425), (128, 0.004), (1024, 0.0044)),
    ),
    "matmul-weight/8": Cost(
        fixed_us=3.8,
        per_mac_ns=((1, 0.0052), (8, 0.0059), (32, 0.00425), (128, 0.004), (1024, 0.0044)),
    ),
    "matmul-weight/4": Cost(
        fixed_us=3.6,
        per_mac_ns=((1, 0.0032), (8, 0.0057), (32, 0.005), (128, 0.004), (1024, 0.0042)),
    ),
    "matmul-weight/2": Cost(
        fixed_us=3.6,
        per_mac_ns=((1, 0.0025), (8, 0.006), (32, 0.006), (128, 0.0055), (1024, 0.0055)),
    ),
    "gather-weight": Cost(fixed_us=5, per_element_ns=0.105),
    "conv-static": Cost(
        fixed_us=3, per_mac_ns=((64, 0.00147), (1024, 0.0011), (4096, 0.00143)), per_element_ns=0.03
    ),
    "conv-static/dense": Cost(
        fixed_us=3,
        per_mac_ns=((64, 0.00147), (1024, 0.00105), (4096, 0.00142)),
        per_element_ns=0.006,
    ),
    "conv-static/pointwise": Cost(
        fixed_us=4.4,
        per_mac_ns=((64, 0.00075), (1024, 0.00099), (4096, 0.00098)),
        per_element_ns=0.079,
    ),
    "conv-static/depthwise": Cost(fixed_us=3, per_mac_ns=((1024, 0.0096),), per_element_ns=0.089),
    "conv-static/stem": Cost(fixed_us=3.5, per_mac_ns=((1024, 0.005),), per_element_ns=0.25),
    "add-static": Cost(fixed_us=1.6, per_element_ns=0.055),
    "mul-static": Cost(fixed_us=2.2, per_element_ns=0.104),
    "sigmoid-static": Cost(fixed_us=2.5, per_element_ns=0.138),
    "leaky-relu-static": Cost(fixed_us=2.5, per_element_ns=0.138),
    "average-pool-static": Cost(fixed_us=3, per_element_ns=0.85),
    "global-average-pool-static": Cost(fixed_us=2, per_element_ns=0.016),
    "concat-static": Cost(fixed_us=1.5, per_element_ns=0.017),
    "quantize": Cost(fixed_us=1, per_element_ns=0.034),
    "dequantize": Cost(fixed_us=0.6, per_element_ns=0.1),
    "quantize-dynamic": Cost(fixed_us=1.5, per_element_ns=0.058),
    "quantize-token": Cost(fixed_us=5, per_element_ns=0.19),
}
