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
from unspeckle.kernels.convolution import ChannelAffine
from unspeckle.networks.layers import UpsampleConv, upsample_2x


class FusedConv(nn.Module):
    """A 3 × 3 convolution with a margin of 1, or a Growing."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.upsample = isinstance(layer, UpsampleConv)
        self.weight = convolution.pack_conv_weight(layer.weight.detach(), self.upsample)
        self.bias = _float32_copy(layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias)

    def forward(
        self,
        x: Tensor,
        norm: ChannelAffine | None = None,
        channel_bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Of SiLU(norm(x)), if that is given; more (B, O) is added at every place, beside (B, O, H, W) at each."""
        bias = self.bias if channel_bias is None else self.bias + channel_bias.float()
        if x.dtype == self.weight.dtype:
            return convolution.winograd_conv2d(
                x, self.weight, bias, norm=norm, residual=residual, upsample=self.upsample
            )
        if norm is not None:
            x = F.silu(x * norm.scale[:, :, None, None].to(x.dtype) + norm.shift[:, :, None, None].to(x.dtype))
        weight = convolution.unpack_conv_weight(self.weight, self.bias.shape[0], self.upsample).to(x.dtype)
        out = F.conv2d(upsample_2x(x) if self.upsample else x, weight, None, padding=1)
        out = out + bias.view(-1, len(self.bias), 1, 1).to(x.dtype)
        return out if residual is None else out + residual


class FusedNorm(nn.Module):
    """A group normalisation, told as what it does to each channel."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = _float32_copy(norm.weight), _float32_copy(norm.bias)

    def forward(self, x: Tensor) -> ChannelAffine:
        if x.dtype == torch.bfloat16:
            return convolution.group_norm_affine(x, self.groups, self.weight, self.bias, self.eps)
        grouped = x.float().reshape(len(x), self.groups, -1)
        variance, mean = torch.var_mean(grouped, dim=2, correction=0)
        channels_per_group = len(self.weight) // self.groups
        scale = (variance + self.eps).rsqrt().repeat_interleave(channels_per_group, 1) * self.weight
        return ChannelAffine(scale, self.bias - mean.repeat_interleave(channels_per_group, 1) * scale)


class FusedNormConv(FusedConv):
    """A convolution of what was normalised and went through a SiLU."""

    def __init__(self, layer: nn.Conv2d, norm: nn.GroupNorm) -> None:
        super().__init__(layer)
        self.norm = FusedNorm(norm)

    def norm_silu_conv(self, x: Tensor) -> Tensor:
        out: Tensor = self(x, self.norm(x))
        return out


class FusedResBlock(nn.Module):
    """A ResBlock of the U-Net, or a VaeBlock, which is told no time."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = FusedNorm(block.norm1), FusedNorm(block.norm2)
        self.conv1, self.conv2 = FusedConv(block.conv1), FusedConv(block.conv2)
        self.time_emb_proj, self.scale_shift = (
            getattr(block, "time_emb_proj", None),
            getattr(block, "scale_shift", False),
        )
        self.shortcut = block.shortcut

    def forward(self, x: Tensor, time_embed: Tensor | None = None) -> Tensor:
        modulation = None if self.time_emb_proj is None else self.time_emb_proj(time_embed)
        h = self.conv1(x, self.norm1(x), None if self.scale_shift else modulation)
        norm = self.norm2(h)
        if self.scale_shift:
            assert modulation is not None
            scale, shift = modulation.float().chunk(2, dim=1)
            norm = ChannelAffine(norm.scale * (1 + scale), norm.shift * (1 + scale) + shift)
        out: Tensor = self.conv2(h, norm, residual=self.shortcut(x))
        return out


def is_fusable(layer: nn.Module) -> bool:
    """Whether it is a convolution that the kernel has, or a residual block of two such behind group normalisations."""
    if isinstance(layer, nn.Conv2d):
        is_plain = layer.groups == 1 and layer.padding_mode == "zeros" and layer.dilation == (1, 1)
        is_3x3 = layer.kernel_size == (3, 3) and layer.stride == (1, 1) and layer.padding == (1, 1)
        return (
            is_plain and is_3x3 and convolution.is_conv_supported(layer.in_channels) and convolution.has_conv_kernel()
        )
    norms, convs = ([getattr(layer, f"{kind}{index}", None) for index in (1, 2)] for kind in ("norm", "conv"))
    return all(type(norm) is nn.GroupNorm for norm in norms) and all(
        type(conv) is nn.Conv2d and is_fusable(conv) for conv in convs
    )


def _float32_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().float().clone()
