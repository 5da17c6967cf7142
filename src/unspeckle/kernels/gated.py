"""The entry of a gated feed-forward in bfloat16 by our own kernel: two products, the gelu and the gate in float32."""

import ctypes
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.kernels.compiling import kernels, processor

_OUTPUTS = 64  # as in gated.cpp


def usable() -> bool:
    """Whether the kernel is there, on a processor where it was measured: not yet on one with AMX."""
    return "amx_bf16" not in processor() and _kernel() is not None


def fits(enter: int, leave: int) -> bool:
    return enter % 2 == 0 and leave % _OUTPUTS == 0


def packed(weight: Tensor) -> Tensor:
    """Weights (2 · O, C), value first, as the kernel reads them: (2 · O / 64, C / 2, 64, 2)."""
    return weight.bfloat16().view(-1, _OUTPUTS, weight.shape[1] // 2, 2).permute(0, 2, 1, 3).contiguous()


def unpacked(weight: Tensor) -> Tensor:
    """The weights (2 · O, C) again."""
    return weight.permute(0, 2, 1, 3).reshape(-1, 2 * weight.shape[1])


def gated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """value · gelu(gate) of x (…, C) bfloat16: (…, O). weight is packed, bias (2 · O,) float32."""
    return _run(_kernel(), x, weight, bias)


def _run(kernel: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.shape[-1] != 2 * weight.shape[1]:
        raise ValueError(f"{x.shape[-1]} channels, of {2 * weight.shape[1]} that the weights are for")
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], len(bias) // 2)
    places = (ctypes.c_void_p(one.data_ptr()) for one in (x, weight, bias, out))
    counts = (ctypes.c_int64(count) for count in (x.numel() // x.shape[-1], x.shape[-1], out.shape[-1]))
    kernel.unspeckle_gated_product(*places, *counts, ctypes.c_int(torch.get_num_threads()))
    return out


@cache
def _kernel() -> Any:
    """The compiled function, once it has agreed with torch's on a small example; None where there is none."""
    kernel = kernels("gated.cpp", "unspeckle_gated_product")
    if kernel is None:
        return None
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(count, 34, generator=generator) for count in (70, 256))
    x, bias = x.bfloat16(), weight[:, 0].clone()
    value, gate = F.linear(x.float(), weight.bfloat16().float(), bias).chunk(2, 1)
    theirs = value * F.gelu(gate)
    off = _run(kernel, x, packed(weight), bias).float() - theirs
    return kernel if float(off.norm()) < 0.01 * float(theirs.norm()) else None
