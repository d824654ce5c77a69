"""Artifacts as GPTQ and AWQ checkpoints: what is written is what our own door reads."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decoders import DECODERS, decoder
from nbits_weight import unpack_nbits
from qcompiler import Recipe, qcompile
from qcompiler.artifact import Artifact
from qcompiler.diagnostics import Code, QcError
from qcompiler.export import export_checkpoint
from qcompiler.frontends import open_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HALF = 2.0**-11  # relative rounding of float16
SINGLES = ("self_attn.o_proj", "mlp.down_proj")  # no other layer in their kernel
SHARING = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
)


def compiled(
    folder: pathlib.Path,
    name: str = "llama",
    form: str = "ort",
    rules: tuple[dict[str, Any], ...] = (),
    **weights: Any,
) -> Artifact:
    if not folder.exists():
        decoder(name).save_pretrained(folder)
    said = {"bits": 4, "group_size": 32, "symmetric": False, **weights}
    recipe = Recipe.of("weight-int4").changed(
        weights=said, verify={"enabled": False}, **({"rules": rules} if rules else {})
    )
    return qcompile(folder, target="cpu-vnni", recipe=recipe, form=form)


def stored(model: Any, module: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers less zero points, zero points and scales of a layer of a QDQ graph."""
    node = next(node for node in model.graph if node.name == f"{module}/MatMul")
    dq = node.inputs[1].producer()
    q, scale, zero = (value.const_value.numpy() for value in dq.inputs)
    group = np.arange(len(q)) // (dq.attributes["block_size"].as_int())
    zero = zero.astype(np.int64)
    return q.astype(np.int64) - zero[group], zero, scale


