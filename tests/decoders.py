"""Tiny random language models of each family, and what transformers makes of tokens."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT2 = {
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 101,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}

_HALF_TURNED = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    }
}

_TWO_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}  # of 32

# Class name and what its configuration says.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_SIZES}),
    "llama-tied": ("Llama", {**_SIZES, "tie_word_embeddings": True}),
    "llama-biases": ("Llama", {**_SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama-llama3": ("Llama", {**_SIZES, "rope_parameters": _LLAMA3}),
    "llama-linear": ("Llama", {**_SIZES, "rope_parameters": _LINEAR}),
    "llama-yarn": ("Llama", {**_SIZES, "rope_parameters": _YARN}),
    "llama-wide-heads": ("Llama", {**_SIZES, "head_dim": 48}),
    "mistral-window": ("Mistral", {**_SIZES, "sliding_window": 5}),
    "qwen2": ("Qwen2", {**_SIZES}),
    "qwen3": ("Qwen3", {**_SIZES, "head_dim": 16}),
    "phi3": ("Phi3", {**_SIZES}),
    "phi3-partial": ("Phi3", {**_SIZES, "head_dim": 32, **_HALF_TURNED}),
    "gemma": ("Gemma", {**_SIZES, "head_dim": 16}),
    "gemma2": (
        "Gemma2",
        {
            **_SIZES,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 1.5,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            **_SIZES,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
            "attn_logit_softcapping": 2.0,  # which this family does not read
            "final_logit_softcapping": 1.5,
        },
    ),
    "granite": (
        "Granite",
        {
            **_SIZES,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.7,
            "logits_scaling": 2.0,
        },
    ),
    "olmo2": ("Olmo2", {**_SIZES}),
    "phi": ("Phi", {**_SIZES, **_TWO_HEADS, **_HALF_TURNED}),
    "smollm3": ("SmolLM3", {**_SIZES, "no_rope_layers": [1, 0]}),
    "stablelm": ("StableLm", {**_SIZES, "use_qkv_bias": True, **_TWO_HEADS, **_HALF_TURNED}),
    "starcoder2": ("Starcoder2", {**_SIZES, "sliding_window": 5}),
    "gpt2": ("GPT2", {**_GPT2}),
    "gpt2-unscaled": ("GPT2", {**_GPT2, "scale_attn_weights": False}),
}
# Switches of other families, which some published files hold and no model of these reads.
_FOREIGN = {
    "sliding_window": 5,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 1.5,
    "hidden_activation": "gelu",
    "partial_rotary_factor": 0.5,
}
DECODERS["llama-foreign"] = ("Llama", {**_SIZES, "head_dim": 32, **_FOREIGN})
_CONFIGS = {"Gemma3": "Gemma3TextConfig"}
_MODELS = {"GPT2": "GPT2LMHeadModel"}


def decoder(name: str) -> Any:
    """A seeded model in evaluation mode, with larger weights than at the start of training.

    So that attention is not uniform, norms are not ones, and biases are not zeros.
    """
    import torch
    import transformers

    cls, sizes = DECODERS[name]
    config = getattr(transformers, _CONFIGS.get(cls, f"{cls}Config"))(**sizes)
    torch.manual_seed(0)
    config._attn_implementation = "eager"  # sdpa has no softcap
    model = getattr(transformers, _MODELS.get(cls, f"{cls}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 10
            parameter.add_(torch.randn_like(parameter) / fan_in**0.5)
    model.config.architectures = [type(model).__name__]
    return model


def tokens(batch: int, length: int, seed: int = 0) -> np.ndarray:
    """Random tokens other than the special ones."""
    return np.random.default_rng(seed).integers(3, 101, (batch, length))


def transformers_logits(model: Any, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """All logits of whole texts."""
    import torch

    mask = np.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        found = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
    return np.asarray(found.numpy())


def decoder_feed(
    ids: np.ndarray, mask: np.ndarray, past: dict[str, np.ndarray] | None, specs: Any
) -> dict[str, np.ndarray]:
    """Inputs of our graph; ``past`` are the outputs of the step before."""
    feed = {"input_ids": ids, "attention_mask": mask}
    for spec in specs:
        if spec.name.startswith("past_key_values."):
            before = spec.name.replace("past_key_values", "present")
            empty = np.zeros((len(ids), spec.shape[1], 0, spec.shape[3]), np.float32)
            feed[spec.name] = empty if past is None else past[before]
    return feed


def save_tokenizer(folder: pathlib.Path) -> None:
    """A byte-level tokenizer of 101 tokens, as transformers writes it."""
    import tokenizers
    import transformers

    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=101, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False
    )
    model.train_from_iterator(["the keeper of the lamp, the lamp of the keeper"] * 4, trainer)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=model, **special).save_pretrained(folder)
