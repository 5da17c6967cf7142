"""Layers that several networks are built from.

Feature maps are (B, C, H, W) in channels-last memory, so that the view (B, H·W, C) that attention needs costs nothing.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ConvOrLinear = TypeVar("ConvOrLinear", bound=nn.Conv2d | nn.Linear)

# Up to this number of keys, explicit matrix products train faster on a CPU than F.scaled_dot_product_attention, whose
# backward pass is slow there.
MAX_EXPLICIT_KEYS = 128
MASKED_SCORE = -1e4  # added to the scores of masked keys; finite in every precision


def sinusoidal_embedding(values: Tensor, width: int) -> Tensor:
    """Embed values (B,), such as times, as (B, width) float32: cosines, then sines, whose periods grow geometrically
    from 2π to 2π · 10,000 (Vaswani et al. 2017, section 3.5; Ho et al. 2020)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=values.device))
    angles = values.float()[:, None] * frequencies  # (B, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def zero_init(layer: ConvOrLinear) -> ConvOrLinear:
    """Set the layer's weight and bias to zero, so that a residual branch that ends in it starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ScaledDotProductAttention(nn.Module):
    """softmax(Q · Kᵀ / √d) · V in several heads of width d (Vaswani et al. 2017, eq. 1). It has no parameters."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query (B, N, C), key and value (B, M, C), mask (B, M) bool with True for keys to attend to -> (B, N, C)."""
        query, key, value = (split_heads(tensor, self.heads) for tensor in (query, key, value))  # (B, heads, ·, d)
        attn_mask = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, M)
        if torch.is_grad_enabled() and query.device.type == "cpu" and key.shape[2] <= MAX_EXPLICIT_KEYS:
            out = explicit_attention(query, key, value, attn_mask)
        else:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return out.transpose(1, 2).flatten(2)  # (B, N, C)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads · d) -> (B, heads, N, d), a view."""
    return x.view(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
    """F.scaled_dot_product_attention of query (B, heads, N, d), key and value (B, heads, M, d) by plain matrix
    products. attn_mask: (B, 1, 1, M) bool, True for keys to attend to."""
    flat_query, flat_key, flat_value = (tensor.flatten(0, 1) for tensor in (query, key, value))  # (B·heads, ·, d)
    bias = query.new_zeros(*query.shape[:2], 1, key.shape[2])
    if attn_mask is not None:
        bias = bias.masked_fill(~attn_mask, MASKED_SCORE)
    scale = query.shape[3] ** -0.5
    scores = torch.baddbmm(bias.flatten(0, 1), flat_query, flat_key.transpose(1, 2), alpha=scale)  # (B·heads, N, M)
    return (scores.softmax(dim=2) @ flat_value).view(query.shape)


class Attention(nn.Module):
    """Attention of image tokens (B, N, width) to a context, such as the text, whose keys and values are projected
    beforehand: once an image, not once a step.

    context_width: channels of the context; None means width.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        context_width = width if context_width is None else context_width
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.sdpa = ScaledDotProductAttention(heads)
        self.to_out = zero_init(nn.Linear(width, width))

    def project_keys_values(self, context: Tensor) -> Tensor:
        """Context (B, M, context_width) -> keys and values (B, M, 2 · width)."""
        return torch.cat([self.to_k(context), self.to_v(context)], dim=2)

    def forward(self, x: Tensor, keys_values: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, N, width), keys_values (B, M, 2 · width), mask (B, M) bool -> (B, N, width)."""
        key, value = keys_values.chunk(2, dim=2)
        out: Tensor = self.to_out(self.sdpa(self.to_q(x), key, value, mask))
        return out


class SelfAttention(Attention):
    """Attention of tokens (B, N, width) to one another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """x (B, N, width), mask (B, N) bool with True for tokens to attend to -> (B, N, width)."""
        return super().forward(x, self.project_keys_values(x), mask)


class GatedFeedForward(nn.Module):
    """The feed-forward layer GEGLU, proj_out(a · gelu(b)), four times as wide inside (Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(width, 8 * width)
        self.proj_out = zero_init(nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x (…, width) -> (…, width)."""
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        out: Tensor = self.proj_out(value * F.gelu(gate))
        return out


class LayerNorm2d(nn.LayerNorm):
    """Layer normalization over the channels of each pixel of (B, C, H, W), which in channels-last memory lie together.
    On a CPU it is five times as fast as group normalization."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def make_norm(channels: int, groups: int, eps: float = 1e-5) -> nn.Module:
    """Group normalization (Wu & He 2018), or with groups = 0 a LayerNorm2d."""
    return nn.GroupNorm(groups, channels, eps) if groups else LayerNorm2d(channels, eps)


class UpsampleConv(nn.Conv2d):
    """Nearest-neighbor upsampling to twice the height and width, then a 3 × 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(upsample_2x(x))


def upsample_2x(x: Tensor) -> Tensor:
    """Nearest-neighbor upsampling of (B, C, H, W) to (B, C, 2·H, 2·W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def to_tokens(x: Tensor) -> Tensor:
    """A feature map (B, C, H, W) as tokens (B, H·W, C): a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_feature_map(tokens: Tensor, size: torch.Size) -> Tensor:
    """Tokens (B, H·W, C) as a feature map (B, C, H, W). size: that of a feature map (…, H, W)."""
    return tokens.view(tokens.shape[0], *size[-2:], tokens.shape[2]).permute(0, 3, 1, 2)
