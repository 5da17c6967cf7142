"""The pieces that every network here is built from. Activations are (B, C, H, W) in channels-last memory, so that the
views (B, H·W, C) taken by attention cost nothing."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning
from unspeckle.kernels.attention import attention_kernel

ConvOrLinear = TypeVar("ConvOrLinear", nn.Conv2d, nn.Linear)
MAX_EXPLICIT_KEYS = (
    128  # up to here explicit products train faster on a CPU than the fused kernel, whose backward is slow
)
MIN_KERNEL_SCORES = (
    2**14
)  # of a head: from here our own kernel is asked, so that small models never wait for a compiler


def sinusoidal_embedding(values: Tensor, width: int) -> Tensor:
    """Embed the times clock (B,) as (B, width): cosines, then sines, of periods from 2π to 2π·10⁴ (Ho et al. 2020)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=values.device))
    angles = values.float()[:, None] * frequencies  # (B, half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def multi_head_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Softmax attention: query (B, N, C), key and value (B, M, C), mask (B, M) True = seen; returns (B, N, C)."""
    if not torch.compiler.is_exporting():  # a graph for other programs has neither our kernel nor fixed sizes
        is_large = query.shape[1] * key.shape[1] >= MIN_KERNEL_SCORES
        if mask is None and is_large and (kernel_out := attention_kernel(query, key, value, heads)) is not None:
            return kernel_out
    batch_size, num_queries, width = query.shape
    query, key, value = (
        tensor.view(batch_size, -1, heads, width // heads).transpose(1, 2) for tensor in (query, key, value)
    )
    attn_mask = None if mask is None else mask[:, None, None, :]
    if torch.is_grad_enabled() and query.device.type == "cpu" and key.shape[2] <= MAX_EXPLICIT_KEYS:
        flat_heads = [tensor.flatten(0, 1) for tensor in (query, key, value)]  # (B·heads, ·, C / heads)
        bias = query.new_zeros(batch_size, heads, 1, key.shape[2])
        if attn_mask is not None:
            bias = bias.masked_fill(~attn_mask, -1e4)  # finite in every precision
        scale = (width // heads) ** -0.5
        scores = torch.baddbmm(bias.flatten(0, 1), flat_heads[0], flat_heads[1].transpose(1, 2), alpha=scale)
        result = (scores.softmax(dim=2) @ flat_heads[2]).view(query.shape)
    else:
        result = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
    out: Tensor = result.transpose(1, 2).reshape(batch_size, num_queries, width)
    return out


def pad_tokens(conditioning: Conditioning) -> Conditioning:
    """The words with a multiple of 32 places, those added masked: a softmax of whole vectors is 4 times as fast."""
    batch_size, num_tokens, _ = conditioning.tokens.shape
    padding = -num_tokens % 32
    if not padding:
        return conditioning
    mask = (
        conditioning.tokens.new_ones(batch_size, num_tokens, dtype=torch.bool)
        if conditioning.mask is None
        else conditioning.mask
    )
    return conditioning._replace(tokens=F.pad(conditioning.tokens, (0, 0, 0, padding)), mask=F.pad(mask, (0, padding)))


def zero_init(layer: ConvOrLinear) -> ConvOrLinear:
    """The layer with weights and bias at zero: a residual branch that begins as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def apply_with_residual(layer: nn.Module, x: Tensor, residual: Tensor | None) -> Tensor:
    """layer(x) + beside, which some packed layers add before they round."""
    with_residual: Callable[[Tensor, Tensor], Tensor] | None = getattr(layer, "with_residual", None)
    if residual is not None and with_residual is not None:
        return with_residual(x, residual)
    out: Tensor = layer(x)
    return out if residual is None else residual + out


def norm_silu_conv(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """conv(SiLU(norm(x))), which a packed pair does in one."""
    fused: Callable[[Tensor], Tensor] | None = getattr(conv, "norm_silu_conv", None)
    out: Tensor = conv(F.silu(norm(x))) if fused is None else fused(x)
    return out


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation of (B, C, H, W) at each place over its channels; in channels-last memory a contiguous row."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def make_norm(width: int, groups: int, eps: float = 1e-5) -> nn.Module:
    """Group normalisation (Wu & He 2018), or with groups = 0 a PlaceNorm."""
    return nn.GroupNorm(groups, width, eps) if groups else LayerNorm2d(width, eps)


class Attention(nn.Module):
    """Attention of pictures (B, N, C) to themselves, or to words whose keys and values were made beforehand."""

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        kv_width = width if context_width is None else context_width
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(kv_width, width, bias=False)
        self.to_v = nn.Linear(kv_width, width, bias=False)
        self.to_out = zero_init(nn.Linear(width, width))

    def project_keys_values(self, context: Tensor) -> Tensor:
        """(B, M, source_width) -> (B, M, 2·C)."""
        return torch.cat([self.to_k(context), self.to_v(context)], dim=2)

    def forward(
        self, x: Tensor, keys_values: Tensor, mask: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """What is seen, plus what is beside, (B, N, C)."""
        key, value = keys_values.chunk(2, dim=2)
        return apply_with_residual(
            self.to_out, multi_head_attention(self.to_q(x), key, value, self.heads, mask), residual
        )

    def forward_self(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The same of x to itself."""
        return self(x, self.project_keys_values(x), residual=residual)  # type: ignore[no-any-return]


class GatedFeedForward(nn.Module):
    """out(a · gelu(b)), four times as wide inside (Shazeer 2020, GEGLU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(width, 8 * width)
        self.proj_out = zero_init(nn.Linear(4 * width, width))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return apply_with_residual(self.proj_out, value * F.gelu(gate), residual)


class UpsampleConv(nn.Conv2d):
    """Every pixel doubled in height and width, then a 3 × 3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(upsample_2x(x))


def upsample_2x(x: Tensor) -> Tensor:
    """(B, C, H, W) with each pixel four times: (B, C, 2·H, 2·W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
