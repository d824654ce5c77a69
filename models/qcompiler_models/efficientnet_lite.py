"""EfficientNet-Lite0 in torch: EfficientNet-B0 without squeeze-and-excite and with ReLU6.

Architecture: Tan and Le 2019 (https://arxiv.org/abs/1905.11946), table 1, as changed for the Lite
series (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import torch
from torch import nn

# mypy is told not to follow torch, hence the ignored subclassing of an unknown Module.

__all__ = ["EfficientNetLite", "load_efficientnet_lite0"]

_NORM_EPS = 1e-3  # of the TensorFlow training code, not torch's 1e-5


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expand: int
    in_channels: int
    out_channels: int


_LITE0 = (
    _Stage(1, 3, 1, 1, 32, 16),
    _Stage(2, 3, 2, 6, 16, 24),
    _Stage(2, 5, 2, 6, 24, 40),
    _Stage(3, 3, 2, 6, 40, 80),
    _Stage(3, 5, 1, 6, 80, 112),
    _Stage(4, 5, 2, 6, 112, 192),
    _Stage(1, 3, 1, 6, 192, 320),
)


class _ConvNorm(nn.Module):  # type: ignore[misc]
    """Convolution with TensorFlow's SAME padding, batch norm, and ReLU6 unless ``linear``.

    At stride 2 on an even size, SAME pads one more at the end than at the beginning.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        before, total = (kernel - stride) // 2, kernel - stride
        after = total - before
        self.pad = nn.Identity() if before == after else nn.ZeroPad2d((before, after) * 2)
        padding = before if before == after else 0
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=_NORM_EPS)
        self.activation = nn.Identity() if linear else nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.activation(self.norm(self.conv(self.pad(x))))
        return y


class _Block(nn.Module):  # type: ignore[misc]
    """Inverted residual: widen, filter each channel, narrow; add the input if shapes agree."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expand: int
    ) -> None:
        super().__init__()
        wide = in_channels * expand
        self.expand = nn.Identity() if expand == 1 else _ConvNorm(in_channels, wide)
        self.depthwise = _ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = _ConvNorm(wide, out_channels, linear=True)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):  # type: ignore[misc]
    """Pictures ``[batch, 3, 224, 224]`` to logits ``[batch, 1000]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _ConvNorm(3, 32, kernel=3, stride=2)
        blocks: list[nn.Module] = []
        for stage in _LITE0:
            in_channels, stride = stage.in_channels, stage.stride
            for _ in range(stage.repeats):
                out = stage.out_channels
                blocks.append(_Block(in_channels, out, stage.kernel, stride, stage.expand))
                in_channels, stride = out, 1
        self.blocks = nn.Sequential(*blocks)
        self.head = _ConvNorm(320, 1280)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of normalized pictures."""
        features = self.head(self.blocks(self.stem(image)))
        # Not AdaptiveAvgPool2d: with a dynamic batch torch 2.13 exports it as Range and Gather.
        logits: torch.Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


# Names in the published file -> names here, at the top and inside ``_blocks.N``.
_TOP_NAMES = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classifier",
}
_BLOCK_NAMES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def load_efficientnet_lite0(weights: pathlib.Path) -> EfficientNetLite:
    """The model in evaluation mode with the published weights; every tensor must find its place."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    model = EfficientNetLite()
    model.load_state_dict({_our_name(name): tensor for name, tensor in state.items()})
    model.eval()
    return model


def _our_name(published: str) -> str:
    if published.startswith("_blocks."):
        _, index, module, leaf = published.split(".")
        return f"blocks.{index}.{_BLOCK_NAMES[module]}.{leaf}"
    module, leaf = published.split(".")
    return f"{_TOP_NAMES[module]}.{leaf}"
