"""Numbers as bytes, for products of bytes, and back: by our own kernels where they can be made, else by torch. A byte q
stands for (q - zero) · scale; wherever the zero is not told it is 128. Everything here is on a CPU, without gradients.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.kernels.compiling import load_kernels

ZERO_POINT = 128


class QuantizedRows(NamedTuple):
    """Each row by a scale of its own."""

    values: Tensor  # (N, C) uint8
    scales: Tensor  # (N,) float32


def quantize_rows(x: Tensor) -> QuantizedRows:
    """x (N, C) bfloat16, so that the largest magnitude of each row is 127 steps."""
    kernel = _load_kernel()
    return (
        _torch_quantize_rows(x.float()) if kernel is None else _run_rows_kernel(kernel.unspeckle_rows, x.contiguous())
    )


def quantize_tensor(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All of x, dense in memory, bfloat16, by one scale and one zero, under which its least and its largest value and 0
    are bytes: uint8 of x's shape and order, () float32, () int32."""
    kernel = _load_kernel()
    return _torch_quantize_tensor(x) if kernel is None else _run_tensor_kernel(kernel, x)


def scale_rows_(x: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, O) bfloat16 times the scales of its rows, and the bias (O,) float32, in x's place."""
    kernel = _load_kernel()
    return x.copy_(_torch_scale_rows(x, scales, bias)) if kernel is None else _run_scale_kernel(kernel, x, scales, bias)


def quantize_geglu(x: Tensor, scales: Tensor, bias: Tensor) -> QuantizedRows:
    """value · gelu(gate) of x (N, 2 · C), value first, once it is scaled: by scales again."""
    kernel = _load_kernel()
    return (
        _torch_quantize_geglu(x, scales, bias)
        if kernel is None
        else _run_rows_kernel(kernel.unspeckle_gated, x, scales, bias)
    )


def _torch_quantize_rows(x: Tensor) -> QuantizedRows:
    largest = x.abs().amax(1)
    scales = torch.where(largest == 0, 1.0, largest / 127)
    return QuantizedRows(((x / scales[:, None]).round() + ZERO_POINT).clamp(0, 255).to(torch.uint8), scales)


def _torch_quantize_tensor(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    smallest, largest = (extreme.float() for extreme in x.aminmax())
    smallest, largest = smallest.clamp(max=0), largest.clamp(min=0)
    scale = torch.where(largest == smallest, 1.0, (largest - smallest) / 255)
    zero_point = (-smallest / scale).round().clamp(0, 255)
    return ((x.float() / scale).round() + zero_point).clamp(0, 255).to(torch.uint8), scale, zero_point.int()


def _torch_scale_rows(x: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    scaled = x.float() * scales[:, None]
    return scaled if bias is None else scaled + bias


def _torch_quantize_geglu(x: Tensor, scales: Tensor, bias: Tensor) -> QuantizedRows:
    value, gate = _torch_scale_rows(x, scales, bias).chunk(2, dim=1)
    return _torch_quantize_rows(value * F.gelu(gate))


def _run_rows_kernel(function: Any, x: Tensor, *scales_and_bias: Tensor) -> QuantizedRows:
    """x with what belongs to it, to rows."""
    num_rows, width = len(x), x.shape[1] // 2 if scales_and_bias else x.shape[1]
    quantized = QuantizedRows(
        torch.empty(num_rows, width, dtype=torch.uint8), torch.empty(num_rows, dtype=torch.float32)
    )
    function(
        _pointer(x),
        ctypes.c_int64(num_rows),
        ctypes.c_int64(width),
        *map(_pointer, (*scales_and_bias, *quantized)),
        _num_threads(),
    )
    return quantized


def _run_tensor_kernel(kernel: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, zero_point = torch.empty((), dtype=torch.float32), torch.empty((), dtype=torch.int32)
    out = torch.empty_like(x, dtype=torch.uint8)
    kernel.unspeckle_whole(
        _pointer(x), ctypes.c_int64(x.numel()), *map(_pointer, (out, scale, zero_point)), _num_threads()
    )
    return out, scale, zero_point


def _run_scale_kernel(kernel: Any, x: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    sizes = (ctypes.c_int64(size) for size in x.shape)
    kernel.unspeckle_scaled(
        _pointer(x), *sizes, _pointer(scales), None if bias is None else _pointer(bias), _num_threads()
    )
    return x


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _num_threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())


@cache
def _load_kernel() -> Any:
    """The compiled functions, once they have agreed with torch's on a small example; None where there are none."""
    kernel = load_kernels("quantize.cpp", *(f"unspeckle_{name}" for name in ("rows", "whole", "scaled", "gated")))
    if kernel is None:
        return None
    x = torch.randn(9, 70, generator=torch.Generator().manual_seed(0)).bfloat16()
    scales, bias = x[:, 0].float().abs(), x[0].float()
    (actual, actual_scale, actual_zero_point), (expected, expected_scale, expected_zero_point) = (
        _run_tensor_kernel(kernel, x),
        _torch_quantize_tensor(x),
    )
    agreements = (
        _is_close(_run_rows_kernel(kernel.unspeckle_rows, x), _torch_quantize_rows(x.float())),
        _is_close(_run_rows_kernel(kernel.unspeckle_gated, x, scales, bias), _torch_quantize_geglu(x, scales, bias)),
        _is_close(QuantizedRows(actual, actual_scale), QuantizedRows(expected, expected_scale))
        and abs(int(actual_zero_point) - int(expected_zero_point)) <= 1,
        torch.allclose(
            _run_scale_kernel(kernel, x.clone(), scales, bias).float(), _torch_scale_rows(x, scales, bias), 1e-2, 1e-2
        ),
    )
    return kernel if all(agreements) else None


def _is_close(actual: QuantizedRows, expected: QuantizedRows) -> bool:
    difference = (actual.values.int() - expected.values.int()).abs().max()
    return bool(difference <= 1) and torch.allclose(actual.scales, expected.scales, rtol=1e-4)
