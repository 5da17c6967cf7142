"""Attention in bfloat16 by a C++ kernel, which is faster on CPUs than PyTorch's."""

import ctypes
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.kernels.compiling import cpu_features, load_kernels, tensor_pointer
from unspeckle.networks.layers import ScaledDotProductAttention

# The least number of scores (queries × keys) of a head for which the kernel is used: it is compiled at its first use,
# and small models need not wait for that.
MIN_KERNEL_SCORES = 2**14


class KernelAttention(ScaledDotProductAttention):
    """ScaledDotProductAttention that uses the kernel where it can, and else PyTorch."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        is_eager = not torch.compiler.is_exporting() and not torch.compiler.is_compiling()
        if is_eager and mask is None and query.shape[1] * key.shape[1] >= MIN_KERNEL_SCORES:
            out = attention_kernel(query, key, value, self.heads)
            if out is not None:
                return out
        return super().forward(query, key, value, mask)


def use_attention_kernel(module: nn.Module) -> None:
    """Replace every ScaledDotProductAttention in the module, in place, by one that uses the kernel."""
    for parent in module.modules():
        for name, child in list(parent.named_children()):
            if type(child) is ScaledDotProductAttention:
                setattr(parent, name, KernelAttention(child.heads))


def attention_kernel(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor | None:
    """softmax(q · kᵀ / √width) · v of each head: query (B, N, C), key and value (B, M, C) -> (B, N, C).

    None if the kernel does not support the arguments (it needs bfloat16 on a CPU, no gradients, and heads with an even
    number of channels) or is not available, as with the environment variable UNSPECKLE_KERNELS=0."""
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or torch.is_grad_enabled():
        return None
    has_unit_strides = all(tensor.stride(2) == 1 and tensor.shape[1] for tensor in (query, key, value))
    if not has_unit_strides or query.shape[2] // heads % 2:
        return None
    kernel = _load_kernel()
    return None if kernel is None else _run_kernel(kernel, query, key, value, heads)


def _run_kernel(kernel: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    (batch_size, num_queries, channels), num_keys = query.shape, key.shape[1]
    out = torch.empty(batch_size, num_queries, channels, dtype=query.dtype)
    sizes = [ctypes.c_int64(size) for size in (batch_size, heads, num_queries, num_keys, channels // heads)]
    strides = (ctypes.c_int64 * 6)(*(stride for tensor in (query, key, value) for stride in tensor.stride()[:2]))
    pointers = [tensor_pointer(tensor) for tensor in (query, key, value, out)]
    kernel(*pointers, *sizes, strides, ctypes.c_int(torch.get_num_threads()))
    return out


@cache
def _load_kernel() -> Any:
    """The compiled function, if it agrees with PyTorch's on a small example; None if there is none."""
    source = "attention_amx.cpp" if "amx_bf16" in cpu_features() else "attention.cpp"
    library = load_kernels(source, "unspeckle_attention")
    if library is None:
        return None
    kernel = library.unspeckle_attention
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 80, 80, generator=generator).bfloat16()
    heads = (tensor.float().view(1, 80, 2, 40).transpose(1, 2) for tensor in (query, key, value))
    expected = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(1, 80, 80)
    error = _run_kernel(kernel, query, key, value, 2).float() - expected
    return kernel if float(error.norm() / expected.norm()) < 0.01 else None
