"""A U-shaped transformer (HDiT): layers that see only their neighborhood where there are many tokens, attention where
there are few.

After Crowson et al. 2024 (HDiT: levels, rotary position embedding), Bao et al. 2023 (U-ViT: text tokens beside the
image's) and Chen et al. 2023 (PixArt-α: one modulation for all layers). Activations are (B, H, W, C), contiguous, so
that every linear layer is one large matrix product. docs/recipe.md tells what was left out because it is slow on a CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import AnyConditioning, Conditioning, PreparedConditioning
from unspeckle.networks.coarse_predictor import CoarseImagePredictor, concat_images
from unspeckle.networks.joint_attention import AttentionContext, JointAttention, rotary_cos_sin
from unspeckle.networks.layers import sinusoidal_embedding, zero_init

# Channels of the sinusoidal embedding of the time.
TIME_FEATURES = 256
# Text tokens are padded to a multiple of this: a softmax over whole vectors is four times as fast on a CPU.
TOKEN_MULTIPLE = 32


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a U-shaped transformer. Tuples have one entry for each level; level 0 has the highest resolution,
    and only the last level has attention."""

    # Channels of x, and of the output.
    channels: int = 3
    # Channels of conditioning.concat, which are concatenated to x.
    concat_channels: int = 0
    # Side of the patches of pixels that are folded into channels at the input and unfolded at the output.
    patch_size: int = 4
    # Channels of each level.
    widths: tuple[int, ...] = (128, 256)
    # Layers of each level on the way down, and again on the way up; those of the last level come only once.
    depths: tuple[int, ...] = (2, 8)
    # Hidden channels of a feed-forward layer, in widths.
    mlp_ratio: int = 2
    # Channels of an attention head: a multiple of 4, as each angle rotates a pair, and rows have as many as columns.
    head_width: int = 64
    # Channels of conditioning.tokens.
    text_width: int = 192
    # Channels of conditioning.vector.
    vector_width: int = 0
    # c_noise is multiplied by this, so that it covers the periods of the sinusoidal embedding.
    time_scale: float = 1000.0
    # Layers of the CoarseImagePredictor, whose prediction is concatenated to x; 0 for none.
    coarse_predictor_layers: int = 0

    @property
    def size_multiple(self) -> int:
        """Height and width of x must be multiples of this."""
        return self.patch_size << (len(self.widths) - 1)


