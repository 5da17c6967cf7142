"""The entry of a gated feed-forward in bfloat16 by our own kernel: two products, the gelu and the gate in float32."""

import ctypes
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.kernels.compiling import cpu_features, load_kernels

_OUTPUT_BLOCK = 64  # as in gated.cpp


def has_geglu_kernel() -> bool:
    """Whether the kernel is there, on a processor where it was measured: not yet on one with AMX."""
    return "amx_bf16" not in cpu_features() and _load_kernel() is not None


def is_geglu_supported(in_features: int, out_features: int) -> bool:
    return in_features % 2 == 0 and out_features % _OUTPUT_BLOCK == 0


def pack_geglu_weight(weight: Tensor) -> Tensor:
    """Weights (2 · O, C), value first, as the kernel reads them: (2 · O / 64, C / 2, 64, 2)."""
    return weight.bfloat16().view(-1, _OUTPUT_BLOCK, weight.shape[1] // 2, 2).permute(0, 2, 1, 3).contiguous()


def unpack_geglu_weight(weight: Tensor) -> Tensor:
    """The weights (2 · O, C) again."""
    return weight.permute(0, 2, 1, 3).reshape(-1, 2 * weight.shape[1])


def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """value · gelu(gate) of x (…, C) bfloat16: (…, O). weight is packed, bias (2 · O,) float32."""
    return _run_kernel(_load_kernel(), x, weight, bias)


def _run_kernel(kernel: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.shape[-1] != 2 * weight.shape[1]:
        raise ValueError(f"{x.shape[-1]} channels, of {2 * weight.shape[1]} that the weights are for")
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], len(bias) // 2)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, weight, bias, out))
    sizes = (ctypes.c_int64(size) for size in (x.numel() // x.shape[-1], x.shape[-1], out.shape[-1]))
    kernel.unspeckle_gated_product(*pointers, *sizes, ctypes.c_int(torch.get_num_threads()))
    return out


@cache
def _load_kernel() -> Any:
    """The compiled function, once it has agreed with torch's on a small example; None where there is none."""
    kernel = load_kernels("gated.cpp", "unspeckle_gated_product")
    if kernel is None:
        return None
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(num_rows, 34, generator=generator) for num_rows in (70, 256))
    x, bias = x.bfloat16(), weight[:, 0].clone()
    value, gate = F.linear(x.float(), weight.bfloat16().float(), bias).chunk(2, 1)
    expected = value * F.gelu(gate)
    error = _run_kernel(kernel, x, pack_geglu_weight(weight), bias).float() - expected
    return kernel if float(error.norm()) < 0.01 * float(expected.norm()) else None
