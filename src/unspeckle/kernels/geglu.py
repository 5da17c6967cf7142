"""The first half of a GEGLU feed-forward layer in bfloat16 by a C++ kernel: two matrix products, whose results are
multiplied, one through a GELU, in float32."""

import ctypes
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.kernels.compiling import cpu_features, load_kernels, tensor_pointer

_OUTPUT_BLOCK = 64  # as in geglu.cpp


def has_geglu_kernel() -> bool:
    """Whether the kernel is available, and the processor one for which it was measured: not yet those with AMX."""
    return "amx_bf16" not in cpu_features() and _load_kernel() is not None


def is_geglu_supported(in_features: int, out_features: int) -> bool:
    """Whether the kernel supports these sizes."""
    return in_features % 2 == 0 and out_features % _OUTPUT_BLOCK == 0


def pack_geglu_weight(weight: Tensor) -> Tensor:
    """Weights (2·O, C), the values' before the gates', in the kernel's layout: (2·O / 64, C / 2, 64, 2) bfloat16."""
    return weight.bfloat16().view(-1, _OUTPUT_BLOCK, weight.shape[1] // 2, 2).permute(0, 2, 1, 3).contiguous()


def unpack_geglu_weight(weight: Tensor) -> Tensor:
    """Packed weights as (2·O, C) again."""
    return weight.permute(0, 2, 1, 3).reshape(-1, 2 * weight.shape[1])


def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """value · gelu(gate), where value and gate are linear functions of x: x (…, C) bfloat16, packed weight, bias (2·O,)
    float32 -> (…, O) bfloat16. ValueError if x and weight do not have the same number of channels."""
    return _run_kernel(_load_kernel(), x, weight, bias)


def _run_kernel(kernel: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.shape[-1] != 2 * weight.shape[1]:
        raise ValueError(f"x has {x.shape[-1]} channels, but the weight is for {2 * weight.shape[1]}")
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], len(bias) // 2)
    pointers = (tensor_pointer(tensor) for tensor in (x, weight, bias, out))
    sizes = (ctypes.c_int64(size) for size in (x.numel() // x.shape[-1], x.shape[-1], out.shape[-1]))
    kernel.unspeckle_geglu(*pointers, *sizes, ctypes.c_int(torch.get_num_threads()))
    return out


@cache
def _load_kernel() -> Any:
    """The compiled library, if it agrees with PyTorch on a small example; None if there is none."""
    kernel = load_kernels("geglu.cpp", "unspeckle_geglu")
    if kernel is None:
        return None
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(num_rows, 34, generator=generator) for num_rows in (70, 256))
    x, bias = x.bfloat16(), weight[:, 0].clone()
    value, gate = F.linear(x.float(), weight.bfloat16().float(), bias).chunk(2, 1)
    expected = value * F.gelu(gate)
    error = _run_kernel(kernel, x, pack_geglu_weight(weight), bias).float() - expected
    return kernel if float(error.norm()) < 0.01 * float(expected.norm()) else None
