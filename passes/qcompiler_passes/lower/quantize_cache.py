"""Let attention keep keys and values of earlier tokens in int8."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.edit import add_initializer
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.runtime.kv_cache import VALUE_SCALE, attention_caches, scale_name

__all__ = ["QuantizeCache"]


@dataclasses.dataclass(frozen=True)
class QuantizeCache(Pass):
    """Store the cache of ``GroupQueryAttention`` in int8, by the scales that were measured.

    The kernel rounds what it appends and multiplies with the integers; nothing else changes.

    Given::

        %y, %present = GroupQueryAttention(%q, %k, %v, %past, ...)    past, present: float32

    Result::

        %y, %present = GroupQueryAttention(%q, %k, %v, %past, ..., %scale)    int8
    """

    name: ClassVar[str] = "quantize-cache"
    phase: ClassVar[Phase] = Phase.LOWER
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Write scales, attributes and types of all attentions whose cache was measured."""
        caches = [
            cache
            for cache in attention_caches(model.graph)
            if cache.present.name in state.cache_scales
        ]
        if not caches:
            return PassResult(modified=False)
        held = 0
        for cache in caches:
            node, name = cache.node, str(cache.present.name)
            scale = state.cache_scales[name]
            if len(node.inputs) <= VALUE_SCALE:
                node.resize_inputs(VALUE_SCALE + 1)
            constant = add_initializer(model.graph, scale_name(name), scale)
            node.replace_input_with(cache.scale, constant)
            kind = "PER_CHANNEL" if scale.ndim > 1 else "PER_TENSOR"
            node.attributes["k_quant_type"] = ir.AttrString("k_quant_type", kind)
            node.attributes["v_quant_type"] = ir.AttrString("v_quant_type", kind)
            node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
            for value in (cache.past, cache.present):
                value.type = ir.TensorType(ir.DataType.INT8)
            held += cache.heads * cache.width
        row = next(row for row in state.target.caches if row.id == state.recipe.kv_cache)
        told = Diagnostic(
            Code.INT8_CACHE,
            "kv_cache",
            f"keys and values of {len(caches) // 2} layers take {held} bytes for a token instead of"
            f" {4 * held}; it needs {state.target.runtime} {row.since} or newer",
            "",
            {
                "layers": len(caches) // 2,
                "bytes": held,
                "float_bytes": 4 * held,
                "since": row.since,
            },
        )
        return PassResult(modified=True, diagnostics=(told,))
