"""GPTQ, AWQ and AutoRound checkpoints: the same integers from the file to the kernel."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from checkpoints import CONFIGS, configure, write_checkpoint
from decoders import tokens, transformers_logits
from nbits_weight import unpack_nbits
from qcompiler import qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import open_model
from qcompiler.plan import Verdict
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = 2e-5  # of the largest logit, as for float checkpoints
CLOSE_INT8 = 0.03  # the kernel rounds activations to 8 bits
PLAIN = SessionSettings("disable")  # else the runtime fuses that kernel into the float graph
LAYERS = 14  # linear layers of the two blocks of a tiny Llama

Truth = dict[str, dict[str, np.ndarray]]


def logits(model: Any, opened: Any) -> tuple[np.ndarray, np.ndarray]:
    found = run(open_session(opened.model, settings=PLAIN, threads=1), opened.example)["logits"]
    return found, transformers_logits(model, opened.example["input_ids"])


def constants(model: Any, weight: str) -> dict[str, np.ndarray]:
    graph = model.graph
    node = next(node for node in graph if node.name == f"{weight}/MatMul")
    assert node.op_type == "MatMul"
    dq = node.inputs[1].producer()
    names = ("codes", "scale", "zero")
    return {name: value.const_value.numpy() for name, value in zip(names, dq.inputs, strict=True)}


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        *((layout, {}) for layout in CONFIGS),
        ("gptq", {"bits": 2}),
        ("gptq", {"bits": 3, "group": 32}),
        ("gptq", {"bits": 8, "group": 32, "symmetric": True}),
        ("gptq-v2", {"bits": 3}),
        ("gptq", {"group": -1}),
        ("gptq", {"shuffled": True}),
        ("gptq", {"name": "phi3"}),
        ("awq", {"name": "phi3", "group": 32}),
    ],
)
def test_integers_and_scales_are_those_of_the_file(
    layout: str, settings: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    model, truth = write_checkpoint(tmp_path, layout, **settings)
    opened = open_model(tmp_path)
    assert opened.quantized
    found, wanted = logits(model, opened)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE * np.abs(wanted).max())
    for module, said in truth.items():
        if "qkv" in module or "gate_up" in module:
            continue
        order = np.argsort(said["group"], kind="stable")
        read = constants(opened.model, module)
        np.testing.assert_array_equal(read["codes"].astype(np.int64), said["codes"][order])
        np.testing.assert_array_equal(read["zero"].astype(np.int64), said["zero"])
        np.testing.assert_array_equal(read["scale"], said["scale"].astype(np.float32))


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("gptq", {"group": 32}),
        ("gptq", {"bits": 2, "group": 32}),
        ("gptq-v2", {"bits": 3, "group": 32, "shuffled": True}),
        ("gptq", {"bits": 8, "group": 32, "symmetric": True}),
        ("awq", {"group": 32}),
    ],
)
def test_kernels_multiply_by_what_the_checkpoint_stands_for(
    layout: str, settings: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    model, truth = write_checkpoint(tmp_path, layout, **settings)
    artifact = qcompile(tmp_path, target="cpu-vnni", recipe={"verify": {"guard": False}})
    rounded = [item for item in artifact.plan if item.verdict is Verdict.QUANTIZED]
    assert len(rounded) == LAYERS
    assert {item.kernel for item in rounded} == {"matmul-weight"}
    bits = settings.get("bits", 4)
    native = {2: 2, 3: 4, 4: 4, 8: 8}[bits]
    nodes = {node.name: node for node in artifact.model.graph}
    for module in ("model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj"):
        said = truth[module]
        node = nodes[f"{module}/MatMul"]
        assert node.op_type == "MatMulNBits"
        assert node.attributes["bits"].as_int() == native
        order = np.argsort(said["group"], kind="stable")
        weight = (said["codes"] - said["zero"][said["group"]]) * said["scale"].astype(np.float32)[
            said["group"]
        ]
        if bits != native:
            continue  # its planes are joined when it is loaded: the logits tell
        parts = [None if v is None else v.const_value.numpy() for v in (*node.inputs[1:4], None)]
        spec = artifact.plan.nodes[f"{module}/MatMul"].inputs[1]
        assert spec is not None
        read = unpack_nbits(parts[0], parts[1], parts[2], spec, weight.shape[0])
        np.testing.assert_array_equal(read, weight[order].astype(np.float32))
    ids = tokens(2, 8)
    example = open_model(tmp_path).example
    assert example is not None
    feed = {**example, "input_ids": ids, "attention_mask": np.ones_like(ids)}
    wanted = transformers_logits(model, ids)
    atol = CLOSE_INT8 * np.abs(wanted).max()
    np.testing.assert_allclose(artifact.run(feed)["logits"], wanted, rtol=0, atol=atol)


def test_settings_of_older_tools_lie_beside_the_configuration(tmp_path: pathlib.Path) -> None:
    model, _ = write_checkpoint(tmp_path, "awq")
    configure(tmp_path, quantization_config=None)
    side = {"zero_point": True, "q_group_size": 16, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "quant_config.json").write_text(json.dumps(side))
    found, wanted = logits(model, open_model(tmp_path))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE * np.abs(wanted).max())


def test_zero_points_of_0_survive_the_first_format(tmp_path: pathlib.Path) -> None:
    """Tools subtract 1 from whole words, so 0 borrows from its neighbour."""
    from safetensors.torch import load_file, save_file

    write_checkpoint(tmp_path, "gptq-v2")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj.qzeros"
    tensors[name] = tensors[name] & 0x0FF00FF0
    wanted = tensors[name].numpy().view(np.uint32)
    for key in [key for key in tensors if key.endswith("qzeros")]:
        tensors[key] = tensors[key] - 0x11111111
    save_file(tensors, path, metadata={"format": "pt"})
    configure(tmp_path, quantization_config=CONFIGS["gptq"])
    read = constants(open_model(tmp_path).model, name.removesuffix(".qzeros"))["zero"]
    fields = (wanted[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
    np.testing.assert_array_equal(read.astype(np.int64), fields.reshape(read.shape))
    assert (read.astype(np.int64) == 0).any()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "awq", "version": "gemv"}, "gemv"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:mx_fp"}, "mx_fp"),
        ({"bits": 4}, "nothing named"),
    ],
)
def test_unknown_settings_are_refused_by_name(
    said: dict[str, Any], told: str, tmp_path: pathlib.Path
) -> None:
    write_checkpoint(tmp_path, "gptq")
    configure(tmp_path, quantization_config=said)
    with pytest.raises(QcError, match=told) as caught:
        open_model(tmp_path)
    assert caught.value.code is Code.UNSUPPORTED_INPUT
    assert "awq" in str(caught.value)
    assert "float checkpoint" in caught.value.diagnostic.hint


def test_packed_weights_without_settings_are_refused(tmp_path: pathlib.Path) -> None:
    write_checkpoint(tmp_path, "gptq")
    configure(tmp_path, quantization_config=None)
    with pytest.raises(QcError, match=r"neither config\.json") as caught:
        open_model(tmp_path)
    assert caught.value.code is Code.UNSUPPORTED_INPUT


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("qzeros", None, "lacks qzeros"),
        ("qweight", lambda x: x[:-1], "wanted 88 in groups"),
        ("g_idx", lambda x: x * 0, "groups of 0 to 96"),
        ("g_idx", lambda x: x + 100, "wanted 96 in groups 0 to 5"),
        ("g_idx", lambda x: x[:-1], "wanted 96 in groups"),
        ("qzeros", lambda x: x.float(), "of float32, wanted int32"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    part: str, change: Any, told: str, tmp_path: pathlib.Path
) -> None:
    from safetensors.torch import load_file, save_file

    write_checkpoint(tmp_path, "gptq")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = f"model.layers.1.mlp.down_proj.{part}"
    whole = tensors.pop(name)
    if change is not None:
        tensors[name] = change(whole).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(QcError, match=told) as caught:
        open_model(tmp_path)
    assert caught.value.code is Code.UNSUPPORTED_INPUT


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_scales_that_are_not_finite_are_refused(number: float, tmp_path: pathlib.Path) -> None:
    from safetensors.torch import load_file, save_file

    write_checkpoint(tmp_path, "gptq")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.scales"][0, 0] = number
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(QcError, match=r"layers\.1\.mlp\.down_proj\.scale") as caught:
        open_model(tmp_path)
    assert caught.value.code is Code.NOT_FINITE_WEIGHT
