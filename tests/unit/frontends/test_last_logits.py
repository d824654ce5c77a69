"""Logits of the last token: the same numbers, whatever the padding and the past; refusals."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from decoders import decoder, decoder_feed, tokens
from qcompiler import qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import open_model
from qcompiler.frontends.decoder.last_logits import keep_last_logits
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.session import open_session, run

pytest.importorskip("transformers")

CLOSE = 1e-5  # the head's sum in another order, for another number of rows


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_logits_are_those_of_each_texts_last_token(name: str) -> None:
    whole = open_model(decoder(name)).model
    last = whole.clone()
    keep_last_logits(last, "model")
    specs = input_specs(whole)
    sessions = [open_session(model, threads=1) for model in (whole, last)]
    ids = np.pad(tokens(2, 9), ((0, 0), (0, 3)))
    mask = np.ones_like(ids)
    mask[0, 9:] = mask[1, 7:] = 0
    past = None
    ends = np.array([8, 6])
    for _ in range(3):
        feed = decoder_feed(ids, mask, past, specs)
        all_logits, found = (run(session, feed) for session in sessions)
        wanted = all_logits["logits"][np.arange(2), ends][:, None]
        assert found["logits"].shape == wanted.shape
        limit = CLOSE * np.abs(wanted).max()
        np.testing.assert_allclose(found["logits"], wanted, rtol=0, atol=limit)
        past, ends = all_logits, np.array([0, 0])
        ids, mask = tokens(2, 1), np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)


def test_the_recipe_is_verified_against_float_and_the_output_says_its_shape() -> None:
    artifact = qcompile(decoder("llama"), recipe={"base": "float", "last_logits": True}, threads=1)
    logits = artifact.model.graph.outputs[0]
    assert logits.shape is not None
    assert logits.shape[1:] == (1, 101)
    fidelity = {item["output"]: item for item in artifact.report.fidelity}
    assert fidelity["logits"]["cosine"] > 0.9999


def test_a_model_that_is_no_decoder_is_refused() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    agraph (float[N,4] x) => (float[N,4] logits) <float[4] b = {1, 2, 3, 4}> { logits = Add(x, b) }
    """
    with pytest.raises(QcError, match="wants a decoder") as caught:
        qcompile(ir.from_onnx_text(text), recipe={"base": "float", "last_logits": True})
    assert caught.value.diagnostic.code is Code.USAGE
