"""The layers of a decoder: norms, attention with a cache, linear layers and what is between."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompiler.frontends.decoder.emitter import MICROSOFT, Dims
from qcompiler.frontends.decoder.families import Family
from qcompiler.frontends.decoder.geometry import Geometry, Rotary
from qcompiler.frontends.decoder.quantized import QuantizedLinear
from qcompiler.frontends.decoder.writer import ACTIVATIONS, Writer
from qcompiler.ir.lazy import Stored, View

__all__ = ["BATCH", "PARTS", "SEQUENCE", "TOKENS", "Layers", "Lengths"]

BATCH, SEQUENCE = "batch", "sequence"
TOKENS = (BATCH, SEQUENCE)
PARTS = ("attention", "mlp")  # of a layer; each adds to the residual stream


@dataclasses.dataclass(frozen=True, slots=True)
class Lengths:
    """What attention must know of the padding: last position of each text, longest text."""

    last: ir.Value
    longest: ir.Value


class Layers(Writer):
    """Writes layers of a family on values ``[batch, sequence, width]``.

    Attributes:
        geometry: Sizes.
        family: Names of the modules, and what sets them apart.
        widths: Outputs of each linear layer, by its role.
    """

    def __init__(
        self,
        geometry: Geometry,
        family: Family,
        weights: Mapping[str, Stored],
        source: str,
        quantized: Mapping[str, QuantizedLinear],
    ) -> None:
        super().__init__(weights, source, quantized)
        self.geometry = geometry
        self.family = family
        self.cos_sin: dict[int, tuple[ir.Value, ir.Value]] = {}
        self.widths = {
            "q": geometry.heads * geometry.head_width,
            "k": geometry.kv_heads * geometry.head_width,
            "v": geometry.kv_heads * geometry.head_width,
            "o": geometry.width,
            "gate": geometry.inner,
            "up": geometry.inner,
            "down": geometry.width,
        }

    def _layer(
        self,
        x: ir.Value,
        index: int,
        pasts: list[ir.Value],
        presents: list[ir.Value],
        lengths: Lengths,
    ) -> ir.Value:
        layer = self.family.layers.format(index)
        read = self._role_norm(x, layer, "before_attention")
        attended = self._attention(read, index, pasts, presents, lengths)
        x = self._residual(x, attended, layer, "attention")
        if not self.family.parallel:
            read = self._role_norm(x, layer, "before_mlp")
        return self._residual(x, self._mlp(read, layer), layer, "mlp")

    def _residual(self, x: ir.Value, added: ir.Value, layer: str, part: str) -> ir.Value:
        added = self._role_norm(added, layer, f"after_{part}")
        shape, emit = (*TOKENS, self.geometry.width), self.emit
        if self.geometry.residual_factor != 1.0:
            number = np.array(self.geometry.residual_factor, np.float32)
            factor = emit.constant(f"{layer}.{part}.scale", number)
            added = emit.op("Mul", [added, factor], f"{layer}/scale_{part}", shape, module=layer)
        return emit.op("Add", [x, added], f"{layer}/add_{part}", shape, module=layer)

    def _role_norm(self, x: ir.Value, layer: str, role: str) -> ir.Value:
        """The norm of a role; ``x`` itself where the family has none."""
        if role not in self.family.modules:
            return x
        return self._norm(x, f"{layer}.{self.family.modules[role]}", self.geometry.width)

    def _norm(
        self,
        x: ir.Value,
        module: str,
        width: int,
        *,
        shape: Dims | None = None,
        factor: float = 1.0,
    ) -> ir.Value:
        stored = self._stored(f"{module}.weight", (width,))
        scale = self._constant(View(stored, offset=self.family.norm_offset, factor=factor))
        inputs, attributes = [x, scale], {"axis": -1, "epsilon": self.geometry.epsilon}
        op_type = "RMSNormalization"
        if self.family.norm == "layer":
            op_type = "LayerNormalization"
            stored = self._stored(f"{module}.bias", (width,))
            inputs.append(self._constant(View(stored, factor=factor)))
        return self.emit.op(
            op_type,
            inputs,
            f"{module}/{op_type}",
            shape or (*TOKENS, width),
            attributes=attributes,
            module=module,
        )

    def _attention(
        self,
        x: ir.Value,
        index: int,
        pasts: list[ir.Value],
        presents: list[ir.Value],
        lengths: Lengths,
    ) -> ir.Value:
        sizes = self.geometry
        layer = self.family.layers.format(index)
        q, k, v = (self._linear(x, layer, role, sizes.width) for role in "qkv")
        if "q_norm" in self.family.modules:
            q = self._head_norm(q, layer, "q_norm", sizes.heads)
            k = self._head_norm(k, layer, "k_norm", sizes.kv_heads)
        rotary, window = sizes.rotary[index], sizes.windows[index]
        cos, sin = self._caches(rotary) if rotary is not None else (None, None)
        module = f"{layer}.{self.family.modules['o'].rpartition('.')[0]}"
        attended = self.emit.op(
            "GroupQueryAttention",
            [q, k, v, *pasts, lengths.last, lengths.longest, cos, sin],
            f"{module}/GroupQueryAttention",
            (*TOKENS, self.widths["q"]),
            domain=MICROSOFT,
            attributes={
                "num_heads": sizes.heads,
                "kv_num_heads": sizes.kv_heads,
                "do_rotary": int(rotary is not None),
                "scale": sizes.scale or sizes.head_width**-0.5,
                "softcap": sizes.softcap,
                "local_window_size": -1 if window is None else window,
            },
            module=module,
            extra=presents,
        )
        return self._linear(attended, layer, "o", self.widths["q"])

    def _head_norm(self, x: ir.Value, layer: str, role: str, heads: int) -> ir.Value:
        emit, width = self.emit, self.geometry.head_width
        module = f"{layer}.{self.family.modules[role]}"
        if self.family.head_norm == "all":
            return self._norm(x, module, heads * width)
        apart, together = (*TOKENS, heads, width), (*TOKENS, heads * width)
        x = emit.op(
            "Reshape",
            [x, emit.integers([0, 0, heads, width])],
            f"{module}/Reshape_apart",
            apart,
            module=module,
        )
        x = self._norm(x, module, width, shape=apart)
        return emit.op(
            "Reshape",
            [x, emit.integers([0, 0, heads * width])],
            f"{module}/Reshape_together",
            together,
            module=module,
        )

    def _caches(self, rotary: Rotary) -> tuple[ir.Value, ir.Value]:
        key = id(rotary)
        if key not in self.cos_sin:
            suffix = f"_{len(self.cos_sin)}" if self.cos_sin else ""
            cos, sin = rotary.caches(self.geometry.positions)
            self.cos_sin[key] = (
                self.emit.constant(f"cos_cache{suffix}", cos),
                self.emit.constant(f"sin_cache{suffix}", sin),
            )
        return self.cos_sin[key]

    def _mlp(self, x: ir.Value, layer: str) -> ir.Value:
        sizes = self.geometry
        up = self._linear(x, layer, "up", sizes.width)
        module = f"{layer}.{self.family.modules['down'].rpartition('.')[0]}"
        if "gate" not in self.family.modules:
            inside = self._activation(up, module)
        else:
            gate = self._activation(self._linear(x, layer, "gate", sizes.width), module)
            shape = (*TOKENS, sizes.inner)
            inside = self.emit.op("Mul", [gate, up], f"{module}/Mul", shape, module=module)
        return self._linear(inside, layer, "down", sizes.inner)

    def _activation(self, x: ir.Value, module: str) -> ir.Value:
        op_type, domain, attributes = ACTIVATIONS[self.geometry.activation]
        return self.emit.op(
            op_type,
            [x],
            f"{module}/{op_type}",
            (*TOKENS, self.geometry.inner),
            domain=domain,
            attributes=attributes,
            module=module,
        )

    def _linear(self, x: ir.Value, layer: str, role: str, width: int) -> ir.Value:
        """MatMul, and Add where the checkpoint has a bias."""
        modules = self.family.modules
        sharing = [other for other in modules if modules[other] == modules[role]]
        begin = sum(self.widths[other] for other in sharing[: sharing.index(role)])
        total = sum(self.widths[other] for other in sharing)
        out = self.widths[role]
        module = f"{layer}.{modules[role]}"
        name = module if len(sharing) == 1 else f"{module}.{role}"
        rows = self.family.stored == "out-in"
        span = (0 if rows else 1, begin, begin + out) if len(sharing) > 1 else None
        if module in self.quantized:
            x, weight = self._dequantized(x, module, name, (width, total), span)
        else:
            stored = self._stored(f"{module}.weight", (total, width) if rows else (width, total))
            weight = self._constant(View(stored, span, transposed=rows), f"{name}.weight")
        shape = (*TOKENS, out)
        y = self.emit.op("MatMul", [x, weight], f"{name}/MatMul", shape, module=module)
        if f"{module}.bias" not in self.weights:
            return y
        stored = self._stored(f"{module}.bias", (total,))
        bias = self._constant(View(stored, span and (0, *span[1:])), f"{name}.bias")
        return self.emit.op("Add", [y, bias], f"{name}/Add", shape, module=module)