class ConvFeedForward(nn.Module):
    """A depthwise 3 × 3 convolution, which lets each token see its neighbors, then SwiGLU (Shazeer 2020)."""

    def __init__(self, width: int, mlp_ratio: int) -> None:
        super().__init__()
        # A bare parameter, and not an nn.Conv2d: it is no matrix, so the optimizer Muon must not treat it as one.
        self.depthwise_weight = nn.Parameter(torch.zeros(width, 1, 3, 3))
        self.proj_in = nn.Linear(width, 2 * mlp_ratio * width, bias=False)
        self.proj_out = zero_init(nn.Linear(mlp_ratio * width, width, bias=False))
        nn.init.dirac_(self.depthwise_weight, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, width) -> (B, H, W, width)."""
        x = to_bhwc(F.conv2d(to_bchw(x), self.depthwise_weight, padding=1, groups=len(self.depthwise_weight)))
        gate, value = self.proj_in(x).chunk(2, dim=3)
        out: Tensor = self.proj_out(F.silu(gate) * value)
        return out


class HDiTLayer(nn.Module):
    """A transformer layer; without attention at levels with many tokens."""

    def __init__(self, width: int, has_attention: bool, config: TransformerConfig) -> None:
        super().__init__()
        self.joint_attn = JointAttention(width, config.head_width, config.text_width) if has_attention else None
        self.feed_forward = ConvFeedForward(width, config.mlp_ratio)
        # Added to the modulation that all layers of the level share.
        self.modulation_bias = nn.Parameter(torch.zeros(4 * width if has_attention else 2 * width))

    def forward(self, x: Tensor, modulation: Tensor, context: AttentionContext | None) -> Tensor:
        """x (B, H, W, width), modulation (B, 4 · width), or (B, 2 · width) without attention -> (B, H, W, width)."""
        modulation = (modulation + self.modulation_bias)[:, None, None]
        if self.joint_attn is not None and context is not None:
            modulation, attn_modulation = modulation.chunk(2, dim=3)
            x = x + self.joint_attn(modulate(x, attn_modulation), context)
        out: Tensor = x + self.feed_forward(modulate(x, modulation))
        return out


def modulate(x: Tensor, modulation: Tensor) -> Tensor:
    """x (B, H, W, C), normalized over the channels, then scaled and shifted by modulation (B, 1, 1, 2·C): adaptive
    layer normalization (Peebles & Xie 2023)."""
    scale, shift = modulation.chunk(2, dim=3)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[3:]), 1 + scale)


class HDiTLevel(nn.Module):
    """The layers of one level, and the modulation by time and text that they share."""

    def __init__(self, width: int, num_layers: int, has_attention: bool, config: TransformerConfig) -> None:
        super().__init__()
        self.to_modulation = zero_init(nn.Linear(config.widths[-1], 4 * width if has_attention else 2 * width))
        self.layers = nn.ModuleList(HDiTLayer(width, has_attention, config) for _ in range(num_layers))

    def forward(self, x: Tensor, time_embed: Tensor, contexts: Sequence[AttentionContext] | None = None) -> Tensor:
        """x (B, H, W, width), time_embed (B, C), and at the level with attention a context for each layer ->
        (B, H, W, width)."""
        modulation = self.to_modulation(time_embed)
        for i, layer in enumerate(self.layers):
            x = layer(x, modulation, None if contexts is None else contexts[i])
        return x


class Transformer(nn.Module):
    """The U-shaped transformer: forward(x (B, channels, H, W), c_noise (B,), conditioning) -> (B, channels, H, W)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.coarse_predictor_layers and config.concat_channels:
            raise ValueError("a transformer has either coarse_predictor_layers or concat_channels, not both")
        self.config = config
        *outer_widths, inner_width = config.widths
        self.time_embed_1 = nn.Linear(TIME_FEATURES, inner_width)
        self.time_embed_2 = nn.Linear(inner_width, inner_width)
        if config.vector_width:
            self.vector_embed_1 = nn.Linear(config.vector_width, inner_width)
            self.vector_embed_2 = nn.Linear(inner_width, inner_width)
        self.coarse_predictor: CoarseImagePredictor | None = None
        if config.coarse_predictor_layers:
            self.coarse_predictor = CoarseImagePredictor(
                config.channels, config.text_width, config.coarse_predictor_layers
            )
        concat_channels = config.channels if config.coarse_predictor_layers else config.concat_channels
        in_channels = (config.channels + concat_channels) * config.patch_size**2
        self.conv_in = nn.Conv2d(in_channels, config.widths[0], 3, padding=1)
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
        """All layers that attend to the text, in the order of the forward pass."""
        return [layer.joint_attn for layer in self.mid_block.layers]  # type: ignore[misc]

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """Everything that depends on the conditioning but not on the time: the text's keys and values for all attention
        layers, side by side, and the coarse image."""
        coarse_image = None if self.coarse_predictor is None else self.coarse_predictor(conditioning)
        tokens, mask, vector, concat = pad_tokens(conditioning)
        layers = self.text_attention_layers()
        keys_values = torch.cat([layer.project_keys_values(tokens) for layer in layers], dim=2)
        return PreparedConditioning(keys_values, mask, vector, concat, coarse_image)

    def embed_time(self, c_noise: Tensor, conditioning: PreparedConditioning) -> Tensor:
        """c_noise (B,) and conditioning.vector -> the embedding (B, C) that modulates all levels."""
        features = sinusoidal_embedding(c_noise * self.config.time_scale, TIME_FEATURES)
        features = features.to(self.time_embed_1.weight.dtype)
        time_embed: Tensor = self.time_embed_2(F.silu(self.time_embed_1(features)))
        if self.config.vector_width:
            vector, width = conditioning.vector, self.config.vector_width
            if vector is None:
                raise ValueError(f"this network needs a conditioning.vector of {width} values per image")
            time_embed = time_embed + self.vector_embed_2(F.silu(self.vector_embed_1(vector.to(features.dtype))))
        return F.silu(time_embed)

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: AnyConditioning) -> Tensor:
        prepared = self.prepare(conditioning) if isinstance(conditioning, Conditioning) else conditioning
        return self.trunk(
            concat_images(x, prepared), self.embed_time(c_noise, prepared), prepared.keys_values, prepared.mask
        )

    def trunk(self, x: Tensor, time_embed: Tensor, keys_values: Tensor, mask: Tensor | None) -> Tensor:
        """The network without its embeddings; training may compile it.

        x (B, in_channels, H, W), time_embed (B, C), keys_values (B, L, Σ 2·C) of the text for all attention layers,
        mask (B, L) bool -> (B, channels, H, W)."""
        x = F.pixel_unshuffle(x, self.config.patch_size)
        h = to_bhwc(self.conv_in(x.contiguous(memory_format=torch.channels_last)))
        skips = []
        for level, merge in zip(self.down_blocks, self.token_merges, strict=True):
            skips.append(level(h, time_embed))
            h = to_bhwc(merge(to_bchw(skips[-1])))
        h = self.mid_block(h, time_embed, self.attention_contexts(h, keys_values, mask))
        for level, split in zip(self.up_blocks, reversed(self.token_splits), strict=True):
            h = to_bhwc(F.pixel_shuffle(to_bchw(split(F.layer_norm(h, h.shape[3:]))), 2))
            h = level(skips.pop() + h, time_embed)
        h = modulate(h, self.out_modulation(time_embed)[:, None, None])
        return F.pixel_shuffle(self.conv_out(to_bchw(h)), self.config.patch_size)

    def attention_contexts(self, h: Tensor, keys_values: Tensor, mask: Tensor | None) -> list[AttentionContext]:
        """The context of each attention layer for image tokens h (B, H, W, C)."""
        batch_size, height, width, _ = h.shape
        cos, sin = rotary_cos_sin(height, width, self.config.head_width, h)
        if mask is not None:
            mask = torch.cat([mask.new_ones(batch_size, height * width), mask], dim=1)  # (B, N + L)
        layer_keys_values = keys_values.chunk(self.config.depths[-1], dim=2)
        return [AttentionContext(text_keys_values, mask, cos, sin) for text_keys_values in layer_keys_values]


def pad_tokens(conditioning: Conditioning) -> Conditioning:
    """The conditioning with tokens (B, L, D) and mask (B, L) padded so that L is a multiple of TOKEN_MULTIPLE; padding
    is masked."""
    batch_size, num_tokens, _ = conditioning.tokens.shape
    padding = -num_tokens % TOKEN_MULTIPLE
    if not padding:
        return conditioning
    mask = conditioning.mask
    if mask is None:
        mask = conditioning.tokens.new_ones(batch_size, num_tokens, dtype=torch.bool)
    return conditioning._replace(tokens=F.pad(conditioning.tokens, (0, 0, 0, padding)), mask=F.pad(mask, (0, padding)))


def to_bchw(x: Tensor) -> Tensor:
    """(B, H, W, C) as a channels-last (B, C, H, W): a view."""
    return x.permute(0, 3, 1, 2)


def to_bhwc(x: Tensor) -> Tensor:
    """A channels-last (B, C, H, W) as (B, H, W, C): a view."""
    return x.permute(0, 2, 3, 1)
