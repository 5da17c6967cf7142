"""3 × 3 convolutions in bfloat16 by a C++ kernel that needs 4/9 of the multiplications: Winograd's F(2 × 2, 3 × 3)
(Lavin & Gray 2016). It also computes, in float32, what a residual block does before and after them: normalization,
SiLU, bias and residual connection.

It is for processors on which the multiplications are the bottleneck. AMX makes them six times as fast, but nothing
else, so that the transforms would cost more than they save.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.kernels.compiling import cpu_features, load_kernels, tensor_pointer

_CHANNEL_BLOCK = 32  # as in convolution.cpp
_OUTPUT_BLOCK = 64  # as in convolution.cpp
# From Winograd frequencies back to the three taps along one side of a kernel.
_INVERSE = torch.tensor([[1.0, 0, 0, 0], [0, 1, -1, 0], [0, 0, 0, 1]])
_UPSAMPLE_INVERSE = torch.tensor([[1.0, 0, 0], [-1, 1, -1], [0, 0, 1]])


class ChannelAffine(NamedTuple):
    """A normalization, as what it does to each channel c of each image b: x becomes scale[b, c] · x + shift[b, c]. Both
    are (B, C) float32."""

    scale: Tensor
    shift: Tensor


def has_conv_kernel() -> bool:
    """Whether the kernel is available, and faster than oneDNN's convolutions."""
    return "amx_bf16" not in cpu_features() and _load_kernel() is not None


def is_conv_supported(in_channels: int) -> bool:
    """Whether the kernel supports that number of input channels; it supports any number of output channels."""
    return in_channels % _CHANNEL_BLOCK == 0


def pack_conv_weight(weight: Tensor, upsample: bool = False) -> Tensor:
    """Weights (O, C, 3, 3) in the kernel's layout, (O / 64, 16, C / 2, 64, 2) bfloat16 with O padded by zeros. With
    upsample it is for a convolution after nearest-neighbor upsampling, with 9 in place of 16."""
    return _run_weight_transform(_load_kernel(), weight, upsample)


def unpack_conv_weight(weight: Tensor, out_channels: int, upsample: bool = False) -> Tensor:
    """Packed weights as (O, C, 3, 3) float32 again, except for their rounding."""
    inverse, tile_size = (_UPSAMPLE_INVERSE, 3) if upsample else (_INVERSE, 4)
    frequencies = weight.float().permute(1, 0, 3, 2, 4).reshape(tile_size, tile_size, -1, 2 * weight.shape[2])
    return torch.einsum("ia,aboc,jb->ocij", inverse, frequencies[:, :, :out_channels], inverse).contiguous()


def winograd_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    norm: ChannelAffine | None = None,
    residual: Tensor | None = None,
    upsample: bool = False,
) -> Tensor:
    """conv(SiLU(norm(x))) + bias + residual, with padding 1.

    x: (B, C, H, W) bfloat16. weight: from pack_conv_weight with the same upsample. bias: (O,) or (B, O) float32. norm:
    without it the convolution is of x itself. residual: of the result's shape. upsample: double height and width before
    the convolution. Returns (B, O, H, W) or (B, O, 2·H, 2·W) bfloat16; ValueError if the shapes do not fit."""
    return _run_convolution(_load_kernel(), x, weight, bias, norm=norm, residual=residual, upsample=upsample)


def group_norm_affine(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> ChannelAffine:
    """The group normalization of x (B, C, H, W) bfloat16; weight and bias (C,) float32."""
    return _run_normalization(_load_kernel(), x, groups, weight, bias, eps)


def _run_weight_transform(kernel: Any, weight: Tensor, upsample: bool) -> Tensor:
    weight = weight.float().contiguous()
    out_channels, in_channels = weight.shape[:2]
    blocks = -(-out_channels // _OUTPUT_BLOCK)
    out = torch.empty(blocks, 9 if upsample else 16, in_channels // 2, _OUTPUT_BLOCK, 2, dtype=torch.bfloat16)
    kernel.unspeckle_transform_weights(
        *map(tensor_pointer, (weight, out)),
        *map(ctypes.c_int64, (in_channels, out_channels)),
        ctypes.c_bool(upsample),
        ctypes.c_int(torch.get_num_threads()),
    )
    return out


def _run_convolution(
    kernel: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    norm: ChannelAffine | None,
    residual: Tensor | None,
    upsample: bool,
) -> Tensor:
    x, bias = _channels_last(x), (bias[0] if bias.ndim == 2 and len(bias) == 1 else bias).contiguous()
    batch_size, in_channels, height, width = x.shape
    out_channels, upsampling = bias.shape[-1], 2 if upsample else 1
    out = x.new_empty(batch_size, upsampling * height, upsampling * width, out_channels).permute(0, 3, 1, 2)
    if in_channels != 2 * weight.shape[2]:
        raise ValueError(f"x has {in_channels} channels, but the weight is for {2 * weight.shape[2]}")
    if residual is not None and (residual.shape != out.shape or residual.dtype != out.dtype):
        raise ValueError(f"cannot add {tuple(residual.shape)} {residual.dtype} to {tuple(out.shape)} {out.dtype}")
    if not x.numel():
        return out
    residual = None if residual is None else _channels_last(residual)
    scale, shift = (None, None) if norm is None else norm
    kernel.unspeckle_convolution(
        *map(tensor_pointer, (x, weight, scale, shift, bias)),
        ctypes.c_int64(out_channels if bias.ndim == 2 else 0),  # the stride of bias from image to image
        *map(tensor_pointer, (residual, out)),
        *map(ctypes.c_int64, (batch_size, height, width, in_channels, out_channels)),
        ctypes.c_bool(upsample),
        ctypes.c_int(torch.get_num_threads()),
    )
    return out


def _run_normalization(kernel: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> ChannelAffine:
    x = _channels_last(x)
    batch_size, channels, height, width = x.shape
    affine = ChannelAffine(*torch.empty(2, batch_size, channels, dtype=torch.float32, device="cpu"))
    kernel.unspeckle_group_norm(
        *map(tensor_pointer, (x, weight, bias, *affine)),
        *map(ctypes.c_int64, (batch_size, height * width, channels, groups)),
        ctypes.c_double(eps),
        ctypes.c_int(torch.get_num_threads()),
    )
    return affine


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@cache
def _load_kernel() -> Any:
    """The compiled library, if it agrees with PyTorch on small examples; None if there is none."""
    functions = ("convolution", "transform_weights", "group_norm")
    kernel = load_kernels("convolution.cpp", *(f"unspeckle_{name}" for name in functions))
    if kernel is None:
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 5, 9, generator=generator).bfloat16()
    weight = torch.randn(32, 32, 3, 3, generator=generator) / 17
    bias = torch.rand(32, generator=generator)
    norm = _run_normalization(kernel, x, 4, bias, -bias, 1e-5)
    activation = F.silu(F.group_norm(x.float(), 4, bias, -bias))
    for upsample in (False, True):
        conv_input = F.interpolate(activation, scale_factor=2.0) if upsample else activation
        expected = F.conv2d(conv_input, weight, bias, padding=1)
        residual = expected.flip(0).bfloat16()
        packed_weight = _run_weight_transform(kernel, weight, upsample)
        total = _run_convolution(kernel, x, packed_weight, bias, norm=norm, residual=residual, upsample=upsample)
        actual = total.float() - residual
        if not float((actual - expected).norm()) < 0.02 * float(expected.norm()):
            return None
    return kernel
