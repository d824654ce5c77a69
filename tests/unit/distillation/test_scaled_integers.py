"""Integers under scales that learn: the same floats, and the gradients of autograd."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qcompiler.algorithms.data_free import RtnOptions, rtn
from qcompiler.distillation.losses import divergence, relative_error
from qcompiler.distillation.scaled_integers import ScaledIntegers
from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import QSpec

FORMS = ["u4g8@0", "u4g8@0z", "s8c@1", "u2g5@0z", "s4g16@0", "u8g7@0z", "nf4g8@0", "s8c@1z"]


def rounded(form: str, seed: int = 0) -> QTensor:
    spec = QSpec.parse(form)
    weight = np.random.default_rng(seed).normal(size=(24, 6)).astype(np.float32) + 0.3
    return rtn(weight, spec, RtnOptions(), where="w")


@pytest.mark.parametrize("form", FORMS)
def test_at_the_start_they_are_what_was_rounded(form: str) -> None:
    tensor = rounded(form)
    module = ScaledIntegers(tensor)
    module.open(learn=False)
    np.testing.assert_allclose(module().numpy(), tensor.dequantize(), rtol=1e-6, atol=1e-7)
    module.close()
    with pytest.raises(AssertionError, match="open"):
        module()
    same = module.to_qtensor()
    np.testing.assert_array_equal(same.q, tensor.q)
    np.testing.assert_array_equal(same.scale, tensor.scale)


@pytest.mark.parametrize("form", FORMS)
def test_factors_get_the_gradient_of_autograd(form: str) -> None:
    tensor = rounded(form)
    slope = torch.from_numpy(np.random.default_rng(1).normal(size=(24, 6)).astype(np.float32))
    module = ScaledIntegers(tensor)
    for _ in range(2):  # two samples add up
        module.open(learn=True)
        (module() * slope).sum().backward()
        module.close()

    factor = np.zeros(tensor.scale.shape, np.float32)
    for index in np.ndindex(*factor.shape):  # what a scale multiplies, found by moving it
        moved = tensor.scale.copy()
        moved[index] *= 2
        other = QTensor(tensor.q, moved, tensor.zero_point, tensor.spec)
        factor[index] = ((other.dequantize() - tensor.dequantize()) * slope.numpy()).sum()
    found = module.log_factor.grad
    assert found is not None
    np.testing.assert_allclose(found.numpy(), 2 * factor, rtol=1e-4, atol=1e-4)


def test_learned_scales_are_multiplied() -> None:
    tensor = rounded("u4g8@0z")
    module = ScaledIntegers(tensor)
    with torch.no_grad():
        module.log_factor.normal_(generator=torch.Generator().manual_seed(0))
    found = module.to_qtensor()
    factors = np.exp(module.log_factor.detach().numpy())
    np.testing.assert_allclose(found.scale, tensor.scale * factors, rtol=1e-6)
    module.open(learn=False)
    np.testing.assert_allclose(module().numpy(), found.dequantize(), rtol=1e-5, atol=1e-6)


def test_float_zero_points_are_kept() -> None:
    spec = QSpec.parse("u4g8@0f")
    rng = np.random.default_rng(0)
    tensor = QTensor(
        rng.integers(0, 16, (24, 6)).astype(np.uint8),
        rng.uniform(0.1, 1, (3, 6)).astype(np.float32),
        rng.uniform(0, 15, (3, 6)).astype(np.float32),
        spec,
    )
    module = ScaledIntegers(tensor)
    module.open(learn=False)
    np.testing.assert_allclose(module().numpy(), tensor.dequantize(), rtol=1e-5, atol=1e-6)


def test_divergence_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.distillation.losses._ELEMENTS", 33)  # several pieces
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 11, generator=generator).requires_grad_()
    other = logits.detach().clone().requires_grad_()
    wanted = torch.randn(2, 5, 11, generator=generator)
    p, log_q = wanted.log_softmax(-1), other.log_softmax(-1)
    plain = torch.nn.functional.kl_div(log_q, p, reduction="sum", log_target=True) / 10
    plain.backward()
    found = divergence(logits, wanted.clone())
    (found * 3).backward()
    assert float(found.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    np.testing.assert_allclose(logits.grad, 3 * other.grad, rtol=1e-4, atol=1e-6)


def test_the_error_of_other_outputs_is_a_share() -> None:
    wanted = torch.tensor([3.0, 4.0])
    assert float(relative_error(wanted + torch.tensor([0.5, 0.0]), wanted)) == pytest.approx(0.01)
    assert float(relative_error(torch.zeros(2), torch.zeros(2))) == 0
