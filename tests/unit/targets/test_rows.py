"""Laws of the built-in tables."""

import ast
import pathlib

import pytest

from qcompiler.schemes import QSpec
from qcompiler.targets import registry
from qcompiler.targets.conditions import CONDITIONS
from qcompiler.targets.cost import lookup
from qcompiler.targets.probe_traps import TRAP_PROBES
from qcompiler.targets.registry import load_target, target_names
from qcompiler.targets.schema import Form, Scheme

FOLDER = pathlib.Path(registry.__file__).parent
TABLES = [
    *(
        FOLDER / f"{name}.py"
        for name in (
            "cuda",
            "generic_qdq",
            "onnxruntime_arm64",
            "onnxruntime_cpu",
            "onnxruntime_float8",
            "onnxruntime_traps",
            "openvino",
            "qnn_htp",
            "tensorrt",
        )
    ),
    *sorted((FOLDER / "costs").glob("*.py")),
]
NAMES = [name for name in target_names() if name != "cpu"]
CPUS = [name for name in NAMES if name.startswith("cpu-")]
# ids that the planner, insert-qdq and the lowerings share
CPU_KERNELS = {
    "matmul-static": ("MatMul", Scheme.STATIC),
    "matmul-static-u8": ("MatMul", Scheme.STATIC),
    "matmul-dynamic": ("MatMul", Scheme.DYNAMIC),
    "matmul-token": ("MatMul", Scheme.TOKEN),
    "matmul-weight": ("MatMul", Scheme.WEIGHT),
    "gather-weight-blocks": ("Gather", Scheme.WEIGHT),
    "gather-weight": ("Gather", Scheme.WEIGHT),
    "conv-static": ("Conv", Scheme.STATIC),
    "add-static": ("Add", Scheme.STATIC),
    "mul-static": ("Mul", Scheme.STATIC),
    "sigmoid-static": ("Sigmoid", Scheme.STATIC),
    "leaky-relu-static": ("LeakyRelu", Scheme.STATIC),
    "average-pool-static": ("AveragePool", Scheme.STATIC),
    "global-average-pool-static": ("GlobalAveragePool", Scheme.STATIC),
    "concat-static": ("Concat", Scheme.STATIC),
}
ALLOWED = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
CONSTRUCTORS = {"CacheType", "Carry", "Cost", "Kernel", "Target", "Trap", "Unify"}


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_target_modules_are_data_and_nothing_else(path):
    tree = ast.parse(path.read_text())
    for statement in tree.body[1:]:
        assert isinstance(statement, ALLOWED), f"line {statement.lineno}"
    for node in ast.walk(tree):
        assert not isinstance(node, (ast.Lambda, ast.IfExp, ast.comprehension))
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called in CONSTRUCTORS or called == "QSpec.parse", f"line {node.lineno}"


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_a_source(name):
    target = load_target(name)
    for row in (*target.kernels, *target.carries, *target.unifies, *target.traps):
        assert "http" in row.source or "probed" in row.source or "read in" in row.source, row
        if target.runtime != "onnxruntime":
            assert "from documentation" in row.source, row


@pytest.mark.parametrize("name", NAMES)
def test_every_condition_is_defined_and_ids_are_unique(name):
    target = load_target(name)
    rows = (*target.kernels, *target.carries, *target.unifies)
    for row in rows:
        assert set(row.conditions) <= set(CONDITIONS)
    assert all(trap.condition in CONDITIONS for trap in target.traps)
    assert len({row.id for row in target.kernels}) == len(target.kernels)
    assert len({trap.id for trap in target.traps}) == len(target.traps)


@pytest.mark.parametrize("name", NAMES)
def test_forms_and_specs_of_rows_agree_with_the_target(name):
    target = load_target(name)
    for row in target.kernels:
        assert row.forms
        if target.runtime == "onnxruntime":
            assert bool(row.runtime_op) is not row.reference, row.id
        else:
            assert row.forms == (Form.QDQ,), row.id
        if row.scheme in (Scheme.DYNAMIC, Scheme.TOKEN):
            assert row.inputs[0].dynamic, row.id


@pytest.mark.parametrize("name", CPUS)
def test_cpu_targets_have_the_shared_kernel_ids(name):
    kernels = load_target(name).kernels
    found = {row.id: (row.op, row.scheme) for row in kernels if not row.reference}
    assert found == CPU_KERNELS


@pytest.mark.parametrize("name", CPUS)
def test_nothing_is_gained_by_8_bit_floats_on_a_cpu(name):
    """Without a cost and as references: no recipe that does not force them takes them."""
    target = load_target(name)
    rows = [row for row in target.kernels if row.inputs[0] is not None and row.inputs[0].is_float8]
    assert len(rows) == 4
    assert all(row.reference and row.forms == (Form.QDQ,) for row in rows)
    assert not {row.id for row in rows} & set(target.costs)


@pytest.mark.parametrize("name", CPUS)
def test_every_kernel_its_operator_and_the_conversions_have_a_cost(name):
    target = load_target(name)
    for row in target.kernels:
        assert row.reference or row.id in target.costs, row.id
        assert f"float.{row.op}" in target.costs, row.op
    for key in ("quantize", "dequantize", "quantize-token", "float"):
        assert key in target.costs
    for carry in target.carries:
        assert lookup(target.costs, f"carry.{carry.op}") is not None


def test_x86_activations_are_unsigned_and_arm_activations_are_signed():
    for name in CPUS:
        wanted = "s8tz" if name == "cpu-arm64" else "u8tz"
        row = load_target(name).kernel("conv-static")
        assert [str(spec) for spec in (*row.inputs, row.output)] == [wanted, "s8c@0", wanted]


def test_tensorrt_is_signed_and_symmetric_throughout():
    for row in load_target("tensorrt").kernels:
        for spec in row.inputs:
            assert spec is None or (spec.symmetric and spec.is_signed), row.id


def test_weights_have_seven_bits_where_int16_sums_would_saturate():
    weight = QSpec.parse("s8c@1")
    for name, wanted in (("cpu-avx2", 63), ("cpu-avx512", 63), ("cpu-vnni", 127)):
        assert load_target(name).weight_spec(weight).qmax == wanted
    blocks = QSpec.parse("u8g128@0")
    assert load_target("cpu-avx2").weight_spec(blocks) == blocks


def test_every_trap_has_a_probe():
    assert {trap.id for trap in load_target("cpu-vnni").traps} == set(TRAP_PROBES)
