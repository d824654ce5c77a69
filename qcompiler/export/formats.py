"""The tensors and settings of a layer in the formats of the torch world.

GPTQ: https://github.com/IST-DASLab/gptq and https://github.com/ModelCloud/GPTQModel (``dynamic``
rules for layers of their own); AWQ: https://github.com/casper-hansen/AutoAWQ.
"""

from __future__ import annotations

import abc
import collections
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qcompiler.export.layers import Layer, Matched, not_held
from qcompiler.export.safetensors_file import Entry
from qcompiler.numerics.words import WIDTHS, integers_per_step, join_awq, join_words

__all__ = ["WRITERS", "Format", "Writer", "check_layer"]

Format = Literal["gptq", "awq"]


def check_layer(layer: Layer, format: Format) -> None:
    """Refuse a layer that the format has no words for."""
    (k, n), spec = layer.shape, layer.spec
    widths = (4,) if format == "awq" else WIDTHS
    if spec.width not in widths:
        wanted = f"{' or '.join(map(str, widths))} bits in the format {format}"
        raise not_held(layer.module, f"has {spec.width} bits", wanted)
    size = spec.group_size
    if size is not None and k % size:
        raise not_held(layer.module, f"has {k} inputs in groups of {size}", "groups that divide it")
    step = integers_per_step(spec.width)
    for count, what in ((n, "outputs"), *(((k, "inputs"),) if format == "gptq" else ())):
        if count % step:
            raise not_held(layer.module, f"has {count} {what}", f"a multiple of {step}")


class Writer(abc.ABC):
    """What both formats share: settings that most layers have, scales in float16."""

    def __init__(self, matched: Matched) -> None:
        self.matched = matched
        kinds = collections.Counter(self.kind(layer) for layer in matched.layers.values())
        (self.bits, self.group), _ = kinds.most_common(1)[0]
        self.rounding = 0.0  # largest relative change of a scale, known when all is written

    @staticmethod
    def kind(layer: Layer) -> tuple[int, int]:
        """Bits and group size, -1 for the whole column."""
        size = layer.spec.group_size
        return layer.spec.width, -1 if size in (None, layer.shape[0]) else int(size or 0)

    def scales(self, layer: Layer) -> npt.NDArray[np.float16]:
        """Rounded to float16.

        Raises:
            QcError: QC714, a scale is too large or too small for float16.
        """
        scale = layer.scale()
        with np.errstate(over="ignore"):
            rounded = scale.astype(np.float16)
        lost = ~np.isfinite(rounded) | ((rounded == 0) & (scale != 0))
        if lost.any():
            low, high = np.abs(scale[lost]).min(), np.abs(scale[lost]).max()
            raise not_held(
                layer.module, f"has scales of {low:.3g} to {high:.3g}", "scales that float16 holds"
            )
        used = np.where(scale == 0, np.float32(1), scale)
        change = np.abs(rounded.astype(np.float32) - scale) / np.abs(used)
        self.rounding = max(self.rounding, float(change.max(initial=0)))
        return rounded

    def parts(self, layer: Layer) -> Iterator[Entry]:
        """The tensors of a layer."""
        k, n = layer.shape
        groups = k // (layer.spec.group_size or k)
        half, words = np.dtype(np.float16), np.dtype(np.int32)
        rows, columns = self.packed_shape(layer)
        zeros = (groups, n * layer.spec.width // 32)
        qweight = functools.partial(self.qweight, layer)
        yield Entry(f"{layer.module}.qweight", words, (rows, columns), qweight)
        qzeros = functools.partial(self.qzeros, layer)
        yield Entry(f"{layer.module}.qzeros", words, zeros, qzeros)
        scales = functools.partial(self.scales, layer)
        yield Entry(f"{layer.module}.scales", half, (groups, n), scales)

    @abc.abstractmethod
    def packed_shape(self, layer: Layer) -> tuple[int, int]:
        """Shape of ``qweight``."""

    @abc.abstractmethod
    def qweight(self, layer: Layer) -> npt.NDArray[np.int32]:
        """The integers."""

    @abc.abstractmethod
    def qzeros(self, layer: Layer) -> npt.NDArray[np.int32]:
        """The zero points."""

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """The ``quantization_config``."""


class _Gptq(Writer):
    """Integers packed along the inputs.

    Symmetric layers are written in the first format, which stores zero points less one and which
    every loader knows. It cannot say a zero point of 0, so others are written in the second.
    """

    def __init__(self, matched: Matched) -> None:
        super().__init__(matched)
        self.symmetric = all(layer.spec.symmetric for layer in matched.layers.values())

    def packed_shape(self, layer: Layer) -> tuple[int, int]:
        k, n = layer.shape
        return k * layer.spec.width // 32, n

    def qweight(self, layer: Layer) -> npt.NDArray[np.int32]:
        return join_words(layer.codes().T, layer.spec.width).T

    def qzeros(self, layer: Layer) -> npt.NDArray[np.int32]:
        return join_words(layer.zero_point() - np.uint8(self.symmetric), layer.spec.width)

    def parts(self, layer: Layer) -> Iterator[Entry]:
        yield from super().parts(layer)
        k = layer.shape[0]
        size = layer.spec.group_size or k
        belongs = (np.arange(k) // size).astype(np.int32)
        yield Entry(f"{layer.module}.g_idx", belongs.dtype, (k,), lambda: belongs)

    def settings(self) -> dict[str, Any]:
        rules: dict[str, dict[str, Any]] = {}
        for module in self.matched.floats:
            rules[f"-:^{re.escape(module)}$"] = {}
        for layer in self.matched.layers.values():
            if self.kind(layer) != (self.bits, self.group):
                bits, group = self.kind(layer)
                rules[f"+:^{re.escape(layer.module)}$"] = {"bits": bits, "group_size": group}
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq" if self.symmetric else "gptq_v2",
            "bits": self.bits,
            "group_size": self.group,
            "sym": self.symmetric,
            "desc_act": False,
            "lm_head": False,
            "pack_dtype": "int32",
            **({"dynamic": rules} if rules else {}),
        }


class _Awq(Writer):
    """Integers packed along the outputs, for the kernel ``gemm``."""

    def __init__(self, matched: Matched) -> None:
        super().__init__(matched)
        for layer in matched.layers.values():
            if self.kind(layer)[1] != self.group:
                found = f"has groups of {self.kind(layer)[1]}, other layers of {self.group}"
                raise not_held(layer.module, found, "one size of groups in the format awq")

    def packed_shape(self, layer: Layer) -> tuple[int, int]:
        k, n = layer.shape
        return k, n // 8

    def qweight(self, layer: Layer) -> npt.NDArray[np.int32]:
        return join_awq(layer.codes())

    def qzeros(self, layer: Layer) -> npt.NDArray[np.int32]:
        return join_awq(layer.zero_point())

    def settings(self) -> dict[str, Any]:
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": self.bits,
            "group_size": self.group,
            "zero_point": True,
            "modules_to_not_convert": list(self.matched.floats) or None,
        }


WRITERS: Mapping[str, type[_Gptq | _Awq]] = {"gptq": _Gptq, "awq": _Awq}
