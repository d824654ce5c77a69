"""torch objects at the door. Each export takes about a second, so most of these are slow."""

from __future__ import annotations

import dataclasses
import pathlib
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest

from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import Opened, open_model
from qcompiler.ir.provenance import module_of
from qcompiler.runtime.inputs import generate_feed, input_specs
from qcompiler.runtime.session import open_session, run

torch = pytest.importorskip("torch")
nn = torch.nn

CLOSE = 2e-5  # float32 through a few layers, kernels of two libraries


class Net(nn.Module):  # type: ignore[name-defined, misc]
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, image: Any, scale: Any) -> Any:
        y = self.drop(self.norm(self.conv(image)))
        return {"features": y * scale, "mean": y.mean((2, 3))}


class Branch(nn.Module):  # type: ignore[name-defined, misc]
    def forward(self, x: Any) -> Any:
        return x + 1 if x.sum() > 0 else x


class Eigenvalues(nn.Module):  # type: ignore[name-defined, misc]
    def forward(self, x: Any) -> Any:
        return torch.linalg.eigvals(x).real


def inputs(batch: int = 2) -> tuple[Any, Any]:
    return torch.randn(batch, 3, 8, 8), torch.randn(batch, 1, 1, 1)


def agrees(opened: Opened, module: Any) -> None:
    """The model gives what the module gives, at the example's size and at another batch."""
    model = opened.model
    session = open_session(model)
    for feed in (opened.example, generate_feed(model, dims={"batch": 5})):
        assert feed is not None
        ours = list(run(session, feed).values())
        with torch.no_grad():
            theirs = module(*(torch.from_numpy(np.asarray(x)) for x in feed.values()))
        leaves = theirs.values() if isinstance(theirs, dict) else [theirs]
        for one, other in zip(ours, leaves, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=CLOSE, atol=CLOSE)


def refused(model: Any, example: Any, code: Code) -> QcError:
    with pytest.raises(QcError) as caught:
        open_model(model, example)
    assert caught.value.code is code
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
def test_a_module_in_training_is_exported_in_evaluation_and_left_in_training(batch: int) -> None:
    net = Net().train()
    net.conv.training = False
    opened = open_model(net, inputs(batch))
    assert (net.training, net.conv.training, net.norm.training) == (True, False, True)
    assert [str(spec) for spec in input_specs(opened.model)] == [
        "image: float32[batch, 3, 8, 8]",
        "scale: float32[batch, 1, 1, 1]",
    ]
    assert [value.name for value in opened.model.graph.outputs] == ["features", "mean"]
    assert opened.kind == "torch"
    agrees(opened, net.eval())


@pytest.mark.slow
def test_module_paths_survive() -> None:
    opened = open_model(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(2, 4)
    )
    assert {"0", "2"} <= {module_of(node) for node in opened.model.graph}


@pytest.mark.slow
def test_keyword_inputs_and_numpy_arrays_are_taken() -> None:
    example = {name: x.numpy() for name, x in zip(("image", "scale"), inputs(), strict=True)}
    assert open_model(Net(), example).example is not None


@pytest.mark.slow
def test_an_input_that_is_an_output_too_keeps_its_name() -> None:
    class Echo(nn.Module):  # type: ignore[name-defined, misc]
        def forward(self, x: Any, y_orig: Any) -> Any:
            return x * 2, x, y_orig

    module, example = Echo(), (torch.ones(2, 3), torch.ones(2, 3))
    program = torch.export.export(module, example)
    for opened in (open_model(module, example), open_model(program)):
        assert [value.name for value in opened.model.graph.inputs] == ["x", "y_orig"]
        names = [value.name for value in opened.model.graph.outputs]
        assert names == ["output", "output_1", "output_2"]
        assert opened.example is not None
        assert run(open_session(opened.model), opened.example)["output_2"].shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_what_is_compiled_or_parallel_comes_in_as_the_module_itself(wrap: Any) -> None:
    opened = open_model(wrap(Net()), inputs())
    assert [value.name for value in opened.model.graph.inputs] == ["image", "scale"]
    assert opened.source == "Net"
    assert "norm" in {module_of(node) for node in opened.model.graph}


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused_with_the_way_to_do_it() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    for module in (torch.jit.trace(net, torch.ones(1, 4)), torch.jit.script(net)):
        assert "TorchScript" in str(refused(module, torch.ones(1, 4), Code.NO_EXPORT))


@pytest.mark.slow
def test_a_graph_module_is_taken() -> None:
    module = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    opened = open_model(module, torch.randn(2, 3, 8, 8))
    assert opened.kind == "fx"
    agrees(opened, module)


@pytest.mark.slow
def test_an_exported_program_keeps_its_dynamic_shape_and_example(tmp_path: pathlib.Path) -> None:
    rows = torch.export.Dim("rows")
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    program = torch.export.export(module, (torch.randn(3, 4),), dynamic_shapes=({0: rows},))
    torch.export.save(program, tmp_path / "net.pt2")
    for source in (program, tmp_path / "net.pt2"):
        opened = open_model(source)
        assert opened.kind == "exported-program"
        assert isinstance(input_specs(opened.model)[0].shape[0], str)
        agrees(opened, module)


