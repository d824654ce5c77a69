"""ARM64 with the dot product instructions: derived, not measured.

Float is that of the AMX table times 2.2 (vectors of 128 bits). SDOT does 16 multiply-accumulates
in the place of 4 in float, of which 2.8 times is assumed to be left at many rows.
`qcompile probe` measures the real ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.targets.schema import Cost

__all__ = ["COSTS"]

COSTS: Mapping[str, Cost] = {
    "float": Cost(fixed_us=1.95, per_element_ns=0.208),
    "float.MatMul": Cost(
        fixed_us=1.5,
        per_mac_ns=(
            (1, 0.178),
            (4, 0.0528),
            (8, 0.033),
            (16, 0.0231),
            (32, 0.0187),
            (64, 0.0165),
            (128, 0.0154),
            (1024, 0.0161),
        ),
    ),
    "float.MatMul/batched": Cost(
        fixed_us=2.6,
        per_mac_ns=((1, 0.141), (32, 0.0299), (128, 0.0211), (1024, 0.0176)),
        per_element_ns=0.0416,
    ),
    "float.Gemm": Cost(
        fixed_us=1.5,
        per_mac_ns=(
            (1, 0.178),
            (4, 0.0528),
            (8, 0.033),
            (16, 0.0231),
            (32, 0.0187),
            (64, 0.0165),
            (128, 0.0154),
            (1024, 0.0161),
        ),
    ),
    "float.Attention": Cost(
        fixed_us=15.6,
        per_mac_ns=((1, 0.141), (32, 0.0299), (128, 0.0211), (1024, 0.0176)),
        per_element_ns=0.312,
    ),
    "float.Conv": Cost(
        fixed_us=3, per_mac_ns=((64, 0.0176), (1024, 0.0152), (4096, 0.0161)), per_element_ns=0.039
    ),
    "float.Conv/dense": Cost(fixed_us=3, per_mac_ns=((64, 0.0176), (1024, 0.015), (4096, 0.0161))),
    "float.Conv/pointwise": Cost(
        fixed_us=3, per_mac_ns=((64, 0.0145), (1024, 0.0145), (4096, 0.0154)), per_element_ns=0.247
    ),
    "float.Conv/depthwise": Cost(fixed_us=3, per_mac_ns=((1024, 0.0275),), per_element_ns=0.26),
    "float.Conv/stem": Cost(fixed_us=3, per_mac_ns=((1024, 0.0176),), per_element_ns=0.078),
    "float.ConvTranspose": Cost(fixed_us=6.5, per_mac_ns=((1024, 0.0282),), per_element_ns=0.624),
    "float.LayerNormalization": Cost(fixed_us=2, per_element_ns=0.416),
    "float.RMSNormalization": Cost(fixed_us=2, per_element_ns=0.226),
    "float.Softmax": Cost(fixed_us=2.5, per_element_ns=0.338),
    "float.Gelu": Cost(fixed_us=3.5, per_element_ns=0.442),
    "float.Add": Cost(fixed_us=1.5, per_element_ns=0.199),
    "float.Mul": Cost(fixed_us=1.5, per_element_ns=0.199),
    "float.Sub": Cost(fixed_us=1.3, per_element_ns=0.125),
    "float.Div": Cost(fixed_us=2.6, per_element_ns=0.187),
    "float.Sigmoid": Cost(fixed_us=2.5, per_element_ns=0.26),
    "float.Tanh": Cost(fixed_us=2.86, per_element_ns=0.25),
    "float.Erf": Cost(fixed_us=3.51, per_element_ns=0.354),
    "float.HardSwish": Cost(fixed_us=2.21, per_element_ns=0.281),
    "float.HardSigmoid": Cost(fixed_us=1.82, per_element_ns=0.116),
    "float.Swish": Cost(fixed_us=3.51, per_element_ns=0.471),
    "float.Relu": Cost(fixed_us=1.5, per_element_ns=0.212),
    "float.LeakyRelu": Cost(fixed_us=1.43, per_element_ns=0.208),
    "float.Clip": Cost(fixed_us=1.3, per_element_ns=0.0874),
    "float.MaxPool": Cost(fixed_us=2.6, per_element_ns=0.25),
    "float.AveragePool": Cost(fixed_us=2.6, per_element_ns=0.728),
    "float.GlobalAveragePool": Cost(fixed_us=2.6, per_element_ns=0.135),
    "float.Concat": Cost(fixed_us=1.56, per_element_ns=0.166),
    "float.Transpose": Cost(fixed_us=3, per_element_ns=0.364),
    "float.Split": Cost(fixed_us=1.43, per_element_ns=0.129),
    "float.Resize": Cost(fixed_us=3.9, per_element_ns=0.624),
    "float.Gather": Cost(fixed_us=1.95, per_element_ns=0.125),
    "float.Slice": Cost(fixed_us=1.95, per_element_ns=0.166),
    "float.ReduceMean": Cost(fixed_us=1.95, per_element_ns=0.0832),
    "float.ReduceMax": Cost(fixed_us=1.43, per_element_ns=0.0624),
    "carry.MaxPool": Cost(fixed_us=2.6, per_element_ns=0.104),
    "carry.Transpose": Cost(fixed_us=3, per_element_ns=0.364),
    "carry.Concat": Cost(fixed_us=1.56, per_element_ns=0.0354),
    "carry.Resize": Cost(fixed_us=3.9, per_element_ns=0.624),
    "carry.Split": Cost(fixed_us=1.43, per_element_ns=0.0624),
    "carry.Slice": Cost(fixed_us=1.95, per_element_ns=0.0624),
    "carry.Gather": Cost(fixed_us=1.95, per_element_ns=0.104),
    "matmul-static": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0593),
            (4, 0.0182),
            (8, 0.0114),
            (16, 0.00825),
            (32, 0.00668),
            (64, 0.00589),
            (128, 0.0055),
            (1024, 0.00575),
        ),
    ),
    "matmul-static-u8": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0593),
            (4, 0.0182),
            (8, 0.0114),
            (16, 0.00825),
            (32, 0.00668),
            (64, 0.00589),
            (128, 0.0055),
            (1024, 0.00575),
        ),
    ),
    "matmul-dynamic": Cost(
        fixed_us=3.5,
        per_mac_ns=(
            (1, 0.0593),
            (4, 0.0182),
            (8, 0.0114),
            (16, 0.00825),
            (32, 0.00668),
            (64, 0.00589),
            (128, 0.0055),
            (1024, 0.00575),
        ),
        per_element_ns=0.026,
    ),
    "matmul-token": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0593),
            (4, 0.0182),
            (8, 0.0114),
            (16, 0.00825),
            (32, 0.00668),
            (64, 0.00589),
            (128, 0.0055),
            (1024, 0.00575),
        ),
        per_element_ns=0.13,
    ),
    "matmul-weight": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0593),
            (4, 0.0278),
            (8, 0.0174),
            (16, 0.0289),
            (32, 0.0234),
            (64, 0.0206),
            (128, 0.0192),
            (1024, 0.0201),
        ),
    ),
    "matmul-weight/8": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0593),
            (4, 0.0278),
            (8, 0.0174),
            (16, 0.0289),
            (32, 0.0234),
            (64, 0.0206),
            (128, 0.0192),
            (1024, 0.0201),
        ),
    ),
    "matmul-weight/4": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0445),
            (4, 0.0225),
            (8, 0.014),
            (16, 0.033),
            (32, 0.0267),
            (64, 0.0236),
            (128, 0.022),
            (1024, 0.023),
        ),
    ),
    "matmul-weight/2": Cost(
        fixed_us=3,
        per_mac_ns=(
            (1, 0.0593),
            (4, 0.0302),
            (8, 0.0189),
            (16, 0.0462),
            (32, 0.0374),
            (64, 0.033),
            (128, 0.0308),
            (1024, 0.0322),
        ),
    ),
    "gather-weight": Cost(fixed_us=6.5, per_element_ns=0.218),
    # 1024 rows of 384: 397 us in 8 bits, 948 us in 4 (one thread of the AMX machine)
    "gather-weight-blocks": Cost(fixed_us=6.5, per_element_ns=1.2),
    "conv-static": Cost(
        fixed_us=5,
        per_mac_ns=((64, 0.00629), (1024, 0.00543), (4096, 0.00575)),
        per_element_ns=0.03,
    ),
    "conv-static/dense": Cost(
        fixed_us=5, per_mac_ns=((64, 0.00629), (1024, 0.00536), (4096, 0.00575))
    ),
    "conv-static/pointwise": Cost(
        fixed_us=5, per_mac_ns=((64, 0.00518), (1024, 0.00518), (4096, 0.0055)), per_element_ns=0.19
    ),
    "conv-static/depthwise": Cost(fixed_us=5, per_mac_ns=((1024, 0.0393),), per_element_ns=0.371),
    "conv-static/stem": Cost(fixed_us=5, per_mac_ns=((1024, 0.0293),), per_element_ns=0.13),
    "add-static": Cost(fixed_us=2, per_element_ns=0.109),
    "mul-static": Cost(fixed_us=2.86, per_element_ns=0.216),
    "sigmoid-static": Cost(fixed_us=2.5, per_element_ns=0.185),
    "leaky-relu-static": Cost(fixed_us=2.5, per_element_ns=0.185),
    "average-pool-static": Cost(fixed_us=3.9, per_element_ns=1.49),
    "global-average-pool-static": Cost(fixed_us=2.6, per_element_ns=0.0333),
    "concat-static": Cost(fixed_us=1.95, per_element_ns=0.0354),
    "quantize": Cost(fixed_us=1.3, per_element_ns=0.157),
    "dequantize": Cost(fixed_us=1.3, per_element_ns=0.13),
    "quantize-dynamic": Cost(fixed_us=2, per_element_ns=0.267),
    "quantize-token": Cost(fixed_us=6.5, per_element_ns=0.585),
}
