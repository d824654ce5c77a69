"""AVX2 without VNNI: derived, not measured.

Float is that of the AMX table times 1.8 (half the vector width). An 8-bit product there takes
three instructions for 32 multiply-accumulates (vpmaddubsw, vpmaddwd, vpaddd) against one for 8 in
float, hence 1.4 times float at many rows, and 2.5 times at one row, where memory decides.
`qcompile probe` measures the real ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.targets.schema import Cost

__all__ = ["COSTS"]

COSTS: Mapping[str, Cost] = {
    "float": Cost(fixed_us=1.95, per_element_ns=0.192),
    "float.MatMul": Cost(
        fixed_us=1.5,
        per_mac_ns=(
            (1, 0.146),
            (4, 0.0432),
            (8, 0.027),
            (16, 0.0189),
            (32, 0.0153),
            (64, 0.0135),
            (128, 0.0126),
            (1024, 0.0131),
        ),
    ),
    "float.MatMul/batched": Cost(
        fixed_us=2.6,
        per_mac_ns=((1, 0.115), (32, 0.0245), (128, 0.0173), (1024, 0.0144)),
        per_element_ns=0.0384,
    ),
    "float.Gemm": Cost(
        fixed_us=1.5,
        per_mac_ns=(
            (1, 0.146),
            (4, 0.0432),
            (8, 0.027),
            (16, 0.0189),
            (32, 0.0153),
            (64, 0.0135),
            (128, 0.0126),
            (1024, 0.0131),
        ),
    ),
    "float.Attention": Cost(
        fixed_us=15.6,
        per_mac_ns=((1, 0.115), (32, 0.0245), (128, 0.0173), (1024, 0.0144)),
        per_element_ns=0.288,
    ),
    "float.Conv": Cost(
        fixed_us=3, per_mac_ns=((64, 0.0144), (1024, 0.0124), (4096, 0.0131)), per_element_ns=0.036
    ),
    "float.Conv/dense": Cost(fixed_us=3, per_mac_ns=((64, 0.0144), (1024, 0.0122), (4096, 0.0131))),
    "float.Conv/pointwise": Cost(
        fixed_us=3, per_mac_ns=((64, 0.0119), (1024, 0.0119), (4096, 0.0126)), per_element_ns=0.228
    ),
    "float.Conv/depthwise": Cost(fixed_us=3, per_mac_ns=((1024, 0.0225),), per_element_ns=0.24),
    "float.Conv/stem": Cost(fixed_us=3, per_mac_ns=((1024, 0.0144),), per_element_ns=0.072),
    "float.ConvTranspose": Cost(fixed_us=6.5, per_mac_ns=((1024, 0.023),), per_element_ns=0.576),
    "float.LayerNormalization": Cost(fixed_us=2, per_element_ns=0.384),
    "float.RMSNormalization": Cost(fixed_us=2, per_element_ns=0.209),
    "float.Softmax": Cost(fixed_us=2.5, per_element_ns=0.312),
    "float.Gelu": Cost(fixed_us=3.5, per_element_ns=0.408),
    "float.Add": Cost(fixed_us=1.5, per_element_ns=0.184),
    "float.Mul": Cost(fixed_us=1.5, per_element_ns=0.184),
    "float.Sub": Cost(fixed_us=1.3, per_element_ns=0.115),
    "float.Div": Cost(fixed_us=2.6, per_element_ns=0.173),
    "float.Sigmoid": Cost(fixed_us=2.5, per_element_ns=0.24),
    "float.Tanh": Cost(fixed_us=2.86, per_element_ns=0.23),
    "float.Erf": Cost(fixed_us=3.51, per_element_ns=0.326),
    "float.HardSwish": Cost(fixed_us=2.21, per_element_ns=0.259),
    "float.HardSigmoid": Cost(fixed_us=1.82, per_element_ns=0.108),
    "float.Swish": Cost(fixed_us=3.51, per_element_ns=0.434),
    "float.Relu": Cost(fixed_us=1.5, per_element_ns=0.196),
    "float.LeakyRelu": Cost(fixed_us=1.43, per_element_ns=0.192),
    "float.Clip": Cost(fixed_us=1.3, per_element_ns=0.0806),
    "float.MaxPool": Cost(fixed_us=2.6, per_element_ns=0.23),
    "float.AveragePool": Cost(fixed_us=2.6, per_element_ns=0.672),
    "float.GlobalAveragePool": Cost(fixed_us=2.6, per_element_ns=0.125),
    "float.Concat": Cost(fixed_us=1.56, per_element_ns=0.154),
    "float.Transpose": Cost(fixed_us=3, per_element_ns=0.336),
    "float.Split": Cost(fixed_us=1.43, per_element_ns=0.119),
    "float.Resize": Cost(fixed_us=3.9, per_element_ns=0.576),
    "float.Gather": Cost(fixed_us=1.95, per_element_ns=0.115),
    "float.Slice": Cost(fixed_us=1.95, per_element_ns=0.154),
    "float.ReduceMean": Cost(fixed_us=1.95, per_element_ns=0.0768),
    "float.ReduceMax": Cost(fixed_us=1.43, per_element_ns=0.0576),
    "carry.MaxPool": Cost(fixed_us=2.6, per_element_ns=0.096),
    "carry.Transpose": Cost(fixed_us=3, per_element_ns=0.336),
    "carry.Concat": Cost(fixed_us=1.56, per_element_ns=0.0326),
    "carry.Resize": Cost(fixed_us=3.9, per_element_ns=0.576),
    "carry.Split": Cost(fixed_us=1.43, per_element_ns=0.0576),
    "carry.Slice": Cost(fixed_us=1.95, per_element_ns=0.0576),
    "carry.Gather": Cost(fixed_us=1.95, per_element_ns=0.096),
    "matmul-static": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0584),
            (4, 0.0222),
            (8, 0.0138),
            (16, 0.0135),
            (32, 0.0109),
            (64, 0.00964),
            (128, 0.009),
            (1024, 0.00936),
        ),
    ),
    "matmul-static-u8": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0584),
            (4, 0.0222),
            (8, 0.0138),
            (16, 0.0135),
            (32, 0.0109),
            (64, 0.00964),
            (128, 0.009),
            (1024, 0.00936),
        ),
    ),
    "matmul-dynamic": Cost(
        fixed_us=3.5,
        per_mac_ns=(
            (1, 0.0584),
            (4, 0.0222),
            (8, 0.0138),
            (16, 0.0135),
            (32, 0.0109),
            (64, 0.00964),
            (128, 0.009),
            (1024, 0.00936),
        ),
        per_element_ns=0.024,
    ),
    "matmul-token": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0584),
            (4, 0.0222),
            (8, 0.0138),
            (16, 0.0135),
            (32, 0.0109),
            (64, 0.00964),
            (128, 0.009),
            (1024, 0.00936),
        ),
        per_element_ns=0.12,
    ),
    "matmul-weight": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0487),
            (4, 0.0227),
            (8, 0.0142),
            (16, 0.0236),
            (32, 0.0191),
            (64, 0.0169),
            (128, 0.0158),
            (1024, 0.0164),
        ),
    ),
    "matmul-weight/8": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0487),
            (4, 0.0227),
            (8, 0.0142),
            (16, 0.0236),
            (32, 0.0191),
            (64, 0.0169),
            (128, 0.0158),
            (1024, 0.0164),
        ),
    ),
    "matmul-weight/4": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0365),
            (4, 0.0184),
            (8, 0.0115),
            (16, 0.027),
            (32, 0.0219),
            (64, 0.0193),
            (128, 0.018),
            (1024, 0.0187),
        ),
    ),
    "matmul-weight/2": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0487),
            (4, 0.0247),
            (8, 0.0154),
            (16, 0.0378),
            (32, 0.0306),
            (64, 0.027),
            (128, 0.0252),
            (1024, 0.0262),
        ),
    ),
    "gather-weight": Cost(fixed_us=6.5, per_element_ns=0.202),
    # 1024 rows of 384: 397 us in 8 bits, 948 us in 4 (one thread of the AMX machine)
    "gather-weight-blocks": Cost(fixed_us=6.5, per_element_ns=1.2),
    "conv-static": Cost(
        fixed_us=5,
        per_mac_ns=((64, 0.0103), (1024, 0.00886), (4096, 0.00936)),
        per_element_ns=0.0277,
    ),
    "conv-static/dense": Cost(
        fixed_us=5, per_mac_ns=((64, 0.0103), (1024, 0.00871), (4096, 0.00936))
    ),
    "conv-static/pointwise": Cost(
        fixed_us=5, per_mac_ns=((64, 0.0085), (1024, 0.0085), (4096, 0.009)), per_element_ns=0.175
    ),
    "conv-static/depthwise": Cost(fixed_us=5, per_mac_ns=((1024, 0.0321),), per_element_ns=0.343),
    "conv-static/stem": Cost(fixed_us=5, per_mac_ns=((1024, 0.024),), per_element_ns=0.12),
    "add-static": Cost(fixed_us=2, per_element_ns=0.101),
    "mul-static": Cost(fixed_us=2.86, per_element_ns=0.199),
    "sigmoid-static": Cost(fixed_us=2.5, per_element_ns=0.17),
    "leaky-relu-static": Cost(fixed_us=2.5, per_element_ns=0.17),
    "average-pool-static": Cost(fixed_us=3.9, per_element_ns=1.38),
    "global-average-pool-static": Cost(fixed_us=2.6, per_element_ns=0.0307),
    "concat-static": Cost(fixed_us=1.95, per_element_ns=0.0326),
    "quantize": Cost(fixed_us=1.3, per_element_ns=0.145),
    "layout": Cost(per_element_ns=0.3),  # ReorderOutput and Transpose, EfficientNet-Lite0
    "dequantize": Cost(fixed_us=1.3, per_element_ns=0.12),
    "quantize-dynamic": Cost(fixed_us=2, per_element_ns=0.246),
    "quantize-token": Cost(fixed_us=6.5, per_element_ns=0.54),
}
