"""Folders as GPTQ, AWQ and AutoRound leave them, packed here bit by bit as their formats say."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from decoders import decoder

_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)

# quantization_config by name of a layout
CONFIGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "checkpoint_format": "gptq", "desc_act": False},
    "gptq-v2": {"quant_method": "gptq", "checkpoint_format": "gptq_v2", "desc_act": False},
    "awq": {"quant_method": "awq", "version": "gemm", "zero_point": True},
    "auto-round": {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"},
    "auto-round-own": {"quant_method": "auto-round", "packing_format": "auto_round"},
    "auto-round-awq": {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"},
}


def stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Integers ``[rows, n]`` as int32 words ``[rows, n * bits / 32]``, by big Python integers."""
    words = np.zeros((codes.shape[0], codes.shape[1] * bits // 32), np.uint32)
    for row, numbers in enumerate(codes.tolist()):
        whole = sum(number << (bits * place) for place, number in enumerate(numbers))
        for word in range(words.shape[1]):
            words[row, word] = (whole >> (32 * word)) & 0xFFFFFFFF
    return words.view(np.int32)


def awq_words(codes: np.ndarray) -> np.ndarray:
    """4-bit integers ``[rows, n]`` as AWQ's int32 words ``[rows, n / 8]``."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for place, column in enumerate(_AWQ_COLUMNS):
        words |= codes[:, column::8].astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


def packed(
    codes: np.ndarray, zeros: np.ndarray, bits: int, layout: str
) -> tuple[np.ndarray, np.ndarray]:
    """``qweight`` and ``qzeros`` of integers ``[K, N]`` and zero points ``[groups, N]``."""
    if layout.endswith("awq"):
        return awq_words(codes), awq_words(zeros)
    less = 0 if layout in ("gptq-v2", "auto-round-own") else 1
    return np.ascontiguousarray(stream(codes.T, bits).T), stream(zeros - less, bits)


def write_checkpoint(
    folder: pathlib.Path,
    layout: str,
    *,
    bits: int = 4,
    group: int = 16,
    symmetric: bool = False,
    shuffled: bool = False,
    name: str = "llama",
    seed: int = 0,
) -> tuple[Any, dict[str, dict[str, np.ndarray]]]:
    """A tiny decoder of which every linear layer is quantized at random.

    Returns:
        The float model with the dequantized weights, and by module ``codes`` ``[K, N]``,
        ``scale`` and ``zero`` ``[groups, N]`` and ``group`` ``[K]``.
    """
    import torch
    from safetensors.torch import load_file, save_file

    model = decoder(name)
    model.save_pretrained(folder)
    random = np.random.default_rng(seed)
    tensors = load_file(folder / "model.safetensors")
    truth: dict[str, dict[str, np.ndarray]] = {}
    modules = dict(model.named_modules())
    for module, layer in modules.items():
        if type(layer).__name__ != "Linear" or module == "lm_head":
            continue
        n, k = layer.weight.shape
        size = k if group == -1 else group
        count = -(-k // size)
        belongs = np.arange(k) // size
        if shuffled:
            belongs = random.permutation(belongs)
        codes = random.integers(0, 1 << bits, (k, n))
        zeros = random.integers(1, 1 << bits, (count, n))
        if symmetric:
            zeros = np.full_like(zeros, 1 << (bits - 1))
        scale = random.uniform(0.5, 1.5, (count, n)) / (1 << bits) / k**0.5
        scale = scale.astype(np.float16)
        weight = (codes - zeros[belongs]).astype(np.float32) * scale.astype(np.float32)[belongs]
        qweight, qzeros = packed(codes, zeros, bits, layout)
        del tensors[f"{module}.weight"]
        tensors[f"{module}.qweight"] = torch.from_numpy(qweight)
        tensors[f"{module}.qzeros"] = torch.from_numpy(qzeros)
        tensors[f"{module}.scales"] = torch.from_numpy(scale)
        if not layout.endswith("awq"):
            tensors[f"{module}.g_idx"] = torch.from_numpy(belongs.astype(np.int32))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight.T))
        truth[module] = {"codes": codes, "scale": scale, "zero": zeros, "group": belongs}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = {**CONFIGS[layout], "bits": bits, "group_size": group, "sym": symmetric}
    configure(folder, quantization_config=said)
    return model, truth


def configure(folder: pathlib.Path, **changes: Any) -> None:
    """Change what a folder's config.json says; None takes a key out."""
    path = folder / "config.json"
    said = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
