"""Attention in bfloat16 by our own kernel, where it is faster than torch's and says the same."""

import ctypes
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.kernels.compiling import cpu_features, load_kernels


def attention_kernel(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor | None:
    """softmax(q·k / √width)·v of every head: query (B, N, C), key and value (B, M, C) to (B, N, C); None where it is
    not for the kernel: it takes bfloat16 on a CPU, without gradients. UNSPECKLE_KERNELS=0 does without it."""
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or torch.is_grad_enabled():
        return None
    has_unit_strides = all(tensor.stride(2) == 1 and tensor.shape[1] for tensor in (query, key, value))
    if torch.compiler.is_compiling() or not has_unit_strides or query.shape[2] // heads % 2:
        return None
    kernel = _load_kernel()
    return None if kernel is None else _run_kernel(kernel, query, key, value, heads)


def _run_kernel(kernel: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    (batch_size, num_queries, channels), num_keys = query.shape, key.shape[1]
    out = torch.empty(batch_size, num_queries, channels, dtype=query.dtype)
    sizes = [ctypes.c_int64(size) for size in (batch_size, heads, num_queries, num_keys, channels // heads)]
    strides = (ctypes.c_int64 * 6)(*(stride for tensor in (query, key, value) for stride in tensor.stride()[:2]))
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (query, key, value, out)]
    kernel(*pointers, *sizes, strides, ctypes.c_int(torch.get_num_threads()))
    return out


@cache
def _load_kernel() -> Any:
    """The compiled function, once it has agreed with torch's on a small example; None where there is none."""
    library = load_kernels(f"attention{'_amx' if 'amx_bf16' in cpu_features() else ''}.cpp", "unspeckle_attention")
    if library is None:
        return None
    kernel = library.unspeckle_attention
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 80, 80, generator=generator).bfloat16()
    expected = F.scaled_dot_product_attention(
        *(tensor.float().view(1, 80, 2, 40).transpose(1, 2) for tensor in (query, key, value))
    )
    error = _run_kernel(kernel, query, key, value, 2).float() - expected.transpose(1, 2).reshape(1, 80, 80)
    return kernel if float(error.norm() / expected.norm()) < 0.01 else None