@pytest.mark.slow
def test_shapes_that_cannot_be_dynamic_are_told() -> None:
    opened = open_model(Net(), (torch.randn(2, 3, 8, 8), torch.randn(())))
    assert [item.code for item in opened.diagnostics] == [Code.FIXED_SHAPE]


@pytest.mark.slow
def test_bfloat16_becomes_float32_and_the_module_stays() -> None:
    module = nn.Sequential(nn.Linear(4, 4)).bfloat16()
    opened = open_model(module, torch.randn(2, 4).bfloat16())
    assert [item.code for item in opened.diagnostics] == [Code.CAST_TO_FLOAT]
    assert module[0].weight.dtype is torch.bfloat16
    assert opened.example is not None
    assert run(open_session(opened.model), opened.example)


@pytest.mark.slow
def test_control_flow_on_values_is_refused_with_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    error = refused(Branch(), torch.randn(2, 4), Code.NO_EXPORT)
    assert "control flow depends on the values" in str(error)
    assert "test_torch_doors.py:" in error.diagnostic.where
    assert capfd.readouterr() == ("", "")


@dataclasses.dataclass
class Pair:
    a: Any
    b: Any


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gives", "word"), [(lambda x: (x, 3), "int"), (lambda x: Pair(x, x), "Pair")]
)
def test_results_that_are_no_tensors_are_named(gives: Any, word: str) -> None:
    class Giving(nn.Module):  # type: ignore[name-defined, misc]
        def forward(self, x: Any) -> Any:
            return gives(x * 2)

    error = refused(Giving(), torch.ones(2, 3), Code.NO_EXPORT)
    assert f"returns {word} besides tensors" in str(error)
    assert "register_dataclass" in error.diagnostic.hint


@pytest.mark.slow
def test_an_operator_without_onnx_form_is_named() -> None:
    error = refused(nn.Sequential(Eigenvalues()), torch.randn(2, 3, 3), Code.NO_EXPORT)
    assert "aten.linalg_eig" in str(error)


def test_a_module_wants_example_inputs() -> None:
    error = refused(Net(), None, Code.NEEDS_EXAMPLE_INPUTS)
    assert "forward(image" in error.diagnostic.hint


def test_example_inputs_must_fit_forward() -> None:
    assert "'scale'" in str(refused(Net(), torch.ones(1), Code.FEED_NAME))


def test_a_module_that_fails_is_told_with_its_own_error() -> None:
    example = (torch.randn(1, 4, 8, 8), torch.ones(1))
    assert "to have 3 channels" in str(refused(Net(), example, Code.NO_EXPORT))


def test_no_pickle_in_a_program_file_is_executed(tmp_path: pathlib.Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return pathlib.Path.touch, (tmp_path / "executed",)

    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/data/sample_inputs/model.pt", pickle.dumps(Evil()))
    assert "pickle" in str(refused(path, None, Code.UNSUPPORTED_INPUT))
    assert not (tmp_path / "executed").exists()


def test_a_file_that_is_no_program_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"no archive")
    refused(tmp_path / "net.pt2", None, Code.UNSUPPORTED_INPUT)


class Counter(nn.Module):  # type: ignore[name-defined, misc]
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return x * self.calls


def test_buffers_that_forward_changes_stay_the_user_s_and_are_told() -> None:
    module = Counter().eval()
    opened = open_model(module, torch.ones(2, 3))
    assert float(module.calls) == 0
    [told] = [item for item in opened.diagnostics if item.code is Code.BUFFERS_CHANGE]
    assert told.values == {"buffers": ["calls"]}
    session = open_session(opened.model)
    for _ in range(2):
        (given,) = run(session, {"x": np.ones((2, 3), np.float32)}).values()
        np.testing.assert_array_equal(given, np.ones((2, 3)))


class SizeBranch(nn.Module):  # type: ignore[name-defined, misc]
    def forward(self, x: Any) -> Any:
        return x + 1 if x.shape[0] > 2 else x * 0


def test_a_branch_on_the_batch_is_no_graph_for_any_batch() -> None:
    opened = open_model(SizeBranch().eval(), torch.ones(4, 3))
    assert opened.model.graph.inputs[0].shape[0] == 4
    [told] = [item for item in opened.diagnostics if item.code is Code.FIXED_SHAPE]
    assert "sizes from 3 on alone" in told.message


def test_a_module_that_torch_has_quantized_is_refused_as_that() -> None:
    module = nn.Sequential(nn.Linear(4, 4)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(module, {nn.Linear})
    error = refused(quantized, torch.ones(2, 4), Code.UNSUPPORTED_INPUT)
    assert "quantized already" in error.diagnostic.message
