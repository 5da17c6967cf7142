"""The pieces that every network here is built from. Activations are (B, C, H, W) in channels-last memory, so that the
views (B, H·W, C) taken by attention cost nothing."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning
from unspeckle.kernels.attention import attention

Weighted = TypeVar("Weighted", nn.Conv2d, nn.Linear)
FEW_KEYS = 128  # up to here explicit products train faster on a CPU than the fused kernel, whose backward is slow
MANY_SCORES = 2**14  # of a head: from here our own kernel is asked, so that small models never wait for a compiler


def sinusoids(clock: Tensor, width: int) -> Tensor:
    """Embed the times clock (B,) as (B, width): cosines, then sines, of periods from 2π to 2π·10⁴ (Ho et al. 2020)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=clock.device))
    angles = clock.float()[:, None] * frequencies  # (B, half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Softmax attention: query (B, N, C), key and value (B, M, C), mask (B, M) True = seen; returns (B, N, C)."""
    if not torch.compiler.is_exporting():  # a graph for other programs has neither our kernel nor fixed sizes
        many = query.shape[1] * key.shape[1] >= MANY_SCORES
        if mask is None and many and (made := attention(query, key, value, heads)) is not None:
            return made
    batch, count, width = query.shape
    query, key, value = (a.view(batch, -1, heads, width // heads).transpose(1, 2) for a in (query, key, value))
    seen = None if mask is None else mask[:, None, None, :]
    if torch.is_grad_enabled() and query.device.type == "cpu" and key.shape[2] <= FEW_KEYS:
        flat = [a.flatten(0, 1) for a in (query, key, value)]  # (B·heads, ·, C / heads)
        bias = query.new_zeros(batch, heads, 1, key.shape[2])
        if seen is not None:
            bias = bias.masked_fill(~seen, -1e4)  # finite in every precision
        scale = (width // heads) ** -0.5
        score = torch.baddbmm(bias.flatten(0, 1), flat[0], flat[1].transpose(1, 2), alpha=scale)
        result = (score.softmax(dim=2) @ flat[2]).view(query.shape)
    else:
        result = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    out: Tensor = result.transpose(1, 2).reshape(batch, count, width)
    return out


def padded(given: Conditioning) -> Conditioning:
    """The words with a multiple of 32 places, those added masked: a softmax of whole vectors is 4 times as fast."""
    batch, count, _ = given.tokens.shape
    more = -count % 32
    if not more:
        return given
    mask = given.tokens.new_ones(batch, count, dtype=torch.bool) if given.mask is None else given.mask
    return given._replace(tokens=F.pad(given.tokens, (0, 0, 0, more)), mask=F.pad(mask, (0, more)))


def silenced(layer: Weighted) -> Weighted:
    """The layer with weights and bias at zero: a residual branch that begins as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def added(layer: nn.Module, x: Tensor, beside: Tensor | None) -> Tensor:
    """layer(x) + beside, which some packed layers add before they round."""
    onto: Callable[[Tensor, Tensor], Tensor] | None = getattr(layer, "onto", None)
    if beside is not None and onto is not None:
        return onto(x, beside)
    out: Tensor = layer(x)
    return out if beside is None else beside + out


def activated(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """conv(SiLU(norm(x))), which a packed pair does in one."""
    whole: Callable[[Tensor], Tensor] | None = getattr(conv, "activated", None)
    out: Tensor = conv(F.silu(norm(x))) if whole is None else whole(x)
    return out


class PlaceNorm(nn.LayerNorm):
    """Layer normalisation of (B, C, H, W) at each place over its channels; in channels-last memory a contiguous row."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm(width: int, groups: int, eps: float = 1e-5) -> nn.Module:
    """Group normalisation (Wu & He 2018), or with groups = 0 a PlaceNorm."""
    return nn.GroupNorm(groups, width, eps) if groups else PlaceNorm(width, eps)


class Attention(nn.Module):
    """Attention of pictures (B, N, C) to themselves, or to words whose keys and values were made beforehand."""

    def __init__(self, width: int, heads: int, source_width: int | None = None) -> None:
        super().__init__()
        source = width if source_width is None else source_width
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(source, width, bias=False)
        self.value = nn.Linear(source, width, bias=False)
        self.out = silenced(nn.Linear(width, width))

    def keys_values(self, source: Tensor) -> Tensor:
        """(B, M, source_width) -> (B, M, 2·C)."""
        return torch.cat([self.key(source), self.value(source)], dim=2)

    def forward(
        self, x: Tensor, keys_values: Tensor, mask: Tensor | None = None, beside: Tensor | None = None
    ) -> Tensor:
        """What is seen, plus what is beside, (B, N, C)."""
        key, value = keys_values.chunk(2, dim=2)
        return added(self.out, attend(self.query(x), key, value, self.heads, mask), beside)

    def within(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """The same of x to itself."""
        return self(x, self.keys_values(x), beside=beside)  # type: ignore[no-any-return]


class GatedFeedForward(nn.Module):
    """out(a · gelu(b)), four times as wide inside (Shazeer 2020, GEGLU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, 8 * width)
        self.out = silenced(nn.Linear(4 * width, width))

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        value, gate = self.enter(x).chunk(2, dim=-1)
        return added(self.out, value * F.gelu(gate), beside)


class Growing(nn.Conv2d):
    """Every pixel doubled in height and width, then a 3 × 3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(doubled(x))


def doubled(x: Tensor) -> Tensor:
    """(B, C, H, W) with each pixel four times: (B, C, 2·H, 2·W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
