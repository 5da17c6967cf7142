"""Numbers as bytes, for products of bytes, and back: by our own kernels where they can be made, else by torch. A byte q
stands for (q - zero) · scale; wherever the zero is not told it is 128. Everything here is on a CPU, without gradients.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.kernels.compiling import kernels

ZERO = 128


class Rows(NamedTuple):
    """Each row by a scale of its own."""

    bytes: Tensor  # (N, C) uint8
    scales: Tensor  # (N,) float32


def rows(x: Tensor) -> Rows:
    """x (N, C) bfloat16, so that the largest magnitude of each row is 127 steps."""
    kernel = _kernel()
    return _rows(x.float()) if kernel is None else _ours(kernel.unspeckle_rows, x.contiguous())


def whole(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All of x, dense in memory, bfloat16, by one scale and one zero, under which its least and its largest value and 0
    are bytes: uint8 of x's shape and order, () float32, () int32."""
    kernel = _kernel()
    return _whole(x) if kernel is None else _our_whole(kernel, x)


def scaled(x: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, O) bfloat16 times the scales of its rows, and the bias (O,) float32, in x's place."""
    kernel = _kernel()
    return x.copy_(_scaled(x, scales, bias)) if kernel is None else _our_scaled(kernel, x, scales, bias)


def gated(x: Tensor, scales: Tensor, bias: Tensor) -> Rows:
    """value · gelu(gate) of x (N, 2 · C), value first, once it is scaled: by scales again."""
    kernel = _kernel()
    return _gated(x, scales, bias) if kernel is None else _ours(kernel.unspeckle_gated, x, scales, bias)


def _rows(x: Tensor) -> Rows:
    most = x.abs().amax(1)
    scales = torch.where(most == 0, 1.0, most / 127)
    return Rows(((x / scales[:, None]).round() + ZERO).clamp(0, 255).to(torch.uint8), scales)


def _whole(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    least, most = (one.float() for one in x.aminmax())
    least, most = least.clamp(max=0), most.clamp(min=0)
    scale = torch.where(most == least, 1.0, (most - least) / 255)
    zero = (-least / scale).round().clamp(0, 255)
    return ((x.float() / scale).round() + zero).clamp(0, 255).to(torch.uint8), scale, zero.int()


def _scaled(x: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    made = x.float() * scales[:, None]
    return made if bias is None else made + bias


def _gated(x: Tensor, scales: Tensor, bias: Tensor) -> Rows:
    value, gate = _scaled(x, scales, bias).chunk(2, dim=1)
    return _rows(value * F.gelu(gate))


def _ours(function: Any, x: Tensor, *more: Tensor) -> Rows:
    """x with what belongs to it, to rows."""
    count, width = len(x), x.shape[1] // 2 if more else x.shape[1]
    found = Rows(torch.empty(count, width, dtype=torch.uint8), torch.empty(count, dtype=torch.float32))
    function(_at(x), ctypes.c_int64(count), ctypes.c_int64(width), *map(_at, (*more, *found)), _threads())
    return found


def _our_whole(kernel: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, zero = torch.empty((), dtype=torch.float32), torch.empty((), dtype=torch.int32)
    out = torch.empty_like(x, dtype=torch.uint8)
    kernel.unspeckle_whole(_at(x), ctypes.c_int64(x.numel()), *map(_at, (out, scale, zero)), _threads())
    return out, scale, zero


def _our_scaled(kernel: Any, x: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    counts = (ctypes.c_int64(count) for count in x.shape)
    kernel.unspeckle_scaled(_at(x), *counts, _at(scales), None if bias is None else _at(bias), _threads())
    return x


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())


@cache
def _kernel() -> Any:
    """The compiled functions, once they have agreed with torch's on a small example; None where there are none."""
    kernel = kernels("quantize.cpp", *(f"unspeckle_{name}" for name in ("rows", "whole", "scaled", "gated")))
    if kernel is None:
        return None
    x = torch.randn(9, 70, generator=torch.Generator().manual_seed(0)).bfloat16()
    scales, bias = x[:, 0].float().abs(), x[0].float()
    (found, step, zero), (levels, size, none) = _our_whole(kernel, x), _whole(x)
    agreed = (
        _near(_ours(kernel.unspeckle_rows, x), _rows(x.float())),
        _near(_ours(kernel.unspeckle_gated, x, scales, bias), _gated(x, scales, bias)),
        _near(Rows(found, step), Rows(levels, size)) and abs(int(zero) - int(none)) <= 1,
        torch.allclose(_our_scaled(kernel, x.clone(), scales, bias).float(), _scaled(x, scales, bias), 1e-2, 1e-2),
    )
    return kernel if all(agreed) else None


def _near(one: Rows, other: Rows) -> bool:
    apart = (one.bytes.int() - other.bytes.int()).abs().max()
    return bool(apart <= 1) and torch.allclose(one.scales, other.scales, rtol=1e-4)
