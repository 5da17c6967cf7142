"""3 × 3 convolutions in bfloat16 by our own kernel, which does 4/9 of the products (Winograd's F(2 × 2, 3 × 3)), with
what a residual block does before and after them in float32 on the way.

It is for processors whose products are the bottleneck. With AMX they are six times as fast as here and all else is not,
so that the transforms would cost what the products save.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.kernels.compiling import cpu_features, load_kernels

_CHANNEL_BLOCK = 32  # as in convolution.cpp
_OUTPUT_BLOCK = 64  # as in convolution.cpp
_INVERSE = torch.tensor([[1.0, 0, 0, 0], [0, 1, -1, 0], [0, 0, 0, 1]])  # from frequencies to taps
_UPSAMPLE_INVERSE = torch.tensor([[1.0, 0, 0], [-1, 1, -1], [0, 0, 1]])


class ChannelAffine(NamedTuple):
    """Each channel c of each picture b is to become scale[b, c] · x + shift[b, c]; both (B, C) float32."""

    scale: Tensor
    shift: Tensor


def has_conv_kernel() -> bool:
    """Whether the kernel is there, and faster than oneDNN's convolutions."""
    return "amx_bf16" not in cpu_features() and _load_kernel() is not None


def is_conv_supported(in_channels: int) -> bool:
    """Whether the kernel takes that many channels; it gives any number."""
    return in_channels % _CHANNEL_BLOCK == 0


def pack_conv_weight(weight: Tensor, upsample: bool = False) -> Tensor:
    """Weights (O, C, 3, 3) as the kernel reads them, (O / 64, 16, C / 2, 64, 2), the last 64 filled up with zeros; with
    9 in place of 16 for a picture whose pixels are doubled before it is convolved."""
    return _run_weight_transform(_load_kernel(), weight, upsample)


def unpack_conv_weight(weight: Tensor, out_channels: int, upsample: bool = False) -> Tensor:
    """The weights (O, C, 3, 3) again, float32, but for rounding."""
    inverse, tile_size = (_UPSAMPLE_INVERSE, 3) if upsample else (_INVERSE, 4)
    flat = (
        weight.float()
        .permute(1, 0, 3, 2, 4)
        .reshape(tile_size, tile_size, -1, 2 * weight.shape[2])[:, :, :out_channels]
    )
    return torch.einsum("ia,aboc,jb->ocij", inverse, flat, inverse).contiguous()


def winograd_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, *, norm: ChannelAffine | None = None, residual: Tensor | None = None,
    upsample: bool = False,
) -> Tensor:  # fmt: skip
    """x (B, C, H, W) bfloat16, through SiLU(norm) if that is given, convolved with packed weights; plus the bias, (O,)
    or (B, O) float32, and beside, of the result's shape."""
    return _run_convolution(_load_kernel(), x, weight, bias, norm, residual, upsample)


def group_norm_affine(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> ChannelAffine:
    """What group normalisation does to x (B, C, H, W) bfloat16; weight and bias (C,) float32."""
    return _run_normalization(_load_kernel(), x, groups, weight, bias, eps)


def _run_weight_transform(kernel: Any, weight: Tensor, upsample: bool) -> Tensor:
    weight = weight.float().contiguous()
    out_channels, in_channels = weight.shape[:2]
    blocks = -(-out_channels // _OUTPUT_BLOCK)
    out = torch.empty(blocks, 9 if upsample else 16, in_channels // 2, _OUTPUT_BLOCK, 2, dtype=torch.bfloat16)
    sizes = (ctypes.c_int64(size) for size in (in_channels, out_channels))
    kernel.unspeckle_frequencies(
        _pointer(weight), _pointer(out), *sizes, ctypes.c_bool(upsample), ctypes.c_int(torch.get_num_threads())
    )
    return out


def _run_convolution(
    kernel: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: ChannelAffine | None,
    residual: Tensor | None,
    upsample: bool,
) -> Tensor:
    x, bias = _channels_last(x), (bias[0] if bias.ndim == 2 and len(bias) == 1 else bias).contiguous()
    batch_size, in_channels, height, width = x.shape
    out_channels, upsampling = bias.shape[-1], 2 if upsample else 1
    out = x.new_empty(batch_size, upsampling * height, upsampling * width, out_channels).permute(0, 3, 1, 2)
    if in_channels != 2 * weight.shape[2]:
        raise ValueError(f"{in_channels} channels, of {2 * weight.shape[2]} that the weights are for")
    if residual is not None and (residual.shape != out.shape or residual.dtype != out.dtype):
        raise ValueError(f"to add {tuple(residual.shape)} {residual.dtype} to {tuple(out.shape)} {out.dtype}")
    if not x.numel():
        return out
    residual_last = out if residual is None else _channels_last(residual)
    sizes = (ctypes.c_int64(size) for size in (batch_size, height, width, in_channels, out_channels))
    kernel.unspeckle_convolution(
        _pointer(x), _pointer(weight), *(map(_pointer, norm) if norm else (None, None)), _pointer(bias),
        ctypes.c_int64(out_channels if bias.ndim == 2 else 0), None if residual is None else _pointer(residual_last), _pointer(out), *sizes,
        ctypes.c_bool(upsample), ctypes.c_int(torch.get_num_threads()),
    )  # fmt: skip
    return out


def _run_normalization(kernel: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> ChannelAffine:
    x = _channels_last(x)
    batch_size, channels, height, width = x.shape
    affine = ChannelAffine(*torch.empty(2, batch_size, channels, dtype=torch.float32, device="cpu"))
    sizes = (ctypes.c_int64(size) for size in (batch_size, height * width, channels, groups))
    kernel.unspeckle_normalisation(
        _pointer(x), _pointer(weight), _pointer(bias), *map(_pointer, affine), *sizes, ctypes.c_double(eps),
        ctypes.c_int(torch.get_num_threads()),
    )  # fmt: skip
    return affine


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@cache
def _load_kernel() -> Any:
    """The compiled functions, once they have agreed with torch's on small examples; None where there are none."""
    names = ("convolution", "frequencies", "normalisation")
    kernel = load_kernels("convolution.cpp", *(f"unspeckle_{name}" for name in names))
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
        actual = (
            _run_convolution(
                kernel, x, _run_weight_transform(kernel, weight, upsample), bias, norm, residual, upsample
            ).float()
            - residual
        )
        if not float((actual - expected).norm()) < 0.02 * float(expected.norm()):
            return None
    return kernel
