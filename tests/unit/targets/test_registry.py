"""Finding targets, target files, and the host."""

import dataclasses
import importlib.metadata

import pytest

from qcompiler.diagnostics import Code, QcError
from qcompiler.targets import registry
from qcompiler.targets.host import Host, host, parse_cpuinfo, parse_sysctl, target_name
from qcompiler.targets.probe import ProbeReport
from qcompiler.targets.registry import load_target, save_probe, target_names
from qcompiler.targets.schema import Cost
from qcompiler.targets.toml import from_toml, to_toml

NAMES = [name for name in target_names() if name != "cpu"]
SAPPHIRE_RAPIDS = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8488C
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512bw avx512_vnni avx_vnni amx_bf16 amx_tile amx_int8
"""
ALDER_LAKE = """\
processor\t: 0
model name\t: 12th Gen Intel(R) Core(TM) i7-12700
flags\t\t: fpu sse4_2 avx avx2 avx_vnni
"""
SKYLAKE_SERVER = "model name : Xeon Gold 6148\nflags : avx avx2 avx512f avx512bw avx512vl\n"
HASWELL = "model name : Core i7-4770\nflags : avx avx2 fma\n"
GRAVITON = "processor : 0\nCPU part : 0xd40\nFeatures : fp asimd asimddp i8mm sve\n"
KERNEL = """\
[[kernels]]
id = "k"
op = "Foo"
scheme = "static"
output = ""
runtime_op = ""
source = "s"
"""


@pytest.mark.parametrize(
    ("text", "machine", "wanted"),
    [
        (SAPPHIRE_RAPIDS, "x86_64", "cpu-amx"),
        (ALDER_LAKE, "x86_64", "cpu-vnni"),
        (SKYLAKE_SERVER, "x86_64", "cpu-avx512"),
        (HASWELL, "AMD64".lower(), "cpu-avx2"),
        (GRAVITON, "aarch64", "cpu-arm64"),
        ("", "riscv64", None),
    ],
)
def test_the_target_follows_from_cpuinfo(text, machine, wanted):
    assert target_name(parse_cpuinfo(text, machine)) == wanted


def test_features_that_only_some_cores_have_do_not_count():
    both = "flags : avx2 avx_vnni\n\nflags : avx2\n"
    assert parse_cpuinfo(both, "x86_64").features == {"avx2"}


def test_macs_are_read_from_sysctl():
    intel = "machdep.cpu.brand_string: Intel Core i9\nmachdep.cpu.leaf7_features: AVX2 AVX512BW\n"
    assert target_name(parse_sysctl(intel, "x86_64")) == "cpu-avx512"
    apple = "machdep.cpu.brand_string: Apple M2\nhw.optional.arm.FEAT_DotProd: 1\n"
    assert parse_sysctl(apple, "arm64") == Host("arm64", "Apple M2", frozenset({"asimddp"}))


def test_an_isa_must_be_there_in_full():
    cpu = parse_cpuinfo(SAPPHIRE_RAPIDS, "x86_64")
    assert cpu.has(load_target("cpu-amx").isa)
    assert cpu.has(load_target("cpu-vnni").isa)
    assert not parse_cpuinfo(ALDER_LAKE, "x86_64").has(load_target("cpu-amx").isa)


def test_this_host_has_a_target():
    assert load_target("cpu").name in NAMES
    assert set(load_target("cpu").isa) <= registry.host_flags()


@pytest.mark.parametrize("name", NAMES)
def test_every_target_survives_a_round_trip_through_toml(name):
    target = load_target(name)
    assert from_toml(to_toml(target), "memory") == target


def test_an_unknown_target_names_the_nearest():
    with pytest.raises(QcError, match="cpu-avx512") as caught:
        load_target("cpu-avx51")
    assert caught.value.code is Code.UNKNOWN_TARGET


def test_a_target_is_its_own_name():
    target = load_target("openvino")
    assert load_target(target) is target


def test_a_target_file_may_change_a_few_keys_of_a_base(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'base = "cpu-vnni"\nname = "mine"\n\n'
        "[costs.quantize]\nfixed_us = 2.5\nper_element_ns = 0.5\n\n"
        '[[kernels]]\nid = "conv-static"\nop = "Conv"\nscheme = "static"\n'
        'inputs = ["u8tz", "s8t"]\noutput = "u8tz"\nruntime_op = "QLinearConv"\nsource = "mine"\n'
    )
    mine, base = load_target(path), load_target("cpu-vnni")
    assert mine.name == "mine"
    assert mine.costs["quantize"] == Cost(2.5, (), 0.5)
    assert mine.costs["dequantize"] == base.costs["dequantize"]
    assert [row.id for row in mine.kernels] == [row.id for row in base.kernels]
    assert str(mine.kernel("conv-static").inputs[1]) == "s8t"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "does not parse"),
        ('name = "x"', "lacks the key 'runtime'"),
        ('base = "cpu-vnni"\nkernel = 1', "unknown key 'kernel'.*'kernels'"),
        ('base = "cpu-vnni"\nopset = "new"', "opset = 'new', wanted a whole number"),
        ('base = "cpu-vnni"\nform = "orr"', "form = 'orr'.*'ort'"),
        ('base = "cpu-vnni"\n[costs.quantize]\nfixed = 1', r"unknown key 'costs\.quantize\.fixed'"),
        (
            'base = "cpu-vnni"\n[costs.quantize]\nper_mac_ns = [[4, 1], [1, 1]]',
            r"costs\.quantize\.per_mac_ns .* ascending",
        ),
        ('base = "cpu-vnni"\n[costs.quantize]\nfixed_us = -1', "wanted a number >= 0"),
        ('base = "cpu-vnni"\n[fixed]\nSigmoid = [0]', r"fixed\.Sigmoid .* wanted \[lo, hi\]"),
        ('base = "cpu-vnni"\n[[carries]]\nop = "Foo"', r"carries\[\d+\]\.source"),
        (
            'base = "cpu-vnni"\n[[carries]]\nop = "Foo"\nsource = "s"\nconditions = ["rank-2"]',
            "no condition 'rank-2'.*rank-2",
        ),
        (
            f'base = "cpu-vnni"\n{KERNEL}inputs = ["u9"]\n',
            r"kernels\[\d+\]\.inputs\[0\]: 'u9' is not a spec",
        ),
        ('base = "cpu-vnni"\nweight_bits = 1', "weight_bits = 1, wanted 2 to 8"),
        ('base = "cpu-vnni"\nthreads = 0', "threads = 0, wanted 1 or more"),
        ('base = "cpu-vnni"\nopset = -1', "opset = -1, wanted 1 or more"),
        (
            'base = "cpu-vnni"\n[fixed]\nSigmoid = [1, 0]',
            r"fixed\.Sigmoid = \[1, 0\], wanted lo < hi",
        ),
        ('base = "cpu-vnni"\n[fixed]\nTanh = [-1, inf]', r"fixed\.Tanh .* wanted lo < hi"),
        (
            'base = "cpu-vnni"\n' + KERNEL.replace("Foo", "MatMul") + 'inputs = ["u8tz"]\n',
            r"kernels\[\d+\]\.inputs: 1 specs, wanted 2: MatMul has a weight",
        ),
        (
            'base = "cpu-vnni"\n' + KERNEL.replace("static", "weight") + 'inputs = [""]\n',
            r"kernels\[\d+\]\.inputs: no weight among them",
        ),
        ('base = "cpu-vnnj"', "no base target 'cpu-vnnj'.*'cpu-vnni'"),
    ],
)
def test_a_bad_target_file_names_the_key(tmp_path, text, says):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(QcError, match=says):
        load_target(path)


def test_a_missing_target_file_is_told(tmp_path):
    with pytest.raises(QcError, match="cannot be read: No such file"):
        load_target(tmp_path / "none.toml")


def report(target, noise=1.1):
    return ProbeReport(target, target, "1", "cpu", 2, (), (), noise, True, 1.0)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: tmp_path)
    return tmp_path


def test_costs_of_a_probe_come_back_with_the_host_target(cache):
    target = load_target("cpu")
    mine = dataclasses.replace(target, costs={**target.costs, "quantize": Cost(9.0)}, threads=1)
    path = save_probe(report(mine))
    assert path.is_relative_to(cache)
    found = load_target("cpu")
    assert found.costs["quantize"] == Cost(9.0)
    assert found.threads == 1
    assert found.kernels == target.kernels
    assert host().model in found.source


@pytest.mark.parametrize("content", ["junk [", 'base = "cpu-none"', ""])
def test_damaged_costs_of_a_probe_are_told_with_the_way_out(cache, content):
    path = registry.probe_file()
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(QcError, match=r"remove the file") as error:
        load_target("cpu")
    assert error.value.diagnostic.where == str(path)


def test_costs_of_another_runtime_version_are_not_used(cache, monkeypatch):
    target = load_target("cpu")
    save_probe(report(dataclasses.replace(target, costs={"quantize": Cost(9.0)})))
    monkeypatch.setattr(registry, "_measured_on", lambda cpu: "measured with onnxruntime 0.1")
    assert load_target("cpu") == target


def test_costs_of_another_cpu_are_not_saved(cache):
    with pytest.raises(QcError, match="no costs of this machine"):
        save_probe(report(load_target("cpu-arm64")))


def test_costs_of_a_busy_machine_are_not_saved(cache):
    with pytest.raises(QcError, match="the machine was busy"):
        save_probe(report(load_target("cpu"), noise=4.0))
    assert not list(cache.iterdir())


def test_a_package_that_brings_no_target_is_named(monkeypatch):
    point = importlib.metadata.EntryPoint("my-npu", "no_such_package:NPU", "qcompiler.targets")
    monkeypatch.setattr(registry, "_plugins", lambda: (point,))
    with pytest.raises(QcError, match="No module named 'no_such_package'") as error:
        load_target("my-npu")
    assert error.value.code is Code.UNKNOWN_TARGET
