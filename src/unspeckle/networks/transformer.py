"""A U-shaped transformer: layers that look at their neighbours where places are many, attention where they are few.

After Crowson et al. 2024 (HDiT: levels, rotation by place), Bao et al. 2023 (U-ViT: words beside the picture), Chen et
al. 2023 (PixArt-α: one modulation for all layers). Activations are (B, H, W, C), contiguous, so that every linear layer
is one large product. What a CPU is slow at is left out: see docs/recipe.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning
from unspeckle.networks.coarse_predictor import Draft, joined
from unspeckle.networks.layers import attend, padded, silenced, sinusoids

SLOWEST = 100.0  # the rotations' periods go from 2π to nearly this many times 2π places
WAVES = 256  # of the time


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a U-shaped transformer. Level 0 is the finest; only the last level has attention."""

    channels: int = 3  # of x
    beside: int = 0  # channels joined to the input only
    patch: int = 4  # pixels folded into channels at the entry, unfolded at the exit
    widths: tuple[int, ...] = (128, 256)
    layers: tuple[int, ...] = (2, 8)  # at each level, on the way down and again on the way up; the last only once
    stretch: int = 2  # width inside a feed-forward layer, in widths
    head_width: int = 64  # a multiple of 4: a pair of numbers for each angle, as many angles for rows as for columns
    text_width: int = 192  # of given.tokens
    vector_width: int = 0  # of given.vector
    clock_scale: float = 1000.0  # makes the clock span the sinusoids' periods
    draft: int = 0  # layers of the Draft whose mean picture of the words is joined to the input; 0 = there is none

    @property
    def factor(self) -> int:
        """Height and width of x must be multiples of this."""
        return self.patch << (len(self.widths) - 1)


