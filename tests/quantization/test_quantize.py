"""Quantization to uint8 and back is exact within rounding, by the kernels and by PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from closeness import random_tensor
from unspeckle.kernels import quantize

BF16 = torch.bfloat16


pytestmark = pytest.mark.usefixtures("implementation")


def dequantize(rows: quantize.QuantizedRows) -> Tensor:
    return (rows.values.float() - quantize.ZERO_POINT) * rows.scales[:, None]


@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (37, 70), (64, 321)])
def test_rows_are_exact_within_half_a_step(shape: tuple[int, int]) -> None:
    x = (random_tensor(*shape) * torch.logspace(-3, 3, shape[0])[:, None]).to(BF16)
    x[-1] = 0
    rows = quantize.quantize_rows(x)
    assert torch.allclose(rows.scales[:-1], x[:-1].float().abs().amax(1) / 127)
    assert ((dequantize(rows) - x.float()).abs() <= 0.5001 * rows.scales[:, None]).all()
    assert (rows.values[-1] == quantize.ZERO_POINT).all()


@pytest.mark.parametrize("case", ["both signs", "positive", "negative", "zero", "large"])
def test_a_tensor_is_exact_within_half_a_step_and_zero_exactly(case: str) -> None:
    x = random_tensor(2, 5, 70, 70) * (1e30 if case == "large" else 1)
    x = {"positive": x.abs() + 1, "negative": -x.abs() - 1, "zero": 0 * x}.get(case, x)
    x = x.to(BF16).contiguous(memory_format=torch.channels_last)
    x[0, 0, 0, 0] = 0
    values, scale, zero_point = quantize.quantize_tensor(x)
    assert values.stride() == x.stride() and values[0, 0, 0, 0] == zero_point
    # A whole step, because the zero point is rounded as well.
    assert ((values.float() - zero_point) * scale - x.float()).abs().max() <= 1.0001 * scale
    assert case == "zero" or {int(values.min()), int(values.max())} == {0, 255}


@pytest.mark.parametrize("width", [1, 16, 75])
def test_scaling_rows_and_geglu(width: int) -> None:
    x, scales = random_tensor(9, 2 * width).to(BF16), random_tensor(9, seed=1).abs()
    bias = random_tensor(2 * width, seed=2)
    scaled = x.float() * scales[:, None] + bias
    value, gate = scaled.chunk(2, 1)
    expected = value * F.gelu(gate)
    rows = quantize.quantize_geglu(x, scales, bias)
    assert ((dequantize(rows) - expected).abs() <= 0.51 * rows.scales[:, None] + 1e-6).all()
    without_bias = quantize.scale_rows_(x.clone(), scales, None).float()
    assert torch.allclose(without_bias, scaled - bias, rtol=5e-3, atol=1e-3)
    assert torch.allclose(quantize.scale_rows_(x, scales, bias).float(), scaled, rtol=5e-3, atol=1e-3)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    num_threads, x, outputs = torch.get_num_threads(), random_tensor(1, 9, 60, 70).to(BF16), []
    for count in (1, 3):
        torch.set_num_threads(count)
        outputs.append((*quantize.quantize_rows(x.view(-1, 70)), *quantize.quantize_tensor(x)))
    torch.set_num_threads(num_threads)
    assert all(map(torch.equal, *outputs))


@pytest.mark.parametrize("implementation", ["kernel"], indirect=True)
@pytest.mark.parametrize(
    "function",
    ["_torch_quantize_rows", "_torch_quantize_geglu", "_torch_quantize_tensor", "_torch_scale_rows"],
)
def test_a_kernel_that_disagrees_with_pytorch_is_not_used(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize._load_kernel.cache_clear()
    right = getattr(quantize, function)
    monkeypatch.setattr(quantize, function, lambda x, *others: right(2 * x, *others))
    assert quantize._load_kernel() is None
    quantize._load_kernel.cache_clear()
