"""The decoder builder: logits of transformers, cache, padding, lazy weights, refusals."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from checkpoints import configure
from decoders import (
    DECODERS,
    decoder,
    decoder_feed,
    save_tokenizer,
    tokens,
    transformers_logits,
)
from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import open_model
from qcompiler.frontends.decoder import is_decoder
from qcompiler.frontends.tokenizer import find_tokenizer
from qcompiler.ir.lazy import tied, view_of
from qcompiler.ir.provenance import module_of
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = 2e-5  # of the largest logit; float32 through two layers, kernels of two libraries


def check(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE * np.abs(wanted).max())


@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_those_of_transformers_with_and_without_a_past(name: str) -> None:
    model = decoder(name)
    ids = tokens(2, 12)
    wanted = transformers_logits(model, ids)
    opened = open_model(model)
    session, specs = open_session(opened.model, threads=1), input_specs(opened.model)
    ones = np.ones_like(ids)
    check(run(session, decoder_feed(ids, ones, None, specs))["logits"], wanted)
    step = run(session, decoder_feed(ids[:, :9], ones[:, :9], None, specs))
    for end in range(10, 13):
        step = run(session, decoder_feed(ids[:, end - 1 : end], ones[:, :end], step, specs))
        check(step["logits"], wanted[:, end - 1 : end])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_texts_of_one_batch_are_padded_on_the_right_and_go_on_apart(name: str) -> None:
    model = decoder(name)
    long, short = tokens(1, 9)[0], tokens(1, 6, seed=1)[0]
    more = tokens(2, 2, seed=2)
    ids = np.stack([long, np.pad(short, (0, 3))])
    mask = np.stack([np.ones(9, np.int64), np.pad(np.ones(6, np.int64), (0, 3))])
    opened = open_model(model)
    session, specs = open_session(opened.model, threads=1), input_specs(opened.model)
    step = run(session, decoder_feed(ids, mask, None, specs))
    alone = [np.concatenate([long, more[0]]), np.concatenate([short, more[1]])]
    wanted = [transformers_logits(model, text[None])[0] for text in alone]
    check(step["logits"][0], wanted[0][:9])
    check(step["logits"][1, :6], wanted[1][:6])
    for index in range(2):
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        step = run(session, decoder_feed(more[:, index : index + 1], mask, step, specs))
        check(step["logits"][0, 0], wanted[0][9 + index])
        check(step["logits"][1, 0], wanted[1][6 + index])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_folder_gives_the_logits_of_its_weights_whatever_their_type(
    dtype: str, tmp_path: pathlib.Path
) -> None:
    model = decoder("llama-tied").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    assert opened.example is not None
    found = run(open_session(opened.model, threads=1), opened.example)["logits"]
    # read anew in float32: .float() would keep the rotary frequencies of the narrow type
    wide = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    check(found, transformers_logits(wide, opened.example["input_ids"]))


def test_a_model_in_memory_brings_the_tokenizer_of_its_folder_or_is_told(
    tmp_path: pathlib.Path,
) -> None:
    model = decoder("llama")
    told = [item for item in open_model(model).diagnostics if item.code is Code.TOKENIZER_MISSING]
    assert len(told) == 1
    assert "save_pretrained" in told[0].hint
    model.save_pretrained(tmp_path)
    assert [item.code for item in open_model(tmp_path).diagnostics] == [Code.TOKENIZER_MISSING]
    save_tokenizer(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for source in (loaded, tmp_path):
        opened = open_model(source)
        assert Code.TOKENIZER_MISSING not in {item.code for item in opened.diagnostics}
        assert "tokenizer.json" in opened.companions(SessionSettings())


def test_shards_are_read_through_their_index(tmp_path: pathlib.Path) -> None:
    model = decoder("phi3")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    opened = open_model(tmp_path)
    assert opened.example is not None
    found = run(open_session(opened.model, threads=1), opened.example)["logits"]
    check(found, transformers_logits(model, opened.example["input_ids"]))


def test_weights_stay_in_the_file_and_tied_ones_are_known(tmp_path: pathlib.Path) -> None:
    decoder("llama-tied").save_pretrained(tmp_path)
    constants = open_model(tmp_path).model.graph.initializers
    table, head = constants["model.embed_tokens.weight"], constants["lm_head.weight"]
    other = constants["model.layers.0.mlp.up_proj.weight"]
    assert tied(table.const_value, head.const_value)
    assert not tied(table.const_value, other.const_value)
    view = view_of(other.const_value)
    assert view is not None
    mapped = view.array()
    assert not mapped.flags.owndata, "a float32 weight is a view of the mapped file"
    assert not mapped.flags.writeable


def rewrite(folder: pathlib.Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("name", "change", "is_tied"),
    [
        ("gpt2", lambda x: {key.removeprefix("transformer."): x[key] for key in x}, True),
        ("llama-tied", lambda x: {HEAD if key == TABLE else key: x[key] for key in x}, True),
        ("llama-tied", lambda x: {**x, HEAD: x[TABLE].clone()}, True),
        ("llama-tied", lambda x: {**x, HEAD: 2 * x[TABLE]}, False),
    ],
    ids=["saved without its head", "the head alone", "both", "both and different"],
)
def test_names_and_ties_of_files_are_read_as_transformers_does(
    name: str, change: Any, is_tied: bool, tmp_path: pathlib.Path
) -> None:
    model = decoder(name)
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    opened = open_model(tmp_path)
    assert opened.example is not None
    found = run(open_session(opened.model, threads=1), opened.example)["logits"]
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="eager")
    check(found, transformers_logits(loaded, opened.example["input_ids"]))
    constants = opened.model.graph.initializers
    table = next(constants[key] for key in constants if key.endswith(("wte.weight", TABLE)))
    assert tied(table.const_value, constants[HEAD].const_value) is is_tied


def test_a_head_that_is_missing_is_not_made_of_the_embedding(tmp_path: pathlib.Path) -> None:
    decoder("llama").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda x: {key: x[key] for key in x if key != HEAD})
    with pytest.raises(QcError, match=f"no weight '{HEAD}'"):
        open_model(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_generation_config_is_refused(text: str, tmp_path: pathlib.Path) -> None:
    decoder("llama").save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(QcError, match=r"generation_config\.json") as caught:
        open_model(tmp_path)
    assert caught.value.code is Code.UNSUPPORTED_INPUT


def test_linear_layers_are_matmuls_under_the_path_of_their_module() -> None:
    graph = open_model(decoder("phi3")).model.graph
    found = {
        (node.name, module_of(node)) for node in graph if node.op_type == "MatMul" and node.name
    }
    layer = "model.layers.1"
    for part in ("self_attn.qkv_proj.q", "mlp.gate_up_proj.up", "mlp.down_proj"):
        module = part.removesuffix(".q").removesuffix(".up")
        assert (f"{layer}.{part}/MatMul", f"{layer}.{module}") in found


def test_example_inputs_give_the_plain_export() -> None:
    model = decoder("llama")
    opened = open_model(model, {"input_ids": torch.from_numpy(tokens(1, 8))})
    assert [value.name for value in opened.model.graph.inputs] == ["input_ids"]
    session = open_session(opened.model, threads=1)
    for batch, length in ((1, 8), (3, 5)):
        other = tokens(batch, length, seed=1)
        check(run(session, {"input_ids": other})["logits"], transformers_logits(model, other))


def test_the_class_of_a_model_in_memory_decides_and_not_its_configuration() -> None:
    model = decoder("llama")
    for part in (model.model, transformers.LlamaForSequenceClassification(model.config)):
        assert not is_decoder(part)
    opened = open_model(model.model.eval())
    assert [x.name for x in opened.model.graph.inputs] == ["input_ids", "attention_mask"]
    model.config.architectures = None  # as before it is saved for the first time
    assert len(open_model(model).model.graph.inputs) == 6


def test_models_in_memory_without_data_or_with_other_layers_are_refused() -> None:
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(decoder("llama").config)
    with pytest.raises(QcError, match="meta device") as caught:
        open_model(empty)
    assert caught.value.code is Code.UNSUPPORTED_INPUT
    changed = decoder("llama")
    layer = changed.model.layers[0].mlp
    layer.up_proj = torch.nn.Sequential(layer.up_proj)
    with pytest.raises(QcError, match=r"no weight 'model\.layers\.0\.mlp\.up_proj") as caught:
        open_model(changed)
    assert "example_inputs" in caught.value.diagnostic.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "opt", "architectures": ["OPTForCausalLM"]}, "architecture 'opt'"),
        ({"hidden_act": "tanh"}, "activation 'tanh'"),
        ({"head_dim": 24}, "heads of width 24"),
        ({"model_type": "phi3", "partial_rotary_factor": 0.5}, "rotary embedding of width 8"),
        ({"model_type": "stablelm", "use_parallel_residual": True}, "an MLP beside attention"),
        ({"model_type": "phi", "qk_layernorm": True}, "norms on queries and keys"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0, 1]}, "3 no_rope_layers for 2 layers"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "no layer is packed"),
        ({"quantization_config": "gptq"}, "wanted an object with quant_method"),
        ({"hidden_size": "wide"}, "hidden_size"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rotary embedding of the type 'dynamic'",
        ),
        ({"intermediate_size": 64}, "config.json wants"),
        ({"num_hidden_layers": 1}, "weights belong to no part"),
        ({"num_hidden_layers": 3}, "has no weight"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(
    changes: dict[str, Any], said: str, tmp_path: pathlib.Path
) -> None:
    decoder("llama").save_pretrained(tmp_path)
    configure(tmp_path, **changes)
    with pytest.raises(QcError, match=said) as caught:
        open_model(tmp_path)
    assert caught.value.diagnostic.code is Code.UNSUPPORTED_INPUT


def test_a_text_longer_than_the_model_s_positions_is_told_so() -> None:
    model = open_model(decoder("llama")).model
    ids = tokens(1, 65)
    feed = decoder_feed(ids, np.ones_like(ids), None, input_specs(model)[2:])
    with pytest.raises(QcError, match="more than the model has positions"):
        run(open_session(model), feed)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_refused(name: str, tmp_path: pathlib.Path) -> None:
    decoder("llama").save_pretrained(tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(QcError, match="tokenizer cannot be read") as caught:
        find_tokenizer(tmp_path)
    assert caught.value.code is Code.UNSUPPORTED_INPUT
    said = "tokenizer cannot be read" if name == "tokenizer.json" else "tokenizer_config"
    with pytest.raises(QcError, match=said) as caught:
        open_model(tmp_path)
    assert caught.value.code is Code.UNSUPPORTED_INPUT


def test_half_a_tokenizer_is_told(tmp_path: pathlib.Path) -> None:
    decoder("llama").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    told = {item.code: item.message for item in open_model(tmp_path).diagnostics}
    assert "no tokenizer_config.json;" in told[Code.TOKENIZER_MISSING]


def damage_header(folder: pathlib.Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def move_offsets(folder: pathlib.Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    begin, end = header["lm_head.weight"]["data_offsets"]
    header["lm_head.weight"]["data_offsets"] = [-8, end - begin - 8]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def cut(folder: pathlib.Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def point_outside(folder: pathlib.Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def remove(folder: pathlib.Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("harm", [damage_header, move_offsets, cut, point_outside, remove])
def test_damaged_checkpoints_are_refused(harm: Any, tmp_path: pathlib.Path) -> None:
    decoder("llama").save_pretrained(tmp_path)
    harm(tmp_path)
    with pytest.raises(QcError) as caught:
        open_model(tmp_path)
    assert caught.value.diagnostic.code in (Code.UNSUPPORTED_INPUT, Code.EXTERNAL_DATA)


@pytest.mark.parametrize(
    ("name", "head", "taken"),
    [
        ("llama", True, "LlamaForCausalLM"),
        ("gpt2", False, "GPT2LMHeadModel"),  # tied: the embedding is the head
        ("gemma3", False, "Gemma3ForCausalLM"),
        ("llama", False, "LlamaModel"),
    ],
)
def test_a_folder_that_names_no_class_is_what_its_weights_are(
    name: str, head: bool, taken: str, tmp_path: pathlib.Path
) -> None:
    model = decoder(name)
    (model if head else model.base_model).save_pretrained(tmp_path)
    configure(tmp_path, architectures=None)
    opened = open_model(tmp_path)
    outputs = [value.name for value in opened.model.graph.outputs]
    assert ("logits" in outputs) == (taken != "LlamaModel")
    (told,) = [item for item in opened.diagnostics if item.code is Code.CLASS_ASSUMED]
    assert taken in told.message
    configure(tmp_path, architectures=[taken])
    assert Code.CLASS_ASSUMED not in {item.code for item in open_model(tmp_path).diagnostics}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("max_position_embeddings", 0),
        ("max_position_embeddings", -1),
        ("max_position_embeddings", 10**30),
        ("vocab_size", 0),
        ("num_hidden_layers", 0),
    ],
)
def test_sizes_that_no_model_has_are_refused(name: str, found: int, tmp_path: pathlib.Path) -> None:
    decoder("llama").save_pretrained(tmp_path)
    configure(tmp_path, **{name: found})
    with pytest.raises(QcError, match=rf"{name} of the configuration is {found}, wanted") as caught:
        open_model(tmp_path)
    assert caught.value.code is Code.UNSUPPORTED_INPUT
