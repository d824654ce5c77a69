"""The graph of a decoder with a key-value cache, for ONNX Runtime and ONNX Runtime GenAI.

Inputs ``input_ids`` ``[batch, sequence]``, ``attention_mask`` ``[batch, total_sequence]`` (both
int64) and, for each layer, ``past_key_values.{i}.key`` and ``.value`` ``[batch, kv heads,
past_sequence, head width]``. Outputs ``logits`` ``[batch, sequence, vocabulary]``,
``present.{i}.key`` and ``.value``. Texts of one batch are padded on the right, as GenAI does: the
number of ones in a row of the mask says how many positions of that text are real.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompiler.frontends.decoder.emitter import IR_VERSION, MICROSOFT, Dims, input_value
from qcompiler.frontends.decoder.families import Family
from qcompiler.frontends.decoder.geometry import Geometry, Rotary
from qcompiler.frontends.decoder.quantized import QuantizedLinear
from qcompiler.frontends.decoder.writer import ACTIVATIONS, Writer, refuse_unused
from qcompiler.ir.lazy import Stored, View

__all__ = ["build"]

_BATCH, _SEQUENCE = "batch", "sequence"
_TOKENS = (_BATCH, _SEQUENCE)
_ROWS = 1024  # of tables that are compared at a time
_INT64, _INT32, _FLOAT = ir.DataType.INT64, ir.DataType.INT32, ir.DataType.FLOAT


def build(
    geometry: Geometry,
    family: Family,
    weights: Mapping[str, Stored],
    source: str,
    quantized: Mapping[str, QuantizedLinear] | None = None,
) -> ir.Model:
    """The model; its weights are lazy tensors over ``weights`` and ``quantized``.

    Raises:
        QcError: QC707, a weight is missing, has another shape than the configuration says, or
            belongs to no part that the family has.
    """
    graph = _Builder(geometry, family, weights, source, quantized or {}).graph()
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="qcompiler")


@dataclasses.dataclass(frozen=True, slots=True)
class _Lengths:
    """What attention must know of the padding: last position of each text, longest text."""

    last: ir.Value
    longest: ir.Value


class _Builder(Writer):
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

    def graph(self) -> ir.Graph:
        sizes, top = self.geometry, self.family.top
        ids = input_value("input_ids", _INT64, _TOKENS)
        mask = input_value("attention_mask", _INT64, (_BATCH, "total_sequence"))
        inputs, outputs = [ids, mask], []
        lengths = self._lengths(mask)
        x = self._embedding(ids, lengths)
        for index in range(sizes.layers):
            pasts, presents = self._cache(index)
            inputs += pasts
            outputs += presents
            x = self._layer(x, index, pasts, presents, lengths)
        logits = self._head(self._norm(x, top["norm"], sizes.width))
        refuse_unused((*self.weights, *self.quantized), self.used, self.source)
        return self.emit.graph(inputs, [logits, *outputs], "decoder")

    def _cache(self, index: int) -> tuple[list[ir.Value], list[ir.Value]]:
        sizes = self.geometry

        def one(name: str, length: str) -> ir.Value:
            return input_value(name, _FLOAT, (_BATCH, sizes.kv_heads, length, sizes.head_width))

        words = ("key", "value")
        return (
            [one(f"past_key_values.{index}.{word}", "past_sequence") for word in words],
            [one(f"present.{index}.{word}", "total_sequence") for word in words],
        )

    def _lengths(self, mask: ir.Value) -> _Lengths:
        emit = self.emit
        real = emit.op(
            "ReduceSum",
            [mask, emit.integers([1])],
            "mask/ReduceSum",
            (_BATCH,),
            dtype=_INT64,
            attributes={"keepdims": 0},
        )
        last = emit.op("Sub", [real, emit.integers(1)], "mask/Sub", (_BATCH,), dtype=_INT64)
        shape = emit.op("Shape", [mask], "mask/Shape", (2,), dtype=_INT64)
        longest = emit.op("Gather", [shape, emit.integers(1)], "mask/Gather", (), dtype=_INT64)
        return _Lengths(
            self._to_int32(last, "mask/Cast_last", (_BATCH,)),
            self._to_int32(longest, "mask/Cast_longest", ()),
        )

    def _to_int32(self, value: ir.Value, name: str, shape: Dims) -> ir.Value:
        attributes = {"to": int(_INT32)}
        return self.emit.op("Cast", [value], name, shape, dtype=_INT32, attributes=attributes)

    def _embedding(self, ids: ir.Value, lengths: _Lengths) -> ir.Value:
        sizes, emit = self.geometry, self.emit
        module = self.family.top["embedding"]
        name = f"{module}.weight"
        where = name
        if sizes.tied and name not in self.weights:
            where = f"{self.family.top['head']}.weight"  # either may be the one that is stored
        table = self._constant(View(self._stored(where, (sizes.vocabulary, sizes.width))), name)
        shape = (*_TOKENS, sizes.width)
        x = emit.op("Gather", [table, ids], f"{module}/Gather", shape, module=module)
        if self.family.scaled_embedding:
            factor = emit.constant(f"{module}.scale", np.array(math.sqrt(sizes.width), np.float32))
            x = emit.op("Mul", [x, factor], f"{module}/Mul", shape, module=module)
        if "positions" in self.family.top:
            x = emit.op("Add", [x, self._positions(ids, lengths)], "positions/Add", shape)
        return x

    def _positions(self, ids: ir.Value, lengths: _Lengths) -> ir.Value:
        """Learned embeddings of ``max(last + 1 - sequence, 0) ..`` for each text.

        A prompt starts at 0 however it is padded; what follows a past starts behind it.
        """
        sizes, emit = self.geometry, self.emit
        module = self.family.top["positions"]
        shape = emit.op("Shape", [ids], "positions/Shape", (2,), dtype=_INT64)
        length = emit.op("Gather", [shape, emit.integers(1)], "positions/length", (), dtype=_INT64)
        steps = emit.op(
            "Range",
            [emit.integers(0), length, emit.integers(1)],
            "positions/Range",
            (_SEQUENCE,),
            dtype=_INT64,
        )
        last = emit.op(
            "Cast",
            [lengths.last],
            "positions/Cast",
            (_BATCH,),
            dtype=_INT64,
            attributes={"to": int(_INT64)},
        )
        following = emit.op(
            "Add", [last, emit.integers(1)], "positions/next", (_BATCH,), dtype=_INT64
        )
        first = emit.op("Sub", [following, length], "positions/Sub", (_BATCH,), dtype=_INT64)
        first = emit.op("Max", [first, emit.integers(0)], "positions/Max", (_BATCH,), dtype=_INT64)
        column = emit.op(
            "Unsqueeze",
            [first, emit.integers([1])],
            "positions/Unsqueeze",
            (_BATCH, 1),
            dtype=_INT64,
        )
        places = emit.op("Add", [column, steps], "positions/places", _TOKENS, dtype=_INT64)
        stored = self._stored(f"{module}.weight", (sizes.positions, sizes.width))
        table = self._constant(View(stored))
        return emit.op(
            "Gather", [table, places], f"{module}/Gather", (*_TOKENS, sizes.width), module=module
        )

    def _layer(
        self,
        x: ir.Value,
        index: int,
        pasts: list[ir.Value],
        presents: list[ir.Value],
        lengths: _Lengths,
    ) -> ir.Value:
        layer = self.family.layers.format(index)
        attended = self._attention(
            self._role_norm(x, layer, "before_attention"), index, pasts, presents, lengths
        )
        x = self._residual(x, attended, layer, "attention")
        worked = self._mlp(self._role_norm(x, layer, "before_mlp"), layer)
        return self._residual(x, worked, layer, "mlp")

    def _residual(self, x: ir.Value, added: ir.Value, layer: str, part: str) -> ir.Value:
        role = f"after_{part}"
        if role in self.family.modules:
            added = self._role_norm(added, layer, role)
        shape = (*_TOKENS, self.geometry.width)
        return self.emit.op("Add", [x, added], f"{layer}/add_{part}", shape, module=layer)

    def _role_norm(self, x: ir.Value, layer: str, role: str) -> ir.Value:
        return self._norm(x, f"{layer}.{self.family.modules[role]}", self.geometry.width)

    def _norm(self, x: ir.Value, module: str, width: int, *, shape: Dims | None = None) -> ir.Value:
        stored = self._stored(f"{module}.weight", (width,))
        scale = self._constant(View(stored, offset=self.family.norm_offset))
        inputs, attributes = [x, scale], {"axis": -1, "epsilon": self.geometry.epsilon}
        op_type = "RMSNormalization"
        if self.family.norm == "layer":
            op_type = "LayerNormalization"
            inputs.append(self._constant(View(self._stored(f"{module}.bias", (width,)))))
        return self.emit.op(
            op_type,
            inputs,
            f"{module}/{op_type}",
            shape or (*_TOKENS, width),
            attributes=attributes,
            module=module,
        )

    def _attention(
        self,
        x: ir.Value,
        index: int,
        pasts: list[ir.Value],
        presents: list[ir.Value],
        lengths: _Lengths,
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
            (*_TOKENS, self.widths["q"]),
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
        apart, together = (*_TOKENS, heads, width), (*_TOKENS, heads * width)
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
            shape = (*_TOKENS, sizes.inner)
            inside = self.emit.op("Mul", [gate, up], f"{module}/Mul", shape, module=module)
        return self._linear(inside, layer, "down", sizes.inner)

    def _activation(self, x: ir.Value, module: str) -> ir.Value:
        op_type, domain, attributes = ACTIVATIONS[self.geometry.activation]
        return self.emit.op(
            op_type,
            [x],
            f"{module}/{op_type}",
            (*_TOKENS, self.geometry.inner),
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
        shape = (*_TOKENS, out)
        y = self.emit.op("MatMul", [x, weight], f"{name}/MatMul", shape, module=module)
        if f"{module}.bias" not in self.weights:
            return y
        stored = self._stored(f"{module}.bias", (total,))
        bias = self._constant(View(stored, span and (0, *span[1:])), f"{name}.bias")
        return self.emit.op("Add", [y, bias], f"{name}/Add", shape, module=module)

    def _head(self, x: ir.Value) -> ir.Value:
        sizes, emit = self.geometry, self.emit
        module, shape = self.family.top["head"], (*_TOKENS, sizes.vocabulary)
        name = f"{module}.weight"
        if module in self.quantized:
            x, weight = self._dequantized(x, module, module, (sizes.width, sizes.vocabulary))
        else:
            where = name
            table = f"{self.family.top['embedding']}.weight"
            if sizes.tied and self._is_copy(name, table):
                self.used.add(name)
                where = table
            stored = self._stored(where, (sizes.vocabulary, sizes.width))
            weight = self._constant(View(stored, transposed=True), name)
        cap = sizes.logit_softcap
        output = "" if cap else "logits"
        logits = emit.op(
            "MatMul", [x, weight], f"{module}/MatMul", shape, module=module, output=output
        )
        if not cap:
            return logits
        factor = emit.constant("logit_softcap", np.array(cap, np.float32))
        small = emit.op("Div", [logits, factor], f"{module}/Div", shape, module=module)
        squashed = emit.op("Tanh", [small], f"{module}/Tanh", shape, module=module)
        return emit.op(
            "Mul", [squashed, factor], f"{module}/Mul", shape, module=module, output="logits"
        )

    def _is_copy(self, head: str, table: str) -> bool:
        """Whether a tied head may be left out: transformers goes by the file where both differ."""
        if head not in self.weights or table not in self.weights:
            return table in self.weights
        a, b = self.weights[head], self.weights[table]
        if a.shape != b.shape:
            return False
        ours, theirs = a.read(), b.read()
        parts = (slice(begin, begin + _ROWS) for begin in range(0, a.shape[0], _ROWS))
        return all(np.array_equal(ours[part], theirs[part]) for part in parts)
