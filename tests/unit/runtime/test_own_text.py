"""Texts that a decoder writes itself follow its own distribution."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("transformers")

import decoders
from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import open_model
from qcompiler.runtime import own_text
from qcompiler_models import tiny


def opened(name):
    model = open_model(decoders.decoder(name)).model
    return model, own_text.find_writer(model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral-window", "gemma2"])
def test_each_token_is_drawn_from_what_transformers_foretells(name):
    model, writer = opened(name)
    texts = own_text.write_texts(model, writer, 400, 8, seed=1)
    assert texts.shape == (400, 8)
    assert len(np.unique(texts[:, 0])) > 70  # of 101: the first is drawn from the vocabulary
    logits = decoders.transformers_logits(decoders.decoder(name), texts)[:, :-1]
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    # surprise of what was drawn has the entropy as its mean, at each step
    taken = np.take_along_axis(shares, texts[:, 1:, None], -1)[..., 0]
    surprise, entropy = -np.log(taken), -(shares * np.log(shares)).sum(-1)
    spread = np.sqrt((shares * np.log(shares) ** 2).sum(-1) - entropy**2)
    far = (surprise - entropy).sum(0) / np.sqrt((spread**2).sum(0))
    assert np.abs(far).max() < 5


def test_the_seed_tells_the_texts(monkeypatch):
    model, writer = opened("llama")
    whole = own_text.write_texts(model, writer, 5, 6, seed=2)
    np.testing.assert_array_equal(whole, own_text.write_texts(model, writer, 5, 6, seed=2))
    assert not np.array_equal(whole, own_text.write_texts(model, writer, 5, 6, seed=3))
    monkeypatch.setattr(own_text, "_CACHE_BYTES", 1)  # one text at a time
    assert own_text.write_texts(model, writer, 5, 6, seed=2).shape == whole.shape


def test_who_cannot_write():
    _, writer = opened("llama")
    assert writer.longest == 64
    assert own_text.find_writer(open_model(tiny.build("mlp")).model) is None


def test_a_model_larger_than_memory_is_refused(monkeypatch):
    model, writer = opened("llama")
    monkeypatch.setattr(own_text.os, "sysconf", lambda name: 1)
    with pytest.raises(QcError, match="memory") as found:
        own_text.write_texts(model, writer, 1, 4, seed=0)
    assert found.value.code is Code.NEEDS_CALIBRATION


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(QcError, match="finite"):
        own_text._draw(np.array([[0.0, np.nan]]), np.random.default_rng(0))
