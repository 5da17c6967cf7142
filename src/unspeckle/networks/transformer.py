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

from unspeckle.denoiser import AnyConditioning, Conditioning, PreparedConditioning
from unspeckle.networks.coarse_predictor import CoarseImagePredictor, concat_coarse_image
from unspeckle.networks.layers import multi_head_attention, pad_tokens, sinusoidal_embedding, zero_init

ROTARY_BASE = 100.0  # the rotations' periods go from 2π to nearly this many times 2π places
TIME_FEATURES = 256  # of the time


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a U-shaped transformer. Level 0 is the finest; only the last level has attention."""

    channels: int = 3  # of x
    concat_channels: int = 0  # channels joined to the input only
    patch_size: int = 4  # pixels folded into channels at the entry, unfolded at the exit
    widths: tuple[int, ...] = (128, 256)
    depths: tuple[int, ...] = (2, 8)  # at each level, on the way down and again on the way up; the last only once
    mlp_ratio: int = 2  # width inside a feed-forward layer, in widths
    head_width: int = 64  # a multiple of 4: a pair of numbers for each angle, as many angles for rows as for columns
    text_width: int = 192  # of given.tokens
    vector_width: int = 0  # of given.vector
    time_scale: float = 1000.0  # makes the clock span the sinusoids' periods
    coarse_predictor_layers: int = (
        0  # layers of the Draft whose mean picture of the words is joined to the input; 0 = there is none
    )

    @property
    def size_multiple(self) -> int:
        """Height and width of x must be multiples of this."""
        return self.patch_size << (len(self.widths) - 1)


def rotary_cos_sin(height: int, width: int, head_width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (high·wide, 1, 1, width) that rotate heads by their places: the first half of the angles
    by rows, the second by columns (Su et al. 2021, over two axes)."""
    num_angles = head_width // 4
    frequencies = ROTARY_BASE ** -(torch.arange(num_angles, device=like.device) / num_angles)  # radians a place
    row_angles, column_angles = (
        torch.arange(size, device=like.device)[:, None] * frequencies for size in (height, width)
    )
    angles = torch.cat(
        [row_angles[:, None].expand(-1, width, -1), column_angles.expand(height, -1, -1)], dim=2
    )  # (H, W, width / 2)
    angles = angles.reshape(height * width, 1, 1, 2 * num_angles)
    cos, sin = angles.cos().to(like.dtype), angles.sin().to(like.dtype)
    return torch.cat([cos, cos], dim=3), torch.cat([-sin, sin], dim=3)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (B, N, …, width) rotated: number i and number i + width/2 are the pair of angle i."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class AttentionContext(NamedTuple):
    """What an attention is given beside the picture."""

    text_keys_values: Tensor  # (B, L, 2·C), their keys and values
    mask: Tensor | None  # (B, N + L): places and words
    cos: Tensor  # of `turns`
    sin: Tensor


class JointAttention(nn.Module):
    """The picture's places look at one another and at the words, in one softmax; queries and keys are of one length
    (Henry et al. 2020; a LayerNorm, which here costs a fifth of an RMSNorm), and rotated by their place."""

    def __init__(self, width: int, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.head_width = width // config.head_width, config.head_width
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)  # to queries, keys, values
        self.text_to_kv = nn.Linear(config.text_width, 2 * width, bias=False)  # to keys, values
        self.to_out = zero_init(nn.Linear(width, width, bias=False))

    def project_keys_values(self, tokens: Tensor) -> Tensor:
        """(B, L, text_width) -> (B, L, 2·C)."""
        key, value = self.text_to_kv(tokens).view(*tokens.shape[:2], 2, self.heads, self.head_width).unbind(2)
        return torch.cat([F.layer_norm(key, (self.head_width,)).flatten(2), value.flatten(2)], dim=2)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        batch_size, height, width, channels = x.shape
        query_key, value = self.to_qkv(x).view(batch_size, height * width, -1).split([2 * channels, channels], dim=2)
        query_key = query_key.unflatten(2, (2, self.heads, self.head_width))
        query, key = (
            apply_rotary(F.layer_norm(query_key, (self.head_width,)), context.cos, context.sin).flatten(3).unbind(2)
        )  # (B, N, C) each
        text_key, text_value = context.text_keys_values.chunk(2, dim=2)
        key, value = torch.cat([key, text_key], dim=1), torch.cat([value, text_value], dim=1)
        out: Tensor = self.to_out(multi_head_attention(query, key, value, self.heads, context.mask))
        return out.view(batch_size, height, width, channels)


class ConvFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020) behind a 3 × 3 look at the neighbours, channel by channel."""

    def __init__(self, width: int, config: TransformerConfig) -> None:
        super().__init__()
        self.depthwise_weight = nn.Parameter(torch.zeros(width, 1, 3, 3))  # no matrix: not for Muon
        self.proj_in = nn.Linear(width, 2 * config.mlp_ratio * width, bias=False)
        self.proj_out = zero_init(nn.Linear(config.mlp_ratio * width, width, bias=False))
        nn.init.dirac_(self.depthwise_weight, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        x = to_bhwc(F.conv2d(to_bchw(x), self.depthwise_weight, padding=1, groups=len(self.depthwise_weight)))
        gate, value = self.proj_in(x).chunk(2, dim=3)
        out: Tensor = self.proj_out(F.silu(gate) * value)
        return out


class HDiTLayer(nn.Module):
    """A transformer layer; without attention where places are many."""

    def __init__(self, width: int, has_attention: bool, config: TransformerConfig) -> None:
        super().__init__()
        self.joint_attn = JointAttention(width, config) if has_attention else None
        self.feed_forward = ConvFeedForward(width, config)
        self.modulation_bias = nn.Parameter(
            torch.zeros(4 * width if has_attention else 2 * width)
        )  # its own part of the modulation

    def forward(self, x: Tensor, modulation: Tensor, context: AttentionContext | None) -> Tensor:
        """told (B, 2·C or 4·C): what the level's layers share of the modulation."""
        modulation = (modulation + self.modulation_bias)[:, None, None]
        if self.joint_attn is not None and context is not None:
            modulation, attn_modulation = modulation.chunk(2, dim=3)
            x = x + self.joint_attn(modulate(x, attn_modulation), context)
        out: Tensor = x + self.feed_forward(modulate(x, modulation))
        return out


def modulate(x: Tensor, modulation: Tensor) -> Tensor:
    """x (B, H, W, C) normalised at each place, then scaled and shifted by told (B, 1, 1, 2·C)."""
    scale, shift = modulation.chunk(2, dim=3)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[3:]), 1 + scale)


class HDiTLevel(nn.Module):
    """Layers of one width, and the modulation by time and text that they share."""

    def __init__(self, width: int, num_layers: int, has_attention: bool, config: TransformerConfig) -> None:
        super().__init__()
        self.to_modulation = zero_init(nn.Linear(config.widths[-1], 4 * width if has_attention else 2 * width))
        self.layers = nn.ModuleList(HDiTLayer(width, has_attention, config) for _ in range(num_layers))

    def forward(self, x: Tensor, time_embed: Tensor, contexts: Sequence[AttentionContext] | None = None) -> Tensor:
        modulation = self.to_modulation(time_embed)
        for i, layer in enumerate(self.layers):
            x = layer(x, modulation, None if contexts is None else contexts[i])
        return x


