"""Power-function EMAs are their formula, and have the width that they claim."""

import pytest
import torch

from unspeckle.training.ema import PowerFunctionEMA, gamma_from_width


def test_the_average_is_its_formula() -> None:
    steps, gamma = 40, gamma_from_width(0.1)
    values = torch.randn(steps, dtype=torch.float64)
    ema = PowerFunctionEMA(0.1, [torch.zeros((), dtype=torch.float64)])
    for step, value in enumerate(values, 1):
        ema.update([value], step)
    # The integral of s^gamma over each step
    ends = torch.arange(steps + 1, dtype=torch.float64) ** (gamma + 1)
    expected = (values * ends.diff()).sum() / ends[-1]
    assert float(ema.averaged_tensors[0]) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_the_average_has_the_width_it_claims(width: float) -> None:
    gamma, s = gamma_from_width(width), torch.linspace(0, 1, 200_001, dtype=torch.float64)
    weight = s**gamma / (s**gamma).sum()
    mean = (weight * s).sum()
    assert float((weight * (s - mean) ** 2).sum().sqrt()) == pytest.approx(width, rel=1e-3)