def turns(high: int, wide: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (high·wide, 1, 1, width) that rotate heads by their places: the first half of the angles
    by rows, the second by columns (Su et al. 2021, over two axes)."""
    count = width // 4
    speed = SLOWEST ** -(torch.arange(count, device=like.device) / count)  # radians a place
    rows, columns = (torch.arange(side, device=like.device)[:, None] * speed for side in (high, wide))
    angles = torch.cat([rows[:, None].expand(-1, wide, -1), columns.expand(high, -1, -1)], dim=2)  # (H, W, width / 2)
    angles = angles.reshape(high * wide, 1, 1, 2 * count)
    cos, sin = angles.cos().to(like.dtype), angles.sin().to(like.dtype)
    return torch.cat([cos, cos], dim=3), torch.cat([-sin, sin], dim=3)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (B, N, …, width) rotated: number i and number i + width/2 are the pair of angle i."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class Seen(NamedTuple):
    """What an attention is given beside the picture."""

    words: Tensor  # (B, L, 2·C), their keys and values
    mask: Tensor | None  # (B, N + L): places and words
    cos: Tensor  # of `turns`
    sin: Tensor


class Attention(nn.Module):
    """The picture's places look at one another and at the words, in one softmax; queries and keys are of one length
    (Henry et al. 2020; a LayerNorm, which here costs a fifth of an RMSNorm), and rotated by their place."""

    def __init__(self, width: int, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.head_width = width // config.head_width, config.head_width
        self.enter = nn.Linear(width, 3 * width, bias=False)  # to queries, keys, values
        self.words = nn.Linear(config.text_width, 2 * width, bias=False)  # to keys, values
        self.out = silenced(nn.Linear(width, width, bias=False))

    def keys_values(self, words: Tensor) -> Tensor:
        """(B, L, text_width) -> (B, L, 2·C)."""
        key, value = self.words(words).view(*words.shape[:2], 2, self.heads, self.head_width).unbind(2)
        return torch.cat([F.layer_norm(key, (self.head_width,)).flatten(2), value.flatten(2)], dim=2)

    def forward(self, x: Tensor, seen: Seen) -> Tensor:
        batch, high, wide, width = x.shape
        both, value = self.enter(x).view(batch, high * wide, -1).split([2 * width, width], dim=2)
        both = both.unflatten(2, (2, self.heads, self.head_width))
        query, key = (
            turned(F.layer_norm(both, (self.head_width,)), seen.cos, seen.sin).flatten(3).unbind(2)
        )  # (B, N, C) each
        word_key, word_value = seen.words.chunk(2, dim=2)
        key, value = torch.cat([key, word_key], dim=1), torch.cat([value, word_value], dim=1)
        out: Tensor = self.out(attend(query, key, value, self.heads, seen.mask))
        return out.view(batch, high, wide, width)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020) behind a 3 × 3 look at the neighbours, channel by channel."""

    def __init__(self, width: int, config: TransformerConfig) -> None:
        super().__init__()
        self.near = nn.Parameter(torch.zeros(width, 1, 3, 3))  # no matrix: not for Muon
        self.enter = nn.Linear(width, 2 * config.stretch * width, bias=False)
        self.out = silenced(nn.Linear(config.stretch * width, width, bias=False))
        nn.init.dirac_(self.near, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        x = rows(F.conv2d(maps(x), self.near, padding=1, groups=len(self.near)))
        gate, value = self.enter(x).chunk(2, dim=3)
        out: Tensor = self.out(F.silu(gate) * value)
        return out


class Layer(nn.Module):
    """A transformer layer; without attention where places are many."""

    def __init__(self, width: int, attends: bool, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(width, config) if attends else None
        self.feed = FeedForward(width, config)
        self.moved = nn.Parameter(torch.zeros(4 * width if attends else 2 * width))  # its own part of the modulation

    def forward(self, x: Tensor, told: Tensor, seen: Seen | None) -> Tensor:
        """told (B, 2·C or 4·C): what the level's layers share of the modulation."""
        told = (told + self.moved)[:, None, None]
        if self.attention is not None and seen is not None:
            told, own = told.chunk(2, dim=3)
            x = x + self.attention(modulated(x, own), seen)
        out: Tensor = x + self.feed(modulated(x, told))
        return out


def modulated(x: Tensor, told: Tensor) -> Tensor:
    """x (B, H, W, C) normalised at each place, then scaled and shifted by told (B, 1, 1, 2·C)."""
    scale, shift = told.chunk(2, dim=3)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[3:]), 1 + scale)


class Level(nn.Module):
    """Layers of one width, and the modulation by time and text that they share."""

    def __init__(self, width: int, count: int, attends: bool, config: TransformerConfig) -> None:
        super().__init__()
        self.tell = silenced(nn.Linear(config.widths[-1], 4 * width if attends else 2 * width))
        self.layers = nn.ModuleList(Layer(width, attends, config) for _ in range(count))

    def forward(self, x: Tensor, time: Tensor, seen: Sequence[Seen] | None = None) -> Tensor:
        told = self.tell(time)
        for i, layer in enumerate(self.layers):
            x = layer(x, told, None if seen is None else seen[i])
        return x


class Transformer(nn.Module):
    """forward(x (B, channels, H, W), clock (B,), given) -> (B, channels, H, W); given.tokens are (B, L, text_width)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.compiled_trunk: Callable[..., Tensor] | None = None
        *outer, inner = config.widths
        self.time1, self.time2 = nn.Linear(WAVES, inner), nn.Linear(inner, inner)
        if config.vector_width:
            self.vector1, self.vector2 = nn.Linear(config.vector_width, inner), nn.Linear(inner, inner)
        if config.draft and config.beside:
            raise ValueError("a draft stands where other channels beside x would; take one of the two")
        self.draft = Draft(config.channels, config.text_width, config.draft) if config.draft else None
        beside = config.channels if config.draft else config.beside
        self.enter = nn.Conv2d((config.channels + beside) * config.patch**2, config.widths[0], 3, padding=1)
        steps = list(zip(config.widths, config.widths[1:], strict=False))
        levels = list(zip(outer, config.layers, strict=False))
        self.down = nn.ModuleList(Level(width, count, False, config) for width, count in levels)
        self.merge = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2, bias=False) for fine, coarse in steps)
        self.middle = Level(inner, config.layers[-1], True, config)
        self.split = nn.ModuleList(nn.Linear(coarse, 4 * fine, bias=False) for fine, coarse in steps)
        self.up = nn.ModuleList(Level(width, count, False, config) for width, count in reversed(levels))
        self.tell = silenced(nn.Linear(inner, 2 * config.widths[0]))
        self.leave = silenced(nn.Conv2d(config.widths[0], config.channels * config.patch**2, 3, padding=1))

    def readers(self) -> list[Attention]:
        """Every attention, in the order in which forward meets them."""
        return [layer.attention for layer in self.middle.layers]  # type: ignore[misc]

    def prepare(self, given: Conditioning) -> Conditioning:
        """What does not depend on the time: the keys and values of all layers, joined in tokens (B, L, Σ 2·C), and the
        draft, in beside."""
        beside = given.concat if self.draft is None else self.draft(given)
        given = padded(given)
        keys_values = [reader.keys_values(given.tokens) for reader in self.readers()]
        return given._replace(tokens=torch.cat(keys_values, dim=2), beside=beside, prepared=True)

    def embed(self, clock: Tensor, given: Conditioning) -> Tensor:
        """What every level is told: the time, and the given vector, as (B, C)."""
        wave = sinusoids(clock * self.config.clock_scale, WAVES).to(self.time1.weight.dtype)
        time: Tensor = self.time2(F.silu(self.time1(wave)))
        if self.config.vector_width:
            if given.vector is None:
                raise ValueError(f"this network wants given.vector of {self.config.vector_width} values a picture")
            time = time + self.vector2(F.silu(self.vector1(given.vector.to(wave.dtype))))
        return F.silu(time)

    def forward(self, x: Tensor, clock: Tensor, given: Conditioning) -> Tensor:
        if not given.prepared:
            given = self.prepare(given)
        if given.concat is not None:
            x = joined(x, given.concat) if self.draft else torch.cat([x, given.concat.to(x.dtype)], dim=1)
        trunk = self.compiled_trunk or self.trunk
        return trunk(x, self.embed(clock, given), given.tokens, given.mask)

    def trunk(self, x: Tensor, time: Tensor, keys_values: Tensor, mask: Tensor | None) -> Tensor:
        """Down, through the middle and up again. time (B, C); keys_values (B, L, Σ 2·C) of all layers of the middle."""
        x = F.pixel_unshuffle(x, self.config.patch)
        h = rows(self.enter(x.contiguous(memory_format=torch.channels_last)))
        kept = []
        for level, merge in zip(self.down, self.merge, strict=True):
            kept.append(level(h, time))
            h = rows(merge(maps(kept[-1])))
        h = self.middle(h, time, self.seen(h, keys_values, mask))
        for level, split in zip(self.up, reversed(self.split), strict=True):
            h = rows(F.pixel_shuffle(maps(split(F.layer_norm(h, h.shape[3:]))), 2))
            h = level(kept.pop() + h, time)
        h = modulated(h, self.tell(time)[:, None, None])
        return F.pixel_shuffle(self.leave(maps(h)), self.config.patch)

    def seen(self, h: Tensor, keys_values: Tensor, mask: Tensor | None) -> list[Seen]:
        """What the attention of each layer of the middle is given beside h (B, H, W, C)."""
        batch, high, wide, _ = h.shape
        turn = turns(high, wide, self.config.head_width, h)
        if mask is not None:
            mask = torch.cat([mask.new_ones(batch, high * wide), mask], dim=1)  # (B, N + L)
        return [Seen(words, mask, *turn) for words in keys_values.chunk(self.config.layers[-1], dim=2)]


def maps(x: Tensor) -> Tensor:
    """(B, H, W, C) as a channels-last (B, C, H, W): a view."""
    return x.permute(0, 3, 1, 2)


def rows(x: Tensor) -> Tensor:
    """A channels-last (B, C, H, W) as (B, H, W, C): a view."""
    return x.permute(0, 2, 3, 1)
