"""Quantization of bfloat16 activations to uint8 and back, around products of 8-bit integers: by C++ kernels, or PyTorch
where they are not available.

A quantized value q stands for (q - zero_point) · scale, where zero_point is ZERO_POINT unless it is stated. All tensors
are on a CPU and have no gradients.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.kernels.compiling import load_kernels, tensor_pointer

ZERO_POINT = 128


class QuantizedRows(NamedTuple):
    """Rows of which each has its own scale."""

    values: Tensor  # (N, C) uint8
    scales: Tensor  # (N,) float32


class QuantizedTensor(NamedTuple):
    """A tensor with one scale and one zero point."""

    values: Tensor  # uint8
    scale: Tensor  # () float32
    zero_point: Tensor  # () int32, from 0 to 255


def quantize_rows(x: Tensor) -> QuantizedRows:
    """Quantize the rows of x (N, C) bfloat16 so that the largest magnitude of each is 127 steps."""
    kernel = _load_kernel()
    if kernel is None:
        return _torch_quantize_rows(x.float())
    return _run_rows_kernel(kernel.unspeckle_quantize_rows, x.contiguous())


def quantize_tensor(x: Tensor) -> QuantizedTensor:
    """Quantize x bfloat16, dense in memory, so that its smallest value, its largest value and 0 are all representable.
    The values have x's shape and strides."""
    kernel = _load_kernel()
    return _torch_quantize_tensor(x) if kernel is None else _run_tensor_kernel(kernel, x)


def scale_rows_(x: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, O) bfloat16 times the scales (N,) of its rows, plus the bias (O,) float32, in place."""
    kernel = _load_kernel()
    return x.copy_(_torch_scale_rows(x, scales, bias)) if kernel is None else _run_scale_kernel(kernel, x, scales, bias)


def quantize_geglu(x: Tensor, scales: Tensor, bias: Tensor) -> QuantizedRows:
    """Scale the rows of x (N, 2·C) and add the bias, as scale_rows_ does, and quantize the rows of value · gelu(gate)
    (N, C), where the values are the first C columns and the gates the others."""
    kernel = _load_kernel()
    if kernel is None:
        return _torch_quantize_geglu(x, scales, bias)
    return _run_rows_kernel(kernel.unspeckle_quantize_geglu, x, scales, bias)


def _torch_quantize_rows(x: Tensor) -> QuantizedRows:
    largest = x.abs().amax(1)
    scales = torch.where(largest == 0, 1.0, largest / 127)
    return QuantizedRows(((x / scales[:, None]).round() + ZERO_POINT).clamp(0, 255).to(torch.uint8), scales)


def _torch_quantize_tensor(x: Tensor) -> QuantizedTensor:
    smallest, largest = (extreme.float() for extreme in x.aminmax())
    smallest, largest = smallest.clamp(max=0), largest.clamp(min=0)
    scale = torch.where(largest == smallest, 1.0, (largest - smallest) / 255)
    zero_point = (-smallest / scale).round().clamp(0, 255)
    values = ((x.float() / scale).round() + zero_point).clamp(0, 255).to(torch.uint8)
    return QuantizedTensor(values, scale, zero_point.int())


def _torch_scale_rows(x: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    scaled = x.float() * scales[:, None]
    return scaled if bias is None else scaled + bias


def _torch_quantize_geglu(x: Tensor, scales: Tensor, bias: Tensor) -> QuantizedRows:
    value, gate = _torch_scale_rows(x, scales, bias).chunk(2, dim=1)
    return _torch_quantize_rows(value * F.gelu(gate))


def _run_rows_kernel(function: Any, x: Tensor, *scales_and_bias: Tensor) -> QuantizedRows:
    """Call a kernel that makes one quantized row of each row of x, of half its width if there are scales and a bias."""
    num_rows, width = len(x), x.shape[1] // 2 if scales_and_bias else x.shape[1]
    values, scales = torch.empty(num_rows, width, dtype=torch.uint8), torch.empty(num_rows, dtype=torch.float32)
    function(
        tensor_pointer(x),
        *map(ctypes.c_int64, (num_rows, width)),
        *map(tensor_pointer, (*scales_and_bias, values, scales)),
        _num_threads(),
    )
    return QuantizedRows(values, scales)


def _run_tensor_kernel(kernel: Any, x: Tensor) -> QuantizedTensor:
    scale, zero_point = torch.empty((), dtype=torch.float32), torch.empty((), dtype=torch.int32)
    quantized = QuantizedTensor(torch.empty_like(x, dtype=torch.uint8), scale, zero_point)
    size = ctypes.c_int64(x.numel())
    kernel.unspeckle_quantize_tensor(tensor_pointer(x), size, *map(tensor_pointer, quantized), _num_threads())
    return quantized


def _run_scale_kernel(kernel: Any, x: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    sizes = map(ctypes.c_int64, x.shape)
    kernel.unspeckle_scale_rows(tensor_pointer(x), *sizes, tensor_pointer(scales), tensor_pointer(bias), _num_threads())
    return x


def _num_threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())


@cache
def _load_kernel() -> Any:
    """The compiled library, if it agrees with PyTorch on a small example; None if there is none."""
    functions = ("quantize_rows", "quantize_tensor", "scale_rows", "quantize_geglu")
    kernel = load_kernels("quantize.cpp", *(f"unspeckle_{name}" for name in functions))
    if kernel is None:
        return None
    x = torch.randn(9, 70, generator=torch.Generator().manual_seed(0)).bfloat16()
    scales, bias = x[:, 0].float().abs(), x[0].float()
    tensor, expected_tensor = _run_tensor_kernel(kernel, x), _torch_quantize_tensor(x)
    rows = _run_rows_kernel(kernel.unspeckle_quantize_rows, x)
    geglu_rows = _run_rows_kernel(kernel.unspeckle_quantize_geglu, x, scales, bias)
    scaled = _run_scale_kernel(kernel, x.clone(), scales, bias).float()
    agreements = (
        _is_close(rows, _torch_quantize_rows(x.float())),
        _is_close(geglu_rows, _torch_quantize_geglu(x, scales, bias)),
        _is_close(tensor, expected_tensor),
        abs(int(tensor.zero_point) - int(expected_tensor.zero_point)) <= 1,
        torch.allclose(scaled, _torch_scale_rows(x, scales, bias), 1e-2, 1e-2),
    )
    return kernel if all(agreements) else None


def _is_close(actual: QuantizedRows | QuantizedTensor, expected: QuantizedRows | QuantizedTensor) -> bool:
    """Whether no value differs by more than one step, and the scales are nearly the same."""
    difference = (actual.values.int() - expected.values.int()).abs().max()
    return bool(difference <= 1) and torch.allclose(actual[1], expected[1], rtol=1e-4)
