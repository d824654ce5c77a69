"""Two threads of an Intel Xeon (family 6 model 207, 2.1 GHz, AMX-INT8), onnxruntime 1.31.1.

Times of one thread, measured by operator and shape, divided by the 1.9 that two threads of an idle
machine gave for all forms; operators that were not measured there have the times of the
AVX512-VNNI table times 1.6, the ratio of the two machines on the operators measured on both.
"""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.targets.schema import Cost

__all__ = ["COSTS"]

COSTS: Mapping[str, Cost] = {
    "float": Cost(fixed_us=1.95, per_element_ns=0.16),
    "float.MatMul": Cost(
        fixed_us=1.5,
        per_mac_ns=(
            (1, 0.081),
            (4, 0.024),
            (8, 0.015),
            (16, 0.0105),
            (32, 0.0085),
            (64, 0.0075),
            (128, 0.007),
            (1024, 0.0073),
        ),
    ),
    "float.MatMul/batched": Cost(
        fixed_us=2.6,
        per_mac_ns=((1, 0.064), (32, 0.0136), (128, 0.0096), (1024, 0.008)),
        per_element_ns=0.032,
    ),
    "float.Gemm": Cost(
        fixed_us=1.5,
        per_mac_ns=(
            (1, 0.081),
            (4, 0.024),
            (8, 0.015),
            (16, 0.0105),
            (32, 0.0085),
            (64, 0.0075),
            (128, 0.007),
            (1024, 0.0073),
        ),
    ),
    "float.Attention": Cost(
        fixed_us=15.6,
        per_mac_ns=((1, 0.064), (32, 0.0136), (128, 0.0096), (1024, 0.008)),
        per_element_ns=0.24,
    ),
    "float.Conv": Cost(
        fixed_us=3, per_mac_ns=((64, 0.008), (1024, 0.0069), (4096, 0.0073)), per_element_ns=0.03
    ),
    "float.Conv/dense": Cost(fixed_us=3, per_mac_ns=((64, 0.008), (1024, 0.0068), (4096, 0.0073))),
    "float.Conv/pointwise": Cost(
        fixed_us=3, per_mac_ns=((64, 0.0066), (1024, 0.0066), (4096, 0.007)), per_element_ns=0.19
    ),
    "float.Conv/depthwise": Cost(fixed_us=3, per_mac_ns=((1024, 0.0125),), per_element_ns=0.2),
    "float.Conv/stem": Cost(fixed_us=3, per_mac_ns=((1024, 0.008),), per_element_ns=0.06),
    "float.ConvTranspose": Cost(fixed_us=6.5, per_mac_ns=((1024, 0.0128),), per_element_ns=0.48),
    "float.LayerNormalization": Cost(fixed_us=2, per_element_ns=0.32),
    "float.RMSNormalization": Cost(fixed_us=2, per_element_ns=0.174),
    "float.Softmax": Cost(fixed_us=2.5, per_element_ns=0.26),
    "float.Gelu": Cost(fixed_us=3.5, per_element_ns=0.34),
    "float.Add": Cost(fixed_us=1.5, per_element_ns=0.153),
    "float.Mul": Cost(fixed_us=1.5, per_element_ns=0.153),
    "float.Sub": Cost(fixed_us=1.3, per_element_ns=0.096),
    "float.Div": Cost(fixed_us=2.6, per_element_ns=0.144),
    "float.Sigmoid": Cost(fixed_us=2.5, per_element_ns=0.2),
    "float.Tanh": Cost(fixed_us=2.86, per_element_ns=0.192),
    "float.Erf": Cost(fixed_us=3.51, per_element_ns=0.272),
    "float.HardSwish": Cost(fixed_us=2.21, per_element_ns=0.216),
    "float.HardSigmoid": Cost(fixed_us=1.82, per_element_ns=0.0896),
    "float.Swish": Cost(fixed_us=3.51, per_element_ns=0.362),
    "float.Relu": Cost(fixed_us=1.5, per_element_ns=0.163),
    "float.LeakyRelu": Cost(fixed_us=1.43, per_element_ns=0.16),
    "float.Clip": Cost(fixed_us=1.3, per_element_ns=0.0672),
    "float.MaxPool": Cost(fixed_us=2.6, per_element_ns=0.192),
    "float.AveragePool": Cost(fixed_us=2.6, per_element_ns=0.56),
    "float.GlobalAveragePool": Cost(fixed_us=2.6, per_element_ns=0.104),
    "float.Concat": Cost(fixed_us=1.56, per_element_ns=0.128),
    "float.Transpose": Cost(fixed_us=3, per_element_ns=0.28),
    "float.Split": Cost(fixed_us=1.43, per_element_ns=0.0992),
    "float.Resize": Cost(fixed_us=3.9, per_element_ns=0.48),
    "float.Gather": Cost(fixed_us=1.95, per_element_ns=0.096),
    "float.Slice": Cost(fixed_us=1.95, per_element_ns=0.128),
    "float.ReduceMean": Cost(fixed_us=1.95, per_element_ns=0.064),
    "float.ReduceMax": Cost(fixed_us=1.43, per_element_ns=0.048),
    "carry.MaxPool": Cost(fixed_us=2.6, per_element_ns=0.08),
    "carry.Transpose": Cost(fixed_us=3, per_element_ns=0.28),
    "carry.Concat": Cost(fixed_us=1.56, per_element_ns=0.0272),
    "carry.Resize": Cost(fixed_us=3.9, per_element_ns=0.48),
    "carry.Split": Cost(fixed_us=1.43, per_element_ns=0.048),
    "carry.Slice": Cost(fixed_us=1.95, per_element_ns=0.048),
    "carry.Gather": Cost(fixed_us=1.95, per_element_ns=0.08),
    "matmul-static": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0229),
            (4, 0.0075),
            (8, 0.00375),
            (16, 0.0024),
            (32, 0.00125),
            (64, 0.00115),
            (128, 0.00105),
            (1024, 0.00092),
        ),
    ),
    "matmul-static-u8": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0229),
            (4, 0.0075),
            (8, 0.00375),
            (16, 0.0024),
            (32, 0.00125),
            (64, 0.00115),
            (128, 0.00105),
            (1024, 0.00092),
        ),
    ),
    "matmul-dynamic": Cost(
        fixed_us=3.5,
        per_mac_ns=(
            (1, 0.0238),
            (4, 0.0075),
            (8, 0.00375),
            (16, 0.0024),
            (32, 0.00125),
            (64, 0.00117),
            (128, 0.00112),
            (1024, 0.001),
        ),
        per_element_ns=0.02,
    ),
    "matmul-token": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0229),
            (4, 0.0075),
            (8, 0.00375),
            (16, 0.0024),
            (32, 0.00125),
            (64, 0.00115),
            (128, 0.00105),
            (1024, 0.00092),
        ),
        per_element_ns=0.1,
    ),
    "matmul-weight": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0208),
            (4, 0.0096),
            (8, 0.0075),
            (16, 0.0082),
            (32, 0.0066),
            (64, 0.0058),
            (128, 0.0054),
            (1024, 0.0056),
        ),
    ),
    "matmul-weight/8": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0208),
            (4, 0.0096),
            (8, 0.0075),
            (16, 0.0082),
            (32, 0.0066),
            (64, 0.0058),
            (128, 0.0054),
            (1024, 0.0056),
        ),
    ),
    "matmul-weight/4": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0104),
            (4, 0.0083),
            (8, 0.0081),
            (16, 0.009),
            (32, 0.0075),
            (64, 0.0069),
            (128, 0.0064),
            (1024, 0.0067),
        ),
    ),
    "matmul-weight/2": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.009),
            (4, 0.0085),
            (8, 0.0085),
            (16, 0.0092),
            (32, 0.008),
            (64, 0.0074),
            (128, 0.0069),
            (1024, 0.0072),
        ),
    ),
    "gather-weight": Cost(fixed_us=6.5, per_element_ns=0.168),
    # 1024 rows of 384: 397 us in 8 bits, 948 us in 4 (one thread of the AMX machine)
    "gather-weight-blocks": Cost(fixed_us=6.5, per_element_ns=1.2),
    "conv-static": Cost(
        fixed_us=5, per_mac_ns=((64, 0.0022), (1024, 0.0016), (4096, 0.0018)), per_element_ns=0.05
    ),
    "conv-static/dense": Cost(
        fixed_us=5,
        per_mac_ns=((64, 0.00227), (1024, 0.00157), (4096, 0.00178)),
        per_element_ns=0.01,
    ),
    "conv-static/pointwise": Cost(
        fixed_us=6, per_mac_ns=((64, 0.0013), (1024, 0.0014), (4096, 0.0014)), per_element_ns=0.09
    ),
    "conv-static/depthwise": Cost(fixed_us=5, per_mac_ns=((1024, 0.015),), per_element_ns=0.27),
    "conv-static/stem": Cost(fixed_us=5, per_mac_ns=((1024, 0.0052),), per_element_ns=0.43),
    "add-static": Cost(fixed_us=2, per_element_ns=0.084),
    "mul-static": Cost(fixed_us=2.86, per_element_ns=0.166),
    "sigmoid-static": Cost(fixed_us=2.5, per_element_ns=0.142),
    "leaky-relu-static": Cost(fixed_us=2.5, per_element_ns=0.142),
    "average-pool-static": Cost(fixed_us=3.9, per_element_ns=1.15),
    "global-average-pool-static": Cost(fixed_us=2.6, per_element_ns=0.0256),
    "concat-static": Cost(fixed_us=1.95, per_element_ns=0.0272),
    "quantize": Cost(fixed_us=1.3, per_element_ns=0.121),
    "layout": Cost(per_element_ns=0.48),  # ReorderOutput and Transpose, EfficientNet-Lite0
    "dequantize": Cost(fixed_us=1.3, per_element_ns=0.1),
    "quantize-dynamic": Cost(fixed_us=2, per_element_ns=0.205),
    "quantize-token": Cost(fixed_us=6.5, per_element_ns=0.45),
}
