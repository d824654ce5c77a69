"""Which keys of a recipe the user said, and which came from its base or are as by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

__all__ = ["NAMES_ELSEWHERE", "keep_said", "said_keys"]

# What auto-round, gptqmodel, AutoAWQ, hqq, Neural Compressor and ONNX Runtime call a key.
NAMES_ELSEWHERE: Mapping[str, str] = {
    "nsamples": "text.samples",
    "n_samples": "text.samples",
    "seqlen": "text.length",
    "max_seq_len": "text.length",
    "wbits": "weights.bits",
    "w_bit": "weights.bits",
    "nbits": "weights.bits",
    "groupsize": "weights.group_size",
    "q_group_size": "weights.group_size",
    "sym": "weights.symmetric",
    "use_sym": "weights.symmetric",
    "use_double_quant": "weights.double_quant",
    "dtype": "weights.format",
    "bnb_4bit_quant_type": "weights.format",
    "quant_lm_head": "rules",
    "layer_config": "rules",
    "op_type_dict": "rules",
    "op_name_dict": "rules",
    "nodes_to_exclude": "rules",
    "use_mse_search": "rtn.search",
    "use_full_range": "rtn.full_range",
    "percdamp": "gptq.damp",
    "damp_percent": "gptq.damp",
    "blocksize": "gptq.block_size",
    "desc_act": "gptq.act_order",
    "hybrid_act_order": "gptq.act_order",
    "actorder": "gptq.act_order",
    "fp8_aware": "gptq.fp8_scales",
    "use_auto_clip": "awq.clip",
    "folding": "awq.insert",
    "n_blocks": "autoround.nblocks",
    "smooth_quant": "smoothing.alpha",
    "alpha_step": "smoothing.grid",
    "shared_criterion": "smoothing.criterion",
    "calibrate_method": "calibration.method",
    "calibration_sampling_size": "calibration.max_samples",
    "quantization_format": "the argument form",
    "use_layer_wise": "the argument work",
    "low_gpu_mem_usage": "the argument work",
    "dataset": "the argument calibration",
}


def keep_said(model: pydantic.BaseModel, given: Mapping[str, Any]) -> None:
    """Let only the keys of ``given``, in all its tables, count as set in ``model``."""
    model.model_fields_set.intersection_update(given)
    for key in model.model_fields_set:
        table = getattr(model, key)
        if isinstance(table, pydantic.BaseModel) and isinstance(given[key], Mapping):
            keep_said(table, given[key])


def said_keys(model: pydantic.BaseModel, table: str = "") -> Iterator[str]:
    """The keys that are set and not as by default, those of tables as ``table.key``."""
    for key in sorted(model.model_fields_set):
        value, default = getattr(model, key), type(model).model_fields[key].get_default()
        if isinstance(default, pydantic.BaseModel):
            yield from said_keys(value, f"{table}{key}.")
        elif value != default:
            yield table + key
