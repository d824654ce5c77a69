"""transformers models and folders: inputs, names and dynamic axes from the configuration."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from checkpoints import configure
from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import open_model
from qcompiler.runtime.inputs import generate_feed, input_specs
from qcompiler.runtime.session import open_session, run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = 2e-5  # float32 through two layers, kernels of two libraries
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def bert(cls: str = "BertModel", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, **_SIZES, **changes)
    return getattr(transformers, cls)(config)


def vit() -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_channels=1, **_SIZES)
    return transformers.ViTForImageClassification(config)


def whisper() -> Any:
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sound = {"num_mel_bins": 4, "max_source_positions": 6}
    tokens = {f"{word}_token_id": 0 for word in ("pad", "bos", "eos")}
    config = transformers.WhisperConfig(
        vocab_size=50, d_model=16, **sizes, **heads, **sound, **tokens, decoder_start_token_id=1
    )
    return transformers.WhisperModel(config)


def t5() -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return transformers.T5Model(config)


def agrees(model: Any, opened: Any, **dims: int) -> None:
    for feed in (opened.example, generate_feed(opened.model, dims=dims)):
        ours = run(open_session(opened.model), feed)
        with torch.no_grad():
            theirs = model.eval()(**{name: torch.from_numpy(x) for name, x in feed.items()})
        for name, array in ours.items():
            np.testing.assert_allclose(array, theirs[name].numpy(), rtol=CLOSE, atol=CLOSE)


@pytest.mark.slow
def test_a_bert_gets_the_names_and_axes_onnx_users_expect() -> None:
    model = bert().train()
    opened = open_model(model)
    assert model.training
    assert [str(spec) for spec in input_specs(opened.model)] == [
        "input_ids: int64[batch, sequence]",
        "attention_mask: int64[batch, sequence]",
        "token_type_ids: int64[batch, sequence]",
    ]
    outputs = [value.name for value in opened.model.graph.outputs]
    assert outputs == ["last_hidden_state", "pooler_output"]
    assert sum(node.op_type == "Attention" for node in opened.model.graph) == 2
    agrees(model, opened, batch=3, sequence=7)


@pytest.mark.slow
def test_a_vit_gets_pixel_values_of_its_size() -> None:
    model = vit()
    opened = open_model(model)
    assert [str(spec) for spec in input_specs(opened.model)] == [
        "pixel_values: float32[batch, 1, 16, 16]"
    ]
    assert [value.name for value in opened.model.graph.outputs] == ["logits"]
    agrees(model, opened, batch=3)


@pytest.mark.slow
def test_a_folder_is_read_with_its_head(tmp_path: pathlib.Path) -> None:
    model = bert("BertForSequenceClassification", type_vocab_size=1)
    model.save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    assert opened.kind == "transformers"
    assert [spec.name for spec in input_specs(opened.model)] == ["input_ids", "attention_mask"]
    assert [value.name for value in opened.model.graph.outputs] == ["logits"]
    agrees(model, opened, batch=3, sequence=7)


def test_a_class_that_transformers_lacks_is_told(tmp_path: pathlib.Path) -> None:
    bert().save_pretrained(tmp_path)
    configure(tmp_path, architectures=["Strange"])
    (told,) = [x for x in open_model(tmp_path).diagnostics if x.code is Code.CLASS_ASSUMED]
    assert "'Strange'" in told.message


def test_a_folder_of_an_unknown_class_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonesuch"}))
    with pytest.raises(QcError) as caught:
        open_model(tmp_path)
    assert caught.value.code is Code.UNSUPPORTED_INPUT


def test_an_encoder_decoder_is_refused_with_the_way_to_do_it() -> None:
    with pytest.raises(QcError) as caught:
        open_model(t5())
    assert "get_encoder" in caught.value.diagnostic.hint


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (whisper, ["input_features: float32[batch, 4, 12]"]),
        (
            t5,
            ["input_ids: int64[batch, sequence]", "attention_mask: int64[batch, sequence]"],
        ),
    ],
)
def test_the_encoder_of_an_encoder_decoder_needs_no_examples(make: Any, inputs: list[str]) -> None:
    encoder = make().get_encoder()
    opened = open_model(encoder)
    assert [str(spec) for spec in input_specs(opened.model)] == inputs
    agrees(encoder, opened, batch=3)


def test_its_decoder_does() -> None:
    with pytest.raises(QcError, match="reads encoder_hidden_states") as caught:
        open_model(whisper().get_decoder())
    assert caught.value.code is Code.NEEDS_EXAMPLE_INPUTS


def test_a_spectrogram_has_the_size_of_the_configuration() -> None:
    torch.manual_seed(0)
    config = transformers.ASTConfig(
        **_SIZES, num_mel_bins=16, max_length=32, patch_size=8, frequency_stride=8, time_stride=8
    )
    model = transformers.ASTModel(config)
    opened = open_model(model)
    assert [str(spec) for spec in input_specs(opened.model)] == [
        "input_values: float32[batch, 32, 16]"
    ]
    agrees(model, opened, batch=3)
