"""Residual blocks and 3 × 3 convolutions for drawing in bfloat16 by our own kernel: norms and SiLUs are done in float32
as a convolution reads its input, bias, time and sum as it writes. What is computed is what the plain layers compute.
The convolution is rounded once more than theirs, twice as far off where it is alone; what lies around it is rounded
less often, so that a residual block is nearer the truth than a plain one.

Of x in another precision (after `.float()`, where bfloat16 did not do) they answer in that one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.kernels import convolution
from unspeckle.kernels.convolution import Affine
from unspeckle.networks.layers import Growing, doubled


class FusedConv(nn.Module):
    """A 3 × 3 convolution with a margin of 1, or a Growing."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.doubled = isinstance(layer, Growing)
        self.weight = convolution.packed(layer.weight.detach(), self.doubled)
        self.bias = _own(layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias)

    def forward(
        self, x: Tensor, norm: Affine | None = None, more: Tensor | None = None, beside: Tensor | None = None
    ) -> Tensor:
        """Of SiLU(norm(x)), if that is given; more (B, O) is added at every place, beside (B, O, H, W) at each."""
        bias = self.bias if more is None else self.bias + more.float()
        if x.dtype == self.weight.dtype:
            return convolution.convolved(x, self.weight, bias, norm=norm, beside=beside, doubled=self.doubled)
        if norm is not None:
            x = F.silu(x * norm.scale[:, :, None, None].to(x.dtype) + norm.shift[:, :, None, None].to(x.dtype))
        weight = convolution.unpacked(self.weight, self.bias.shape[0], self.doubled).to(x.dtype)
        out = F.conv2d(doubled(x) if self.doubled else x, weight, None, padding=1)
        out = out + bias.view(-1, len(self.bias), 1, 1).to(x.dtype)
        return out if beside is None else out + beside


class FusedNorm(nn.Module):
    """A group normalisation, told as what it does to each channel."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = _own(norm.weight), _own(norm.bias)

    def forward(self, x: Tensor) -> Affine:
        if x.dtype == torch.bfloat16:
            return convolution.normalising(x, self.groups, self.weight, self.bias, self.eps)
        apart = x.float().reshape(len(x), self.groups, -1)
        variance, mean = torch.var_mean(apart, dim=2, correction=0)
        each = len(self.weight) // self.groups
        scale = (variance + self.eps).rsqrt().repeat_interleave(each, 1) * self.weight
        return Affine(scale, self.bias - mean.repeat_interleave(each, 1) * scale)


class FusedExit(FusedConv):
    """A convolution of what was normalised and went through a SiLU."""

    def __init__(self, layer: nn.Conv2d, norm: nn.GroupNorm) -> None:
        super().__init__(layer)
        self.norm = FusedNorm(norm)

    def activated(self, x: Tensor) -> Tensor:
        out: Tensor = self(x, self.norm(x))
        return out


class FusedBlock(nn.Module):
    """A ResBlock of the U-Net, or a VaeBlock, which is told no time."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = FusedNorm(block.norm1), FusedNorm(block.norm2)
        self.conv1, self.conv2 = FusedConv(block.conv1), FusedConv(block.conv2)
        self.time, self.scale_shift = getattr(block, "time", None), getattr(block, "scale_shift", False)
        self.skip = block.skip

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        moved = None if self.time is None else self.time(time)
        h = self.conv1(x, self.norm1(x), None if self.scale_shift else moved)
        norm = self.norm2(h)
        if self.scale_shift:
            assert moved is not None
            factor, shift = moved.float().chunk(2, dim=1)
            norm = Affine(norm.scale * (1 + factor), norm.shift * (1 + factor) + shift)
        out: Tensor = self.conv2(h, norm, beside=self.skip(x))
        return out


def fusable(layer: nn.Module) -> bool:
    """Whether it is a convolution that the kernel has, or a residual block of two such behind group normalisations."""
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and layer.dilation == (1, 1)
        three = layer.kernel_size == (3, 3) and layer.stride == (1, 1) and layer.padding == (1, 1)
        return plain and three and convolution.fits(layer.in_channels) and convolution.usable()
    norms, convs = ([getattr(layer, f"{kind}{place}", None) for place in (1, 2)] for kind in ("norm", "conv"))
    return all(type(one) is nn.GroupNorm for one in norms) and all(
        type(one) is nn.Conv2d and fusable(one) for one in convs
    )


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().float().clone()
