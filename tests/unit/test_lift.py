"""The lifted form: what becomes a parameter, what is refused, where quantizers stand."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
import weakref

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from qcompiler.algorithms.rtn import round_to_nearest
from qcompiler.diagnostics import Code, QcError
from qcompiler.lift import commit, lift
from qcompiler.numerics.affine import dequantize, quantize, range_to_params
from qcompiler.schemes import QSpec

HEAD = '<ir_version: 10, opset_import: ["" : 23]>'
TWICE = f"""{HEAD} g (float[n,2] x) => (float[n,2] y)
<float[2,2] w = {{1, 2, 3, 4}}, float[2] b = {{0.5, -1}}>
{{ h = MatMul(x, w)  r = Relu(h)  k = MatMul(r, w)  y = Add(k, b) }}"""


def value(model: ir.Model, name: str) -> ir.Value:
    return next(
        found
        for found in (
            *model.graph.initializers.values(),
            *(o for n in model.graph for o in n.outputs),
        )
        if found.name == name
    )


def floats(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def test_a_shared_constant_is_one_parameter_with_the_gradients_of_all_its_readers() -> None:
    model = ir.from_onnx_text(TWICE)
    w = value(model, "w")
    lifted = lift(model.graph, trainable=[w])
    assert [name for name, _ in lifted.module.named_parameters()] == ["w"]
    x = floats(3, 2)
    lifted(x)[0].sum().backward()
    free = lifted.params[w].detach().clone().requires_grad_()
    (torch.relu(x @ free) @ free).sum().backward()
    torch.testing.assert_close(lifted.params[w].grad, free.grad)


def test_all_outputs_of_a_node_with_several_are_kept() -> None:
    model = ir.from_onnx_text(
        f"""{HEAD} g (float[4,2] x) => (float[2,2] a, float[2,2] c)
        {{ a, b = Split<num_outputs = 2>(x)  c = Neg(b) }}"""
    )
    x = floats(4, 2)
    first, last = lift(model.graph)(x)
    assert torch.equal(first, x[:2])
    assert torch.equal(last, -x[2:])


def test_a_block_takes_what_it_reads_and_gives_what_others_read() -> None:
    model = ir.from_onnx_text(TWICE)
    nodes = list(model.graph)
    lifted = lift(nodes[1:3])
    assert [item.name for item in lifted.inputs] == ["h"]
    assert [item.name for item in lifted.outputs] == ["k"]


def test_a_value_inside_may_be_named_as_input() -> None:
    model = ir.from_onnx_text(TWICE)
    lifted = lift(model.graph, inputs=[value(model, "r")], outputs=[value(model, "k")])
    assert [node.op_type for node in lifted.calls] == ["MatMul"]


def test_a_missing_input_is_named() -> None:
    model = ir.from_onnx_text(TWICE)
    with pytest.raises(ValueError, match="%h"):
        lift(list(model.graph)[1:2], inputs=[])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("y = NoSuch(x)", "NoSuch"),
        ("y = Resize<antialias = 1>(x, , s)", "antialias = 1"),
        ("y, i = MaxPool<kernel_shape = [1]>(x)  z = Cast<to = 1>(i)", "first output of MaxPool"),
    ],
)
def test_what_the_table_does_not_cover_is_refused_by_name(line: str, says: str) -> None:
    model = ir.from_onnx_text(
        f"{HEAD} g (float[1,2,3] x) => (y) <float[3] s = {{1, 1, 1}}> {{ {line} }}"
    )
    next(iter(model.graph)).name = "the_node"
    with pytest.raises(QcError, match=says) as caught:
        lift(model.graph)
    assert caught.value.code is Code.NOT_LIFTABLE
    assert caught.value.diagnostic.where == "the_node"


def test_constant_shapes_stand_in_the_code_and_computed_ones_flow() -> None:
    model = ir.from_onnx_text(
        f"""{HEAD} g (float[a,b,2] x) => (y, z)
        <int64[2] s = {{0, -1}}, int64[1] m = {{-1}}>
        {{ y = Reshape(x, s)  d = Shape<start = 0, end = 1>(x)  t = Concat<axis = 0>(d, m)
           z = Reshape(x, t) }}"""
    )
    lifted = lift(model.graph)
    assert "[0, -1]" in lifted.module.code
    y, z = lifted(floats(3, 4, 2))
    assert y.shape == z.shape == (3, 8)


def test_fake_quantizers_are_seen_in_the_graph_and_quantize() -> None:
    model = ir.from_onnx_text(TWICE)
    w, h = value(model, "w"), value(model, "h")
    lifted = lift(model.graph)
    tensor = round_to_nearest(w.const_value.numpy(), QSpec.parse("s8c@1"))
    spec = QSpec.parse("u8tz")
    scale, zero_point = range_to_params(np.float32(-1), np.float32(4), spec)
    lifted.quantize_weight(w, tensor)
    lifted.quantize_activation(h, scale, zero_point, spec)
    assert "self.quantize_w(" in lifted.module.code
    assert "self.quantize_h(" in lifted.module.code
    x = floats(5, 2)
    q = tensor.dequantize()
    hidden = x.numpy() @ q
    levels = quantize(hidden, scale, zero_point, spec.qmin, spec.qmax)
    hidden = dequantize(levels, scale, zero_point)
    wanted = np.maximum(hidden, 0) @ q + np.array([0.5, -1], np.float32)
    np.testing.assert_allclose(lifted(x)[0].detach().numpy(), wanted, rtol=1e-6, atol=1e-6)


def test_a_quantizer_may_serve_some_readers_only() -> None:
    model = ir.from_onnx_text(TWICE)
    w, nodes = value(model, "w"), list(model.graph)
    lifted = lift(model.graph)
    w_coarse = round_to_nearest(w.const_value.numpy(), QSpec.parse("s2t"))
    lifted.quantize_weight(w, w_coarse, readers=[nodes[2]])
    x = floats(5, 2)
    wanted = torch.relu(x @ lifted.constant(w)) @ torch.from_numpy(w_coarse.dequantize())
    wanted = wanted + torch.tensor([0.5, -1])
    torch.testing.assert_close(lifted(x)[0], wanted)


def test_given_integers_are_kept_and_nearest_ones_are_rounded_anew() -> None:
    model = ir.from_onnx_text(TWICE)
    w = value(model, "w")
    nearest = round_to_nearest(w.const_value.numpy(), QSpec.parse("s8c@1"))
    other = dataclasses.replace(nearest, q=nearest.q - 1)
    x = torch.eye(2)
    for rounding, wanted in (("given", other), ("nearest", nearest)):
        lifted = lift(list(model.graph)[:1], trainable=[w])
        lifted.quantize_weight(w, other, rounding=rounding)
        (found,) = lifted(x)
        np.testing.assert_array_equal(found.detach().numpy(), wanted.dequantize())
        found.sum().backward()
        assert lifted.params[w].grad.tolist() == [[1, 1], [1, 1]]


def test_integers_that_are_kept_have_no_scale_to_learn() -> None:
    model = ir.from_onnx_text(TWICE)
    w = value(model, "w")
    tensor = round_to_nearest(w.const_value.numpy(), QSpec.parse("s8c@1"))
    with pytest.raises(ValueError, match="given"):
        lift(model.graph).quantize_weight(w, tensor, learn_scale=True)


@pytest.mark.parametrize("text", ["u8kd", "u8tzd", "s8kd"])
def test_dynamic_activations_take_their_own_range(text: str) -> None:
    spec = QSpec.parse(text)
    model = ir.from_onnx_text(TWICE)
    lifted = lift(list(model.graph)[1:2])
    lifted.quantize_activation(lifted.inputs[0], None, None, spec)
    x = floats(4, 16).abs()
    (found,) = lifted(x)
    step = (x.amax(-1, keepdim=True) if "k" in text else x.amax()) / (255 if "z" in text else 127)
    assert (found - x).abs().le(step * 0.501).all()
    levels = found / step
    assert torch.allclose(levels, levels.round(), atol=1e-3)


def test_float8_activations_round_to_the_type_and_saturate() -> None:
    model = ir.from_onnx_text(TWICE)
    lifted = lift(list(model.graph)[1:2])
    lifted.quantize_activation(lifted.inputs[0], 0.5, None, QSpec.parse("e4m3t"))
    (found,) = lifted(torch.tensor([[1.0, 0.53, 1000.0]]))
    expected = torch.tensor([2.0, 1.06, 448.0]).to(torch.float8_e4m3fn).float() * 0.5
    torch.testing.assert_close(found[0], expected)


def test_scales_learn_by_lsq() -> None:
    model = ir.from_onnx_text(TWICE)
    lifted = lift(list(model.graph)[1:2])
    spec = QSpec.parse("s8t")
    quantizer = lifted.quantize_activation(lifted.inputs[0], 0.1, 0, spec, learn_scale=True)
    x = torch.tensor([[0.26, 40.0]], requires_grad=True)
    lifted(x)[0].sum().backward()
    # inside: round(2.6) - 2.6; outside: qmax
    assert float(quantizer.scale.grad) == pytest.approx(0.4 + 127, abs=1e-4)
    assert x.grad.tolist() == [[1.0, 0.0]]


def test_gradients_agree_with_finite_differences() -> None:
    model = ir.from_onnx_text(
        f"""{HEAD} g (float[2,3,4] x) => (float[2,3,4] y)
        <float[1] w = {{0}}, float[1] g = {{0}}, float[1] b = {{0}}>
        {{ n = LayerNormalization(x, g, b)  m = MatMul(n, w)  a = Gelu(m)  y = Add(a, x) }}"""
    )
    rng = np.random.default_rng(1)
    for name, shape in (("w", (4, 4)), ("g", (4,)), ("b", (4,))):
        array = rng.standard_normal(shape)
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    values = [model.graph.initializers[name] for name in ("w", "g", "b")]
    lifted = lift(model.graph, trainable=values)
    x = torch.from_numpy(rng.standard_normal((2, 3, 4)))
    names = [str(lifted.values[item].target) for item in values]

    def loss(*params: torch.Tensor) -> torch.Tensor:
        given = dict(zip(names, params, strict=True))
        (y,) = torch.func.functional_call(lifted.module, given, (x,))
        return y.square().sum()

    starts = [lifted.params[item].detach().clone().requires_grad_() for item in values]
    assert torch.autograd.gradcheck(loss, starts, rtol=1e-5, atol=1e-7)


def test_commit_writes_what_was_trained_and_nothing_else() -> None:
    model = ir.from_onnx_text(TWICE)
    w, b = value(model, "w"), value(model, "b")
    untouched = b.const_value
    lifted = lift(model.graph, trainable=[w, b])
    with torch.no_grad():
        lifted.params[w].add_(1)
    commit(lifted)
    assert w.const_value.numpy().tolist() == [[2, 3], [4, 5]]
    assert w.const_value.name == "w"
    assert b.const_value is untouched


def test_released_constants_are_gone_before_the_cycles_they_stood_in() -> None:
    model = ir.from_onnx_text(TWICE)
    lifted = lift(model.graph, trainable=[value(model, "w")])
    constants = [weakref.ref(lifted.constant(value(model, name))) for name in "wb"]
    gc.disable()
    try:
        lifted.release()
        assert [constant() for constant in constants] == [None, None]
    finally:
        gc.enable()


def test_a_trainable_value_must_be_a_float_constant() -> None:
    model = ir.from_onnx_text(TWICE)
    with pytest.raises(ValueError, match="h"):
        lift(model.graph, trainable=[value(model, "h")])


def test_the_package_does_not_need_torch() -> None:
    code = "import sys, qcompiler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
