"""Residual blocks and 3 × 3 convolutions for inference in bfloat16, by the kernel of convolution.py.

The kernel normalizes and applies SiLU in float32 as it reads a convolution's input, and adds bias, time embedding and
residual in float32 as it writes the output. The layers compute what the plain ones compute. The convolution itself is
rounded once more than theirs, which doubles its error, but what surrounds it is rounded less often, so that a residual
block is closer to the exact result than a plain one.

For input of another dtype (after `.float()`, when bfloat16 overflowed) they compute in that dtype.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.kernels import convolution
from unspeckle.kernels.convolution import ChannelAffine
from unspeckle.networks.layers import UpsampleConv, upsample_2x
from unspeckle.networks.unet_blocks import ResBlock
from unspeckle.networks.vae import VAEResBlock


class FusedConv(nn.Module):
    """A 3 × 3 convolution with padding 1, or an UpsampleConv."""

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
        """conv(SiLU(norm(x))) + channel_bias + residual, or conv(x) without a norm. channel_bias: (B, O); residual: of
        the output's shape (B, O, H, W)."""
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
    """A group normalization, as the scale and the shift of each channel."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = _float32_copy(norm.weight), _float32_copy(norm.bias)

    def forward(self, x: Tensor) -> ChannelAffine:
        """x (B, C, H, W) -> scale and shift (B, C) float32."""
        if x.dtype == torch.bfloat16:
            return convolution.group_norm_affine(x, self.groups, self.weight, self.bias, self.eps)
        grouped = x.float().reshape(len(x), self.groups, -1)
        variance, mean = torch.var_mean(grouped, dim=2, correction=0)
        channels_per_group = len(self.weight) // self.groups
        scale = (variance + self.eps).rsqrt().repeat_interleave(channels_per_group, 1) * self.weight
        return ChannelAffine(scale, self.bias - mean.repeat_interleave(channels_per_group, 1) * scale)


class FusedNormSiluConv(nn.Module):
    """Group normalization, SiLU and a 3 × 3 convolution, as at the end of a U-Net."""

    def __init__(self, norm: nn.GroupNorm, conv: nn.Conv2d) -> None:
        super().__init__()
        self.norm, self.conv = FusedNorm(norm), FusedConv(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H, W)."""
        out: Tensor = self.conv(x, self.norm(x))
        return out


class FusedResBlock(nn.Module):
    """A ResBlock of the U-Net, or a VAEResBlock, which has no time embedding."""

    def __init__(self, block: ResBlock | VAEResBlock) -> None:
        super().__init__()
        assert isinstance(block.norm1, nn.GroupNorm) and isinstance(block.norm2, nn.GroupNorm)
        self.norm1, self.norm2 = FusedNorm(block.norm1), FusedNorm(block.norm2)
        self.conv1, self.conv2 = FusedConv(block.conv1), FusedConv(block.conv2)
        self.time_emb_proj = block.time_emb_proj if isinstance(block, ResBlock) else None
        self.scale_shift = isinstance(block, ResBlock) and block.scale_shift
        self.shortcut = block.shortcut

    def forward(self, x: Tensor, time_embed: Tensor | None = None) -> Tensor:
        """x (B, in_channels, H, W), time_embed (B, time_width) -> (B, out_channels, H, W)."""
        modulation = None if self.time_emb_proj is None else self.time_emb_proj(time_embed)
        h = self.conv1(x, self.norm1(x), None if self.scale_shift else modulation)
        norm = self.norm2(h)
        if self.scale_shift:
            assert modulation is not None
            scale, shift = modulation.float().chunk(2, dim=1)
            norm = ChannelAffine(norm.scale * (1 + scale), norm.shift * (1 + scale) + shift)
        out: Tensor = self.conv2(h, norm, residual=self.shortcut(x))
        return out


def is_fusable_conv(layer: nn.Module) -> bool:
    """Whether the layer is a convolution that the kernel can compute."""
    if not isinstance(layer, nn.Conv2d):
        return False
    is_plain = layer.groups == 1 and layer.padding_mode == "zeros" and layer.dilation == (1, 1)
    is_3x3 = layer.kernel_size == (3, 3) and layer.stride == (1, 1) and layer.padding == (1, 1)
    return is_plain and is_3x3 and convolution.is_conv_supported(layer.in_channels) and convolution.has_conv_kernel()


def is_fusable_block(block: nn.Module) -> bool:
    """Whether the block is a residual block with group normalizations and two convolutions that the kernel can
    compute."""
    if not isinstance(block, ResBlock | VAEResBlock):
        return False
    norms, convs = (block.norm1, block.norm2), (block.conv1, block.conv2)
    has_group_norms = all(type(norm) is nn.GroupNorm for norm in norms)
    return has_group_norms and all(type(conv) is nn.Conv2d and is_fusable_conv(conv) for conv in convs)


def _float32_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().float().clone()
