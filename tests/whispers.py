"""Tiny random Whispers, and what transformers makes of sound and tokens."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

SIZES = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 80,
    "num_mel_bins": 80,
    "max_source_positions": 24,
    "max_target_positions": 40,
    "vocab_size": 101,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


def whisper(**changes: Any) -> Any:
    """A seeded model in evaluation mode, with larger weights than at the start of training."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.WhisperConfig(**{**SIZES, **changes})
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.add_(torch.randn_like(parameter) / fan_in**0.5)
    return model


def save_tokenizer(folder: pathlib.Path) -> None:
    """A byte-level tokenizer of 101 tokens, Whisper's special ones among them."""
    import tokenizers
    import transformers

    said = tokenizers.Tokenizer(tokenizers.models.BPE())
    said.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    said.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=101, special_tokens=special, show_progress=False
    )
    said.train_from_iterator(["the keeper of the lamp, the lamp of the keeper"] * 4, trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=said, eos_token=special[0], bos_token=special[1]
    ).save_pretrained(folder)


def features(model: Any, batch: int, seed: int = 0) -> np.ndarray:
    """Random numbers in the shape of log-mel spectrograms."""
    shape = (batch, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def transformers_outputs(model: Any, heard: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    """``encoder_hidden_states`` and ``logits`` of whole texts."""
    import torch

    with torch.no_grad():
        states = model.model.encoder(torch.from_numpy(heard)).last_hidden_state
        logits = model(
            encoder_outputs=(states,), decoder_input_ids=torch.from_numpy(ids), use_cache=False
        ).logits
    return {"encoder_hidden_states": states.numpy(), "logits": logits.numpy()}


def step_feed(ids: np.ndarray, made: dict[str, np.ndarray], specs: Any) -> dict[str, np.ndarray]:
    """Inputs of the decoder; ``made`` are outputs of the encoder and of the step before."""
    feed = {"input_ids": ids}
    for spec in specs:
        if spec.name != "input_ids":
            empty = np.zeros((len(ids), spec.shape[1], 0, spec.shape[3]), np.float32)
            feed[spec.name] = made.get(spec.name.replace("past_", "present_"), empty)
    return feed
