"""The gradients that are written out are those of autograd."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qcompiler.algorithms.rounded_weight import (
    RoundedWeight,
    in_groups,
    scale_and_zero,
)
from qcompiler.schemes import QSpec


@pytest.mark.parametrize("name", ["u4g8@0", "u4g8@0z", "s4c@1", "u2g4@0", "u2g5@0z"])
def test_a_step_goes_against_the_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.algorithms.rounded_weight._ELEMENTS", 16)  # several pieces
    generator = torch.Generator().manual_seed(0)
    spec = QSpec.parse(name)
    weight = torch.randn(24, 6, generator=generator)
    module = RoundedWeight(weight, spec)
    module.low.uniform_(0.6, 0.9, generator=generator)  # some elements are out of range
    module.high.uniform_(0.6, 0.9, generator=generator)
    module.shift.uniform_(-0.4, 0.4, generator=generator)
    module.refresh()
    slope = torch.randn(24, 6, generator=generator)

    shift = module.shift.clone().requires_grad_()
    low, high = module.low.clone().requires_grad_(), module.high.clone().requires_grad_()
    scale, zero = scale_and_zero(module.lo * low, module.hi * high, spec)
    steps = module.groups / scale + shift
    q = (steps + (steps.round() - steps).detach() + zero).clamp(spec.qmin, spec.qmax)
    _, back = in_groups(weight, spec)
    value = back(((q - zero) * scale).view(module.value.shape))
    np.testing.assert_allclose(module(weight).detach(), value.detach(), rtol=1e-5, atol=1e-6)
    (value * slope).sum().backward()

    before = [item.clone() for item in (module.shift, module.low, module.high)]
    (module(weight) * slope).sum().backward()
    module.descend(0.01, 0.02)
    for was, now, given, step in zip(
        before, (module.shift, module.low, module.high), (shift, low, high), (0.01, 0.02, 0.02),
        strict=True,
    ):  # fmt: skip
        slope_of = torch.zeros_like(was) if given.grad is None else given.grad
        sure = (slope_of == 0) | (slope_of.abs() > 1e-5)  # sums in another order may change a sign
        assert sure.float().mean() > 0.9
        moved = (was - step * slope_of.sign()).clamp(*((0, 1) if step == 0.02 else (-9, 9)))
        np.testing.assert_allclose(now[sure], moved[sure], atol=1e-6)


def test_what_was_kept_comes_back() -> None:
    module = RoundedWeight(torch.randn(8, 2), QSpec.parse("u4g4@0z"))
    was = module.value.detach().clone()
    module.keep()
    module.value.sum().backward()
    module.descend(0.4, 0.1)
    assert not torch.equal(module.value, was)
    module.restore()
    assert torch.equal(module.value, was)
