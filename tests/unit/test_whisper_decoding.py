"""Whisper: weights land under their names, and decoding all positions at once is greedy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler_models import AssetError
from qcompiler_models import whisper_listening as listening


def variables_of(model: Any, layers: int) -> dict[str, np.ndarray]:
    """What a CTranslate2 file would hold of a transformers model."""
    states = {name: value.numpy() for name, value in model.state_dict().items()}
    found = {}
    for part in ("encoder", "decoder"):
        base = f"model.{part}"
        found[f"{part}/position_encodings/encodings"] = states[f"{base}.embed_positions.weight"]
        norms = {f"{part}/layer_norm": f"{base}.layer_norm"}
        for i in range(layers):
            to, at = f"{part}/layer_{i}", f"{base}.layers.{i}"
            norms[f"{to}/self_attention/layer_norm"] = f"{at}.self_attn_layer_norm"
            norms[f"{to}/ffn/layer_norm"] = f"{at}.final_layer_norm"
            linears = {
                "self_attention/linear_0": [f"self_attn.{x}_proj" for x in "qkv"],
                "self_attention/linear_1": ["self_attn.out_proj"],
                "ffn/linear_0": ["fc1"],
                "ffn/linear_1": ["fc2"],
            }
            if part == "decoder":
                norms[f"{to}/attention/layer_norm"] = f"{at}.encoder_attn_layer_norm"
                linears["attention/linear_0"] = ["encoder_attn.q_proj"]
                linears["attention/linear_1"] = [f"encoder_attn.{x}_proj" for x in "kv"]
                linears["attention/linear_2"] = ["encoder_attn.out_proj"]
            for name, parts in linears.items():
                weights = [states[f"{at}.{p}.weight"] for p in parts]
                zeros = [np.zeros(len(w), np.float32) for w in weights]
                biases = [
                    states.get(f"{at}.{p}.bias", z) for p, z in zip(parts, zeros, strict=True)
                ]
                found[f"{to}/{name}/weight"] = np.concatenate(weights)
                found[f"{to}/{name}/bias"] = np.concatenate(biases)
        for name, at in norms.items():
            found[f"{name}/gamma"] = states[f"{at}.weight"]
            found[f"{name}/beta"] = states[f"{at}.bias"]
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            found[f"encoder/{conv}/{kind}"] = states[f"model.encoder.{conv}.{kind}"]
    found["decoder/embeddings/weight"] = states["model.decoder.embed_tokens.weight"]
    return found


@pytest.fixture(scope="module")
def small() -> Any:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.WhisperConfig(
        vocab_size=20, num_mel_bins=4, d_model=8, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=12,
        decoder_ffn_dim=12, max_source_positions=5, max_target_positions=6,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def test_every_weight_lands_under_its_name(small: Any) -> None:
    from qcompiler_models.whisper_torch import build

    built = build(variables_of(small, 1), small.config)
    wanted = small.state_dict()
    assert built.state_dict().keys() == wanted.keys()
    for name, value in built.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), wanted[name].numpy(), name)
    assert built.proj_out.weight is built.model.decoder.embed_tokens.weight


def test_weights_of_no_whisper_are_refused(small: Any) -> None:
    from qcompiler_models.whisper_torch import build

    variables = variables_of(small, 1)
    biased = {**variables, "encoder/layer_0/self_attention/linear_0/bias": np.ones(24, np.float32)}
    with pytest.raises(AssetError, match=r"k_proj\.bias is not zero"):
        build(biased, small.config)
    wide = {**variables, "encoder/conv1/bias": np.ones(9, np.float32)}
    with pytest.raises(AssetError, match="do not fit"):
        build(wide, small.config)
    del variables["encoder/conv1/bias"]
    with pytest.raises(AssetError, match="no variable 'encoder/conv1/bias'"):
        build(variables, small.config)


class Words:
    """Stands for the tokenizer."""

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def test_decoding_all_positions_at_once_gives_what_one_at_a_time_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listening, "_tokenizer", Words)
    monkeypatch.setattr(
        listening, "config", lambda: {"suppress_ids": [3], "suppress_ids_begin": []}
    )
    monkeypatch.setattr(listening, "END", 9)
    monkeypatch.setattr(listening, "_PROMPT", (9, 9))
    steps = []

    def logits_of(tokens: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Each position's scores hang on all tokens up to it, and on the row's states."""
        sums = np.cumsum((tokens + 1) * np.arange(1, tokens.shape[1] + 1), axis=1)
        turns = sums[:, :, None] * np.arange(1, 11) + states
        return np.cos(turns).astype(np.float32)

    def decode(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        steps.append(len(feed["input_ids"]))
        return {"logits": logits_of(feed["input_ids"], feed["encoder_hidden_states"])}

    def one_at_a_time(states: np.ndarray) -> list[int]:
        tokens = [9, 9]
        while len(tokens) < 40:
            scores = logits_of(np.array([tokens]), states)[0, -1]
            scores[3] = -np.inf
            best = int(scores.argmax())
            if best == 9:
                break
            tokens.append(best)
        return tokens[2:]

    states = np.arange(6, dtype=np.float32).reshape(6, 1, 1)
    draft = np.full((6, 24), 9)
    found = listening._transcribe(decode, states, draft, np.zeros_like(draft, bool))
    wanted = [one_at_a_time(states[i : i + 1]) for i in range(6)]
    assert 3 < max(map(len, wanted)) < 30
    assert found == [Words().decode(tokens) for tokens in wanted]
    assert steps[-1] < 6  # rows that are done are not fed again