class Transformer(nn.Module):
    """forward(x (B, channels, H, W), clock (B,), given) -> (B, channels, H, W); given.tokens are (B, L, text_width)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.compiled_trunk: Callable[..., Tensor] | None = None
        *outer_widths, inner_width = config.widths
        self.time_embed_1, self.time_embed_2 = (
            nn.Linear(TIME_FEATURES, inner_width),
            nn.Linear(inner_width, inner_width),
        )
        if config.vector_width:
            self.vector_embed_1, self.vector_embed_2 = (
                nn.Linear(config.vector_width, inner_width),
                nn.Linear(inner_width, inner_width),
            )
        if config.coarse_predictor_layers and config.concat_channels:
            raise ValueError("a draft stands where other channels beside x would; take one of the two")
        self.coarse_predictor = (
            CoarseImagePredictor(config.channels, config.text_width, config.coarse_predictor_layers)
            if config.coarse_predictor_layers
            else None
        )
        concat_channels = config.channels if config.coarse_predictor_layers else config.concat_channels
        self.conv_in = nn.Conv2d(
            (config.channels + concat_channels) * config.patch_size**2, config.widths[0], 3, padding=1
        )
        width_pairs = list(zip(config.widths, config.widths[1:], strict=False))
        outer_levels = list(zip(outer_widths, config.depths, strict=False))
        self.down_blocks = nn.ModuleList(HDiTLevel(width, depth, False, config) for width, depth in outer_levels)
        self.token_merges = nn.ModuleList(
            nn.Conv2d(fine, coarse, 2, stride=2, bias=False) for fine, coarse in width_pairs
        )
        self.mid_block = HDiTLevel(inner_width, config.depths[-1], True, config)
        self.token_splits = nn.ModuleList(nn.Linear(coarse, 4 * fine, bias=False) for fine, coarse in width_pairs)
        self.up_blocks = nn.ModuleList(
            HDiTLevel(width, depth, False, config) for width, depth in reversed(outer_levels)
        )
        self.out_modulation = zero_init(nn.Linear(inner_width, 2 * config.widths[0]))
        self.conv_out = zero_init(nn.Conv2d(config.widths[0], config.channels * config.patch_size**2, 3, padding=1))

    def text_attention_layers(self) -> list[JointAttention]:
        """Every attention, in the order in which forward meets them."""
        return [layer.joint_attn for layer in self.mid_block.layers]  # type: ignore[misc]

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """What does not depend on the time: the keys and values of all attention layers to words, side by side, and the
        coarse image."""
        coarse_image = None if self.coarse_predictor is None else self.coarse_predictor(conditioning)
        conditioning = pad_tokens(conditioning)
        layers = self.text_attention_layers()
        keys_values = torch.cat([layer.project_keys_values(conditioning.tokens) for layer in layers], dim=2)
        return PreparedConditioning(
            keys_values, conditioning.mask, conditioning.vector, conditioning.concat, coarse_image
        )

    def embed_time(self, c_noise: Tensor, conditioning: PreparedConditioning) -> Tensor:
        """What every level is told: the time, and the given vector, as (B, C)."""
        time_features = sinusoidal_embedding(c_noise * self.config.time_scale, TIME_FEATURES).to(
            self.time_embed_1.weight.dtype
        )
        time_embed: Tensor = self.time_embed_2(F.silu(self.time_embed_1(time_features)))
        if self.config.vector_width:
            if conditioning.vector is None:
                raise ValueError(f"this network wants given.vector of {self.config.vector_width} values a picture")
            time_embed = time_embed + self.vector_embed_2(
                F.silu(self.vector_embed_1(conditioning.vector.to(time_features.dtype)))
            )
        return F.silu(time_embed)

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: AnyConditioning) -> Tensor:
        prepared = self.prepare(conditioning) if isinstance(conditioning, Conditioning) else conditioning
        if prepared.coarse_image is not None:
            x = concat_coarse_image(x, prepared.coarse_image)
        elif prepared.concat is not None:
            x = torch.cat([x, prepared.concat.to(x.dtype)], dim=1)
        trunk = self.compiled_trunk or self.trunk
        return trunk(x, self.embed_time(c_noise, prepared), prepared.keys_values, prepared.mask)

    def trunk(self, x: Tensor, time_embed: Tensor, keys_values: Tensor, mask: Tensor | None) -> Tensor:
        """Down, through the middle and up again. time (B, C); keys_values (B, L, Σ 2·C) of all layers of the middle."""
        x = F.pixel_unshuffle(x, self.config.patch_size)
        h = to_bhwc(self.conv_in(x.contiguous(memory_format=torch.channels_last)))
        skips = []
        for level, downsample in zip(self.down_blocks, self.token_merges, strict=True):
            skips.append(level(h, time_embed))
            h = to_bhwc(downsample(to_bchw(skips[-1])))
        h = self.mid_block(h, time_embed, self.attention_contexts(h, keys_values, mask))
        for level, upsample in zip(self.up_blocks, reversed(self.token_splits), strict=True):
            h = to_bhwc(F.pixel_shuffle(to_bchw(upsample(F.layer_norm(h, h.shape[3:]))), 2))
            h = level(skips.pop() + h, time_embed)
        h = modulate(h, self.out_modulation(time_embed)[:, None, None])
        return F.pixel_shuffle(self.conv_out(to_bchw(h)), self.config.patch_size)

    def attention_contexts(self, h: Tensor, keys_values: Tensor, mask: Tensor | None) -> list[AttentionContext]:
        """What the attention of each layer of the middle is given beside h (B, H, W, C)."""
        batch_size, height, width, _ = h.shape
        cos_sin = rotary_cos_sin(height, width, self.config.head_width, h)
        if mask is not None:
            mask = torch.cat([mask.new_ones(batch_size, height * width), mask], dim=1)  # (B, N + L)
        return [
            AttentionContext(text_keys_values, mask, *cos_sin)
            for text_keys_values in keys_values.chunk(self.config.depths[-1], dim=2)
        ]


def to_bchw(x: Tensor) -> Tensor:
    """(B, H, W, C) as a channels-last (B, C, H, W): a view."""
    return x.permute(0, 3, 1, 2)


def to_bhwc(x: Tensor) -> Tensor:
    """A channels-last (B, C, H, W) as (B, H, W, C): a view."""
    return x.permute(0, 2, 3, 1)
