"""Small GGUF files, written by the gguf package as llama.cpp's converter lays them out."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def save_gguf(
    path: pathlib.Path,
    model: Any,
    kind: str,
    *,
    architecture: str = "llama",
    merges: tuple[str, ...] | None = ("a b",),
) -> None:
    """Write a Llama; the model's matrices become what the file's stand for.

    Args:
        path: Of the file.
        model: ``LlamaForCausalLM``; its weights are replaced.
        kind: Type of the matrices, a name of ``GGMLQuantizationType``.
        architecture: What the file says.
        merges: Of its tokenizer, whose tokens are characters and "ab"; None writes no tokenizer.
    """
    import gguf
    import torch

    config, quantized = model.config, gguf.GGMLQuantizationType[kind]
    file = gguf.GGUFWriter(str(path), architecture)
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    file.add_rope_freq_base(10000.0)
    file.add_vocab_size(config.vocab_size)
    if merges is not None:
        characters = [chr(33 + index) for index in range(config.vocab_size - 4)]
        file.add_tokenizer_model("gpt2")
        file.add_token_list(["<unk>", "<s>", "</s>", *characters, "ab"])
        file.add_token_types([3, 3, 3, *[1] * (config.vocab_size - 3)])
        file.add_token_merges(list(merges))
        file.add_bos_token_id(1)
        file.add_eos_token_id(2)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, parameter in model.state_dict().items():
        stem = name.removesuffix(".weight")
        part = _PARTS.get(stem.split(".", 3)[-1], "")
        target = _TOP.get(stem) or f"blk.{stem.split('.')[2]}.{part}"
        array = parameter.numpy().astype(np.float32)
        if array.ndim == 1:
            file.add_tensor(f"{target}.weight", array)
            continue
        if part in heads:  # the two halves of a head alternate there
            array = _swap(array, heads[part], 2)
        stored = gguf.quants.quantize(np.ascontiguousarray(array), quantized)
        file.add_tensor(f"{target}.weight", stored, raw_dtype=quantized)
        array = gguf.quants.dequantize(stored, quantized)
        if part in heads:
            array = _swap(array, heads[part], array.shape[0] // heads[part] // 2)
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def _swap(array: np.ndarray, heads: int, rows: int) -> np.ndarray:
    return array.reshape(heads, rows, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
