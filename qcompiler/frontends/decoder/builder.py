"""The graph of a decoder with a key-value cache, for ONNX Runtime and ONNX Runtime GenAI.

Inputs ``input_ids`` ``[batch, sequence]``, ``attention_mask`` ``[batch, total_sequence]`` (both
int64) and, for each layer, ``past_key_values.{i}.key`` and ``.value`` ``[batch, kv heads,
past_sequence, head width]``. Outputs ``logits`` ``[batch, sequence, vocabulary]``,
``present.{i}.key`` and ``.value``. Texts of one batch are padded on the right, as GenAI does: the
number of ones in a row of the mask says how many positions of that text are real.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompiler.frontends.decoder.emitter import IR_VERSION, Dims, input_value
from qcompiler.frontends.decoder.families import Family
from qcompiler.frontends.decoder.geometry import Geometry
from qcompiler.frontends.decoder.layers import BATCH, SEQUENCE, TOKENS, Layers, Lengths
from qcompiler.frontends.decoder.quantized import QuantizedLinear
from qcompiler.frontends.decoder.writer import refuse_unused
from qcompiler.ir.lazy import Stored, View

__all__ = ["build"]

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


class _Builder(Layers):
    def graph(self) -> ir.Graph:
        sizes, top = self.geometry, self.family.top
        ids = input_value("input_ids", _INT64, TOKENS)
        mask = input_value("attention_mask", _INT64, (BATCH, "total_sequence"))
        inputs, outputs = [ids, mask], []
        lengths = self._lengths(mask)
        x = self._embedding(ids, lengths)
        for index in range(sizes.layers):
            pasts, presents = self._cache(index)
            inputs += pasts
            outputs += presents
            x = self._layer(x, index, pasts, presents, lengths)
        # in the norm, since a tied head is the embedding as it is
        x = self._norm(x, top["norm"], sizes.width, factor=1.0 / sizes.logit_divisor)
        logits = self._head(x)
        refuse_unused((*self.weights, *self.quantized), self.used, self.source)
        return self.emit.graph(inputs, [logits, *outputs], "decoder")

    def _cache(self, index: int) -> tuple[list[ir.Value], list[ir.Value]]:
        sizes = self.geometry

        def one(name: str, length: str) -> ir.Value:
            return input_value(name, _FLOAT, (BATCH, sizes.kv_heads, length, sizes.head_width))

        words = ("key", "value")
        return (
            [one(f"past_key_values.{index}.{word}", "past_sequence") for word in words],
            [one(f"present.{index}.{word}", "total_sequence") for word in words],
        )

    def _lengths(self, mask: ir.Value) -> Lengths:
        emit = self.emit
        real = emit.op(
            "ReduceSum",
            [mask, emit.integers([1])],
            "mask/ReduceSum",
            (BATCH,),
            dtype=_INT64,
            attributes={"keepdims": 0},
        )
        last = emit.op("Sub", [real, emit.integers(1)], "mask/Sub", (BATCH,), dtype=_INT64)
        shape = emit.op("Shape", [mask], "mask/Shape", (2,), dtype=_INT64)
        longest = emit.op("Gather", [shape, emit.integers(1)], "mask/Gather", (), dtype=_INT64)
        return Lengths(
            self._to_int32(last, "mask/Cast_last", (BATCH,)),
            self._to_int32(longest, "mask/Cast_longest", ()),
        )

    def _to_int32(self, value: ir.Value, name: str, shape: Dims) -> ir.Value:
        attributes = {"to": int(_INT32)}
        return self.emit.op("Cast", [value], name, shape, dtype=_INT32, attributes=attributes)

    def _embedding(self, ids: ir.Value, lengths: Lengths) -> ir.Value:
        sizes, emit = self.geometry, self.emit
        module = self.family.top["embedding"]
        name = f"{module}.weight"
        where = name
        if sizes.tied and name not in self.weights:
            where = f"{self.family.top['head']}.weight"  # either may be the one that is stored
        table = self._constant(View(self._stored(where, (sizes.vocabulary, sizes.width))), name)
        shape = (*TOKENS, sizes.width)
        x = emit.op("Gather", [table, ids], f"{module}/Gather", shape, module=module)
        if sizes.embedding_factor != 1.0:
            factor = emit.constant(f"{module}.scale", np.array(sizes.embedding_factor, np.float32))
            x = emit.op("Mul", [x, factor], f"{module}/Mul", shape, module=module)
        if "positions" in self.family.top:
            x = emit.op("Add", [x, self._positions(ids, lengths)], "positions/Add", shape)
        return x

    def _positions(self, ids: ir.Value, lengths: Lengths) -> ir.Value:
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
            (SEQUENCE,),
            dtype=_INT64,
        )
        last = emit.op(
            "Cast",
            [lengths.last],
            "positions/Cast",
            (BATCH,),
            dtype=_INT64,
            attributes={"to": int(_INT64)},
        )
        following = emit.op(
            "Add", [last, emit.integers(1)], "positions/next", (BATCH,), dtype=_INT64
        )
        first = emit.op("Sub", [following, length], "positions/Sub", (BATCH,), dtype=_INT64)
        first = emit.op("Max", [first, emit.integers(0)], "positions/Max", (BATCH,), dtype=_INT64)
        column = emit.op(
            "Unsqueeze",
            [first, emit.integers([1])],
            "positions/Unsqueeze",
            (BATCH, 1),
            dtype=_INT64,
        )
        places = emit.op("Add", [column, steps], "positions/places", TOKENS, dtype=_INT64)
        stored = self._stored(f"{module}.weight", (sizes.positions, sizes.width))
        table = self._constant(View(stored))
        return emit.op(
            "Gather", [table, places], f"{module}/Gather", (*TOKENS, sizes.width), module=module
        )

    def _head(self, x: ir.Value) -> ir.Value:
        sizes, emit = self.geometry, self.emit
        module, shape = self.family.top["head"], (*TOKENS, sizes.vocabulary)
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
        steps = self._behind_head(module)
        logits = emit.op(
            "MatMul",
            [x, weight],
            f"{module}/MatMul",
            shape,
            module=module,
            output="" if steps else "logits",
        )
        for index, (op_type, operand) in enumerate(steps, 1):
            logits = emit.op(
                op_type,
                [logits] if operand is None else [logits, operand],
                f"{module}/{op_type}",
                shape,
                module=module,
                output="logits" if index == len(steps) else "",
            )
        return logits

    def _behind_head(self, module: str) -> list[tuple[str, ir.Value | None]]:
        """What is done to the product: operators, each with its other operand."""
        sizes, steps = self.geometry, list[tuple[str, ir.Value | None]]()
        if f"{module}.bias" in self.weights:
            stored = self._stored(f"{module}.bias", (sizes.vocabulary,))
            steps.append(("Add", self._constant(View(stored), f"{module}.bias")))
        if sizes.logit_softcap:
            cap = self.emit.constant("logit_softcap", np.array(sizes.logit_softcap, np.float32))
            steps += [("Div", cap), ("Tanh", None), ("Mul", cap)]
        return steps

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
