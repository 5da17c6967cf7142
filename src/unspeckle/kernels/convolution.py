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

from unspeckle.kernels.compiling import kernels, processor

_CHANNELS = 32  # as in convolution.cpp
_OUTPUTS = 64  # as in convolution.cpp
_BACK = torch.tensor([[1.0, 0, 0, 0], [0, 1, -1, 0], [0, 0, 0, 1]])  # from frequencies to taps
_DOUBLED_BACK = torch.tensor([[1.0, 0, 0], [-1, 1, -1], [0, 0, 1]])


class Affine(NamedTuple):
    """Each channel c of each picture b is to become scale[b, c] · x + shift[b, c]; both (B, C) float32."""

    scale: Tensor
    shift: Tensor


def usable() -> bool:
    """Whether the kernel is there, and faster than oneDNN's convolutions."""
    return "amx_bf16" not in processor() and _kernel() is not None


def fits(enter: int) -> bool:
    """Whether the kernel takes that many channels; it gives any number."""
    return enter % _CHANNELS == 0


def packed(weight: Tensor, doubled: bool = False) -> Tensor:
    """Weights (O, C, 3, 3) as the kernel reads them, (O / 64, 16, C / 2, 64, 2), the last 64 filled up with zeros; with
    9 in place of 16 for a picture whose pixels are doubled before it is convolved."""
    return _frequencies(_kernel(), weight, doubled)


def unpacked(weight: Tensor, leave: int, doubled: bool = False) -> Tensor:
    """The weights (O, C, 3, 3) again, float32, but for rounding."""
    back, side = (_DOUBLED_BACK, 3) if doubled else (_BACK, 4)
    flat = weight.float().permute(1, 0, 3, 2, 4).reshape(side, side, -1, 2 * weight.shape[2])[:, :, :leave]
    return torch.einsum("ia,aboc,jb->ocij", back, flat, back).contiguous()


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor, *, norm: Affine | None = None, beside: Tensor | None = None,
    doubled: bool = False,
) -> Tensor:  # fmt: skip
    """x (B, C, H, W) bfloat16, through SiLU(norm) if that is given, convolved with packed weights; plus the bias, (O,)
    or (B, O) float32, and beside, of the result's shape."""
    return _run(_kernel(), x, weight, bias, norm, beside, doubled)


def normalising(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Affine:
    """What group normalisation does to x (B, C, H, W) bfloat16; weight and bias (C,) float32."""
    return _moments(_kernel(), x, groups, weight, bias, eps)


def _frequencies(kernel: Any, weight: Tensor, doubled: bool) -> Tensor:
    weight = weight.float().contiguous()
    leave, enter = weight.shape[:2]
    blocks = -(-leave // _OUTPUTS)
    made = torch.empty(blocks, 9 if doubled else 16, enter // 2, _OUTPUTS, 2, dtype=torch.bfloat16)
    counts = (ctypes.c_int64(count) for count in (enter, leave))
    kernel.unspeckle_frequencies(
        _at(weight), _at(made), *counts, ctypes.c_bool(doubled), ctypes.c_int(torch.get_num_threads())
    )
    return made


def _run(
    kernel: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Affine | None, beside: Tensor | None, doubled: bool
) -> Tensor:
    x, bias = _last(x), (bias[0] if bias.ndim == 2 and len(bias) == 1 else bias).contiguous()
    batch, enter, high, wide = x.shape
    leave, times = bias.shape[-1], 2 if doubled else 1
    out = x.new_empty(batch, times * high, times * wide, leave).permute(0, 3, 1, 2)
    if enter != 2 * weight.shape[2]:
        raise ValueError(f"{enter} channels, of {2 * weight.shape[2]} that the weights are for")
    if beside is not None and (beside.shape != out.shape or beside.dtype != out.dtype):
        raise ValueError(f"to add {tuple(beside.shape)} {beside.dtype} to {tuple(out.shape)} {out.dtype}")
    if not x.numel():
        return out
    made = out if beside is None else _last(beside)
    counts = (ctypes.c_int64(count) for count in (batch, high, wide, enter, leave))
    kernel.unspeckle_convolution(
        _at(x), _at(weight), *(map(_at, norm) if norm else (None, None)), _at(bias),
        ctypes.c_int64(leave if bias.ndim == 2 else 0), None if beside is None else _at(made), _at(out), *counts,
        ctypes.c_bool(doubled), ctypes.c_int(torch.get_num_threads()),
    )  # fmt: skip
    return out


def _moments(kernel: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Affine:
    x = _last(x)
    batch, channels, high, wide = x.shape
    made = Affine(*torch.empty(2, batch, channels, dtype=torch.float32, device="cpu"))
    counts = (ctypes.c_int64(count) for count in (batch, high * wide, channels, groups))
    kernel.unspeckle_normalisation(
        _at(x), _at(weight), _at(bias), *map(_at, made), *counts, ctypes.c_double(eps),
        ctypes.c_int(torch.get_num_threads()),
    )  # fmt: skip
    return made


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@cache
def _kernel() -> Any:
    """The compiled functions, once they have agreed with torch's on small examples; None where there are none."""
    names = ("convolution", "frequencies", "normalisation")
    kernel = kernels("convolution.cpp", *(f"unspeckle_{name}" for name in names))
    if kernel is None:
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 5, 9, generator=generator).bfloat16()
    weight = torch.randn(32, 32, 3, 3, generator=generator) / 17
    told = torch.rand(32, generator=generator)
    norm = _moments(kernel, x, 4, told, -told, 1e-5)
    entered = F.silu(F.group_norm(x.float(), 4, told, -told))
    for doubled in (False, True):
        seen = F.interpolate(entered, scale_factor=2.0) if doubled else entered
        theirs = F.conv2d(seen, weight, told, padding=1)
        beside = theirs.flip(0).bfloat16()
        ours = _run(kernel, x, _frequencies(kernel, weight, doubled), told, norm, beside, doubled).float() - beside
        if not float((ours - theirs).norm()) < 0.02 * float(theirs.norm()):
            return None
    return kernel
