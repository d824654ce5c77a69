"""The graph of Whisper's decoder with a key-value cache, as ONNX Runtime GenAI names it.

Inputs ``input_ids`` int64 ``[batch, sequence]`` and, for each layer, ``past_key_self_{i}`` and
``past_value_self_{i}`` ``[batch, heads, past_sequence, head width]``, ``past_key_cross_{i}`` and
``past_value_cross_{i}`` ``[batch, heads, frames / 2, head width]``, which the encoder gives.
Outputs ``logits`` ``[batch, sequence, vocabulary]``, ``present_key_self_{i}`` and
``present_value_self_{i}``. There is no mask: texts of one batch have as many tokens each.
Behind a past each of several texts takes one token at a time, a single text any number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from qcompiler.frontends.decoder.emitter import IR_VERSION, MICROSOFT, Dims, input_value
from qcompiler.frontends.whisper.geometry import Geometry
from qcompiler.frontends.whisper.layers import BATCH, Layers
from qcompiler.ir.lazy import Stored, View

__all__ = ["build_decoder"]

_MODULE, _HEAD = "model.decoder", "proj_out"
_SEQUENCE, _PAST, _TOTAL = "sequence", "past_sequence", "total_sequence"
_WORDS = ("key", "value")
_INT64, _INT32, _FLOAT = ir.DataType.INT64, ir.DataType.INT32, ir.DataType.FLOAT


def build_decoder(
    geometry: Geometry, weights: Mapping[str, Stored], source: str
) -> tuple[ir.Model, set[str]]:
    """The model, its weights lazy tensors, and the names of the weights that it reads.

    Raises:
        QcError: QC707, a weight is missing or has another shape than the configuration says.
    """
    builder = _Decoder(geometry, weights, source, _SEQUENCE)
    graph = builder.graph()
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="qcompiler"), builder.used


@dataclasses.dataclass(frozen=True, slots=True)
class _Lengths:
    """Where the tokens stand: ``past`` and ``total`` are int64 ``[1]``.

    ``last`` (int32 ``[batch]``) and ``longest`` (int32 scalar) are what GroupQueryAttention reads.
    """

    past: ir.Value
    total: ir.Value
    last: ir.Value
    longest: ir.Value


class _Decoder(Layers):
    def graph(self) -> ir.Graph:
        sizes = self.geometry
        ids = input_value("input_ids", _INT64, (BATCH, _SEQUENCE))
        layers = range(sizes.decoder.layers)
        pasts = [self._cache("past_{}_self_{}", index, _PAST) for index in layers]
        presents = [self._cache("present_{}_self_{}", index, _TOTAL) for index in layers]
        crosses = [
            self._cache("past_{}_cross_{}", index, sizes.encoder.positions) for index in layers
        ]
        lengths = self._lengths(ids, pasts[0][0])
        x, table = self._embedding(ids, lengths)
        for index in layers:
            x = self._layer(x, index, (pasts[index], presents[index], crosses[index]), lengths)
        x = self._norm(x, f"{_MODULE}.layer_norm")
        self.used.add(f"{_HEAD}.weight")  # a copy of the embedding, where there is one
        head = self._constant(View(table, transposed=True), f"{_HEAD}.weight")
        logits = self.emit.op(
            "MatMul",
            [x, head],
            f"{_HEAD}/MatMul",
            self._shape(sizes.vocabulary),
            module=_HEAD,
            output="logits",
        )
        inputs = [ids, *_flat(pasts), *_flat(crosses)]
        return self.emit.graph(inputs, [logits, *_flat(presents)], "decoder")

    def _cache(self, name: str, index: int, length: str | int) -> list[ir.Value]:
        shape = (BATCH, self.geometry.decoder.heads, length, self.geometry.head_width)
        return [input_value(name.format(word, index), _FLOAT, shape) for word in _WORDS]

    def _lengths(self, ids: ir.Value, past_key: ir.Value) -> _Lengths:
        batch, sequence = (self._size(ids, axis) for axis in (0, 1))
        past = self._size(past_key, 2)
        total = self._integer("Add", [past, sequence], "lengths/total")
        last = self._integer("Sub", [total, self.emit.integers([1])], "lengths/last")
        rows = self._integer("Expand", [last, batch], "lengths/rows", (BATCH,))
        longest = self._integer("Squeeze", [total, self.emit.integers([0])], "lengths/longest", ())
        return _Lengths(
            past,
            total,
            self._to_int32(rows, "lengths/Cast_rows", (BATCH,)),
            self._to_int32(longest, "lengths/Cast_longest", ()),
        )

    def _size(self, value: ir.Value, axis: int) -> ir.Value:
        name = f"lengths/{value.name}_{axis}"
        span = {"start": axis, "end": axis + 1}
        return self.emit.op("Shape", [value], name, (1,), dtype=_INT64, attributes=span)

    def _integer(
        self, op_type: str, inputs: list[ir.Value], name: str, shape: Dims = (1,)
    ) -> ir.Value:
        return self.emit.op(op_type, inputs, name, shape, dtype=_INT64)

    def _to_int32(self, value: ir.Value, name: str, shape: Dims) -> ir.Value:
        attributes = {"to": int(_INT32)}
        return self.emit.op("Cast", [value], name, shape, dtype=_INT32, attributes=attributes)

    def _embedding(self, ids: ir.Value, lengths: _Lengths) -> tuple[ir.Value, Stored]:
        """Embedded tokens at their positions, and the table, which is the head's too."""
        sizes, width = self.geometry, self.geometry.width
        module = f"{_MODULE}.embed_tokens"
        table = self._stored(f"{module}.weight", (sizes.vocabulary, width))
        shape = self._shape(width)
        weight = self._constant(View(table))
        x = self.emit.op("Gather", [weight, ids], f"{module}/Gather", shape, module=module)
        module = f"{_MODULE}.embed_positions"
        stored = self._stored(f"{module}.weight", (sizes.decoder.positions, width))
        places = self.emit.op(
            "Slice",
            [self._constant(View(stored)), lengths.past, lengths.total, self.emit.integers([0])],
            f"{module}/Slice",
            (_SEQUENCE, width),
            module=module,
        )
        return self.emit.op("Add", [x, places], f"{module}/Add", shape, module=module), table

    def _layer(
        self,
        x: ir.Value,
        index: int,
        caches: tuple[list[ir.Value], list[ir.Value], list[ir.Value]],
        lengths: _Lengths,
    ) -> ir.Value:
        layer = f"{_MODULE}.layers.{index}"
        pasts, presents, crosses = caches
        y = self._norm(x, f"{layer}.self_attn_layer_norm")
        y = self._self_attention(y, f"{layer}.self_attn", pasts, presents, lengths)
        x = self._residual(x, y, layer, "self_attention")
        y = self._norm(x, f"{layer}.encoder_attn_layer_norm")
        y = self._cross_attention(y, f"{layer}.encoder_attn", crosses)
        x = self._residual(x, y, layer, "cross_attention")
        return self._mlp(x, layer, self.geometry.decoder.inner)

    def _self_attention(
        self,
        x: ir.Value,
        module: str,
        pasts: list[ir.Value],
        presents: list[ir.Value],
        lengths: _Lengths,
    ) -> ir.Value:
        width, heads = self.geometry.width, self.geometry.decoder.heads
        q, k, v = (self._linear(x, f"{module}.{role}_proj", (width, width)) for role in "qkv")
        attended = self.emit.op(
            "GroupQueryAttention",
            [q, k, v, *pasts, lengths.last, lengths.longest],
            f"{module}/GroupQueryAttention",
            self._shape(width),
            domain=MICROSOFT,
            attributes={"num_heads": heads, "kv_num_heads": heads},
            module=module,
            extra=presents,
        )
        return self._linear(attended, f"{module}.out_proj", (width, width))

    def _cross_attention(self, x: ir.Value, module: str, cross: list[ir.Value]) -> ir.Value:
        width, heads = self.geometry.width, self.geometry.decoder.heads
        q = self._linear(x, f"{module}.q_proj", (width, width))
        q = self._apart(q, module, heads)
        shape = (BATCH, heads, _SEQUENCE, self.geometry.head_width)
        y = self.emit.op("Attention", [q, *cross], f"{module}/Attention", shape, module=module)
        y = self._swapped(
            y,
            f"{module}/Transpose_back",
            (BATCH, _SEQUENCE, heads, self.geometry.head_width),
            module,
        )
        y = self.emit.op(
            "Reshape",
            [y, self.emit.integers([0, 0, width])],
            f"{module}/Reshape_together",
            self._shape(width),
            module=module,
        )
        return self._linear(y, f"{module}.out_proj", (width, width))


def _flat(pairs: list[list[ir.Value]]) -> list[ir.Value]:
    return [value for pair in pairs for value in pair]