def check_layers(artifact: Artifact, folder: pathlib.Path, kind: str = "ort") -> None:
    """Integers equal, scales rounded to float16 and nothing else."""
    read = open_model(folder).model
    nodes = {node.name: node for node in artifact.model.graph}
    for layer in range(2):
        for part in SINGLES:
            module = f"model.layers.{layer}.{part}"
            integers, _, scale = stored(read, module)
            group = np.arange(len(integers)) // (len(integers) // len(scale))
            node = nodes[f"{module}/MatMul"]
            if kind == "qdq":
                wanted, _, own = stored(artifact.model, module)
                np.testing.assert_array_equal(integers, wanted)
            else:
                spec = artifact.plan.nodes[f"{module}/MatMul"].inputs[1]
                parts = [v if v is None else v.const_value.numpy() for v in node.inputs[1:4]]
                parts += [None] * (3 - len(parts))
                floats = unpack_nbits(*parts, spec, len(integers))
                own = parts[1].T
                np.testing.assert_array_equal((integers * own[group]).astype(np.float32), floats)
            np.testing.assert_array_equal(scale, own.astype(np.float16).astype(np.float32))


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    bits=st.sampled_from([2, 4, 8]),
    group=st.sampled_from([16, 32]),
    symmetric=st.booleans(),
    form=st.sampled_from(["ort", "qdq"]),
)
def test_gptq_round_trip_keeps_integers(
    bits: int, group: int, symmetric: bool, form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("gptq")
    artifact = compiled(base / "float", form=form, bits=bits, group_size=group, symmetric=symmetric)
    done = export_checkpoint(artifact, base / "float", base / "out")
    assert done.layers == 14
    check_layers(artifact, base / "out", form)


@pytest.mark.parametrize("prefill", [None, "int8"])
def test_layers_that_share_a_kernel_leave_with_their_own_columns(
    prefill: str | None, tmp_path: pathlib.Path
) -> None:
    decoder("llama").save_pretrained(tmp_path / "float")
    weights = {"bits": 4, "group_size": 32, "symmetric": False}
    recipe = Recipe.of("weight-int4").changed(
        weights=weights, prefill=prefill, verify={"enabled": False}
    )
    artifact = qcompile(tmp_path / "float", target="cpu-vnni", recipe=recipe)
    export_checkpoint(artifact, tmp_path / "float", tmp_path / "out")
    read = open_model(tmp_path / "out").model
    for part in (*SINGLES, *SHARING):
        module = f"model.layers.1.{part}"
        integers, _, scale = stored(read, module)
        weight = decoder("llama").get_submodule(module).weight.detach().numpy().T
        spread = scale.repeat(len(weight) // len(scale), axis=0)
        steps = np.abs(integers * spread - weight) / spread
        assert steps.mean() < 0.27, f"{module}: a quarter on average"


def test_whole_columns_are_rounded_to_the_nearest_step(tmp_path: pathlib.Path) -> None:
    artifact = compiled(tmp_path / "float", group_size=-1)
    export_checkpoint(artifact, tmp_path / "float", tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said["group_size"] == -1
    module = "model.layers.0.mlp.down_proj"
    integers, _, scale = stored(open_model(tmp_path / "out").model, module)
    assert scale.shape == (1, 64)
    weight = decoder("llama").get_submodule(module).weight.detach().numpy().T
    steps = np.abs(integers * scale - weight) / scale
    assert np.quantile(steps, 0.98) <= 0.5 + 16 * HALF, "but for what is clipped at the ends"
    assert steps.mean() < 0.27, "a quarter on average"


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq_round_trip_keeps_integers(symmetric: bool, tmp_path: pathlib.Path) -> None:
    artifact = compiled(tmp_path / "float", symmetric=symmetric)
    export_checkpoint(artifact, tmp_path / "float", tmp_path / "out", "awq")
    check_layers(artifact, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["bits"], said["group_size"]) == ("awq", 4, 32)


def test_a_model_saved_without_its_head_leaves_with_all_its_layers(tmp_path: pathlib.Path) -> None:
    artifact = compiled(tmp_path / "float")
    from safetensors.torch import load_file, save_file

    path = tmp_path / "float" / "model.safetensors"
    short = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    save_file(short, path, metadata={"format": "pt"})
    export_checkpoint(artifact, tmp_path / "float", tmp_path / "out")
    check_layers(artifact, tmp_path / "out")


def test_three_bits_are_read_from_their_planes(tmp_path: pathlib.Path) -> None:
    artifact = compiled(tmp_path / "float", bits=3)
    portable = compiled(tmp_path / "float", bits=3, form="qdq")
    export_checkpoint(artifact, tmp_path / "float", tmp_path / "out")
    export_checkpoint(portable, tmp_path / "float", tmp_path / "other")
    one, other = open_model(tmp_path / "out").model, open_model(tmp_path / "other").model
    for part in ("self_attn.k_proj", "mlp.down_proj"):
        pairs = zip(
            stored(one, f"model.layers.1.{part}"),
            stored(other, f"model.layers.1.{part}"),
            strict=True,
        )
        for found, wanted in pairs:
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "name", ["llama-biases", "qwen3", "phi3", "gemma2", "gpt2", "llama-tied", "phi", "granite"]
)
def test_families_come_back_as_the_model_that_was_compiled(
    name: str, tmp_path: pathlib.Path
) -> None:
    """Layers that share a kernel or a weight are taken apart; the rest is the float model's."""
    head = {"match": "lm_head*", "scheme": "float"}
    table = {"match": "*embed*", "scheme": "float"}
    gpt2 = {"match": "*wte*", "scheme": "float"}
    rules = (head, *((gpt2,) if name == "gpt2" else (table,)))
    artifact = compiled(tmp_path / "float", name, "qdq", rules)
    done = export_checkpoint(artifact, tmp_path / "float", tmp_path / "out")
    told = any("residual_multiplier" in item.message for item in done.diagnostics)
    assert told == (name == "granite")
    again = qcompile(
        tmp_path / "out", target="cpu-vnni", recipe={"verify": {"enabled": False}}, form="qdq"
    )
    plain = dataclasses.replace(artifact.settings, level="disable")
    feed = open_model(tmp_path / "float").example
    assert feed is not None
    wanted = dataclasses.replace(artifact, settings=plain).run(feed)["logits"]
    found = dataclasses.replace(again, settings=plain).run(feed)["logits"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=20 * HALF * np.abs(wanted).max())


def test_layers_in_float_are_named_and_what_differs_is_told(tmp_path: pathlib.Path) -> None:
    rules = ({"match": "*layers.0.mlp.down_proj*", "scheme": "float", "reason": "as a test"},)
    artifact = compiled(tmp_path / "float", rules=rules)
    module = "model.layers.0.mlp.down_proj"
    for kind in ("gptq", "awq"):
        done = export_checkpoint(artifact, tmp_path / "float", tmp_path / kind, kind)  # type: ignore[arg-type]
        assert done.floats == (module,)
        told = {item.where for item in done.diagnostics}
        assert any("lm_head" in where for where in told), "the head is rounded in the artifact"
        assert {item.code for item in done.diagnostics} == {Code.CHECKPOINT_DIFFERS}
        said = json.loads((tmp_path / kind / "config.json").read_text())["quantization_config"]
        if kind == "awq":
            assert said["modules_to_not_convert"] == [module]
        else:
            assert list(said["dynamic"]) == [r"-:^model\.layers\.0\.mlp\.down_proj$"]
        graph = open_model(tmp_path / kind).model.graph
        node = next(node for node in graph if node.name == f"{module}/MatMul")
        assert node.inputs[1] is not None
        assert node.inputs[1].const_value is not None, "a float weight"


def test_zero_points_ask_for_the_second_format_which_can_say_0(tmp_path: pathlib.Path) -> None:
    model = decoder("llama")
    with torch.no_grad():
        weight = model.model.layers[0].mlp.up_proj.weight
        weight.copy_(weight.abs())
    model.save_pretrained(tmp_path / "float")
    for symmetric, wanted in ((False, "gptq_v2"), (True, "gptq")):
        artifact = compiled(tmp_path / "float", symmetric=symmetric)
        folder = tmp_path / wanted
        export_checkpoint(artifact, tmp_path / "float", folder)
        said = json.loads((folder / "quantize_config.json").read_text())
        assert (said["checkpoint_format"], said["sym"]) == (wanted, symmetric)
        check_layers(artifact, folder)


@pytest.mark.parametrize(
    ("weights", "kind", "told"),
    [
        ({"bits": 5}, "gptq", "5 bits"),
        ({"bits": 8}, "awq", "8 bits"),
        ({"format": "nf4", "symmetric": True}, "gptq", "nf4"),
        ({"group_size": 40}, "gptq", "u4g40@0z, wanted groups of 16"),
        ({"zero_point": "float"}, "gptq", "float zero points"),
        ({"group_size": 48}, "gptq", "64 inputs in groups of 48"),
    ],
)
def test_what_a_format_does_not_hold_is_refused(
    weights: dict[str, Any], kind: Any, told: str, tmp_path: pathlib.Path
) -> None:
    artifact = compiled(tmp_path / "float", **weights)
    with pytest.raises(QcError, match=told) as caught:
        export_checkpoint(artifact, tmp_path / "float", tmp_path / "out", kind)
    assert caught.value.code is Code.NOT_EXPORTABLE
    assert not (tmp_path / "out").exists()


def test_norms_that_were_changed_are_those_of_the_artifact(tmp_path: pathlib.Path) -> None:
    artifact = compiled(tmp_path / "float", "gemma2")
    name = "model.layers.1.input_layernorm.weight"
    value = artifact.model.graph.initializers[name]
    assert value.const_value is not None
    changed = value.const_value.numpy() * np.float32(1.5)
    value.const_value = ir.tensor(changed, name=name)
    done = export_checkpoint(artifact, tmp_path / "float", tmp_path / "out")
    assert any(item.values.get("tensors") == [name] for item in done.diagnostics)
    read = open_model(tmp_path / "out").model.graph.initializers[name].const_value
    assert read is not None
    np.testing.assert_allclose(read.numpy(), changed, rtol=1e-6)


def test_the_norm_in_front_of_a_float_head_stays_that_of_the_checkpoint(
    tmp_path: pathlib.Path,
) -> None:
    artifact = compiled(tmp_path / "float")
    value = artifact.model.graph.initializers["model.norm.weight"]
    assert value.const_value is not None
    own = value.const_value.numpy()
    value.const_value = ir.tensor(own * np.float32(2), name=value.name)
    done = export_checkpoint(artifact, tmp_path / "float", tmp_path / "out")
    assert any(item.where == "lm_head" for item in done.diagnostics)
    read = open_model(tmp_path / "out").model.graph.initializers["model.norm.weight"].const_value
    assert read is not None
    np.testing.assert_array_equal(read.numpy(), own)


def test_a_factor_on_the_input_is_refused(tmp_path: pathlib.Path) -> None:
    artifact = compiled(tmp_path / "float")
    graph = artifact.model.graph
    node = next(n for n in graph if n.name == "model.layers.1.mlp.down_proj/MatMul")
    scale = ir.Value(name="factor", const_value=ir.tensor(np.full(96, 2, np.float32), name="f"))
    graph.initializers["factor"] = scale
    mul = ir.node("Mul", [node.inputs[0], scale], name="factor/Mul")
    graph.insert_before(node, mul)
    node.replace_input_with(0, mul.outputs[0])
    with pytest.raises(QcError, match=r"down_proj.*behind a Mul") as caught:
        export_checkpoint(artifact, tmp_path / "float", tmp_path / "out")
    assert caught.value.code is Code.NOT_EXPORTABLE


def test_unusable_places_and_models_are_refused(tmp_path: pathlib.Path) -> None:
    artifact = compiled(tmp_path / "float")
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").write_text("")
    with pytest.raises(QcError) as caught:
        export_checkpoint(artifact, tmp_path / "float", full)
    assert caught.value.code is Code.NOT_WRITABLE
    with pytest.raises(QcError) as caught:
        export_checkpoint(artifact, tmp_path / "float", tmp_path / "out", "gguf")  # type: ignore[arg-type]
    assert caught.value.code is Code.NOT_EXPORTABLE
    export_checkpoint(artifact, tmp_path / "float", tmp_path / "out")
    with pytest.raises(QcError, match="quantized itself") as caught:
        export_checkpoint(artifact, tmp_path / "out", tmp_path / "again")
    assert caught.value.code is Code.NOT_EXPORTABLE
    decoder("gpt2").save_pretrained(tmp_path / "other")
    with pytest.raises(QcError, match="not compiled from") as caught:
        export_checkpoint(artifact, tmp_path / "other", tmp_path / "again")
    assert caught.value.code is Code.NOT_ARTIFACT


def test_shards_come_with_their_index(tmp_path: pathlib.Path) -> None:
    from qcompiler.export.safetensors_file import Entry, write_shards
    from qcompiler.frontends.decoder.checkpoint import from_folder

    arrays = {f"t{i}": np.arange(i + 1, dtype=np.float16) for i in range(5)}
    entries = [Entry(n, a.dtype, a.shape, lambda a=a: a) for n, a in arrays.items()]
    write_shards(tmp_path, entries, limit=8)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    found = from_folder(tmp_path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].read(), array)


def test_command_writes_a_checkpoint_and_tells(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from qcompiler.cli.app import run

    artifact = compiled(tmp_path / "float")
    saved = artifact.save(tmp_path / "artifact")
    arguments = ["export", str(saved), "--against", str(tmp_path / "float"), "--format", "awq"]
    with pytest.raises(SystemExit) as ended:
        run([*arguments, "-o", str(tmp_path / "out"), "--json"])
    assert ended.value.code in (0, None)
    assert json.loads(capsys.readouterr().out)["layers"] == 14
    check_layers(artifact, tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        run([*arguments, "-o", str(tmp_path / "out")])
    assert ended.value.code == 2, "the folder is not empty now"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 128, "head_dim": 16}, "the weight is"),
        ({"num_hidden_layers": 1}, "past_key_values.1.key"),
        ({"num_hidden_layers": 3}, "past_key_values.2.key"),
        ({"num_key_value_heads": 4}, "past_key_values.0.key"),
        ({"intermediate_size": 128}, "the weight is"),
        ({"intermediate_size": 64}, "the weight is"),
        ({"vocab_size": 77}, "logits"),
        ({"attention_bias": True}, "has no such tensor"),
    ],
)
def test_another_model_is_named_not_the_recipe(
    change: dict[str, Any], words: str, tmp_path: pathlib.Path
) -> None:
    artifact = compiled(tmp_path / "float")
    other = transformers.LlamaConfig(**{**DECODERS["llama"][1], **change})
    transformers.LlamaForCausalLM(other).save_pretrained(tmp_path / "other")
    with pytest.raises(QcError, match=words) as caught:
        export_checkpoint(artifact, tmp_path / "other", tmp_path / "out", "gptq")
    assert caught.value.code is Code.NOT_ARTIFACT
    assert "compiled from" in caught.value.diagnostic.hint
    assert not (tmp_path / "out").exists()
