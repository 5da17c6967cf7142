"""The U-Net: one code for the small convolutional networks trained here and for Stable Diffusion's three."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import AnyConditioning, Conditioning, PreparedConditioning
from unspeckle.networks.coarse_predictor import CoarseImagePredictor, concat_coarse_image
from unspeckle.networks.layers import (
    Attention,
    GatedFeedForward,
    UpsampleConv,
    apply_with_residual,
    make_norm,
    norm_silu_conv,
    sinusoidal_embedding,
    zero_init,
)


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net. Level 0 is the finest; depths, sees_itself and the heads speak of the transformers at a level.

    A convolutional level has depth 1 and no feed-forward: its transformer is then only the attention to words.
    """

    channels: int = 3  # of x
    concat_channels: int = 0  # channels joined to the input only
    patch_size: int = 1  # pixels folded into channels at the entry, unfolded at the exit
    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2)
    blocks_per_level: int = 2  # residual blocks at each level on the way down; one more on the way up
    transformer_depths: tuple[int, ...] = (1, 1)  # transformer layers after each residual block
    mid_transformer_depth: int = 1
    self_attention: tuple[bool, ...] = (False, True)  # self-attention
    feed_forward: bool = False
    transformer_projection: str = "none"  # around a transformer: none, conv (SD 1.x), linear (SD 2.x, XL)
    head_width: int = 32
    heads: int = 0  # fixed number of heads at every level (SD 1.x) in place of head_width
    text_width: int = 192  # of given.tokens
    vector_width: int = 0  # of given.vector
    guidance_width: int = 0  # of what follows in given.vector: the guidance scale's waves (LCM; Luo et al. 2023)
    scale_shift: bool = True  # time scales and shifts the second norm (Dhariwal & Nichol 2021); SD only adds
    time_scale: float = 1000.0  # makes the clock span the sinusoids' periods
    coarse_predictor_layers: int = (
        0  # layers of the Draft whose mean picture of the words is joined to the input; 0 = there is none
    )
    norm_groups: int = (
        32  # of the normalisations; 0 normalises each place over its channels, five times as fast on a CPU
    )

    @property
    def size_multiple(self) -> int:
        """Height and width of x must be multiples of this."""
        return self.patch_size << (len(self.channel_multipliers) - 1)


class ResBlock(nn.Module):
    """Two convolutions around the time's embedding (He et al. 2016; Ho et al. 2020)."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.scale_shift = config.scale_shift
        self.norm1 = make_norm(in_channels, config.norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(
            4 * config.base_channels, 2 * out_channels if config.scale_shift else out_channels
        )
        self.norm2 = make_norm(out_channels, config.norm_groups)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, time_embed: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        modulation = self.time_emb_proj(time_embed)[:, :, None, None]
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + modulation)
        out: Tensor = self.shortcut(x) + self.conv2(F.silu(h))
        return out


class TransformerLayer(nn.Module):
    """One transformer layer: pictures see themselves (if wide enough a view is affordable), then the words."""

    def __init__(self, width: int, heads: int, has_self_attn: bool, config: UNetConfig) -> None:
        super().__init__()
        if has_self_attn:
            self.norm1 = nn.LayerNorm(width)
            self.self_attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attn = Attention(width, heads, config.text_width)
        if config.feed_forward:
            self.norm3 = nn.LayerNorm(width)
            self.feed_forward = GatedFeedForward(width)
        self.has_self_attn, self.has_feed_forward = has_self_attn, config.feed_forward

    def forward(self, x: Tensor, keys_values: Tensor, mask: Tensor | None) -> Tensor:
        if self.has_self_attn:
            x = self.self_attn.forward_self(self.norm1(x), residual=x)
        x = self.cross_attn(self.norm2(x), keys_values, mask, residual=x)
        return self.feed_forward(self.norm3(x), residual=x) if self.has_feed_forward else x


class SpatialTransformer(nn.Module):
    """Transformer layers over the places of a feature map (Rombach et al. 2022)."""

    def __init__(self, width: int, depth: int, has_self_attn: bool, config: UNetConfig) -> None:
        super().__init__()
        heads = config.heads or width // config.head_width
        self.has_conv_projection = config.transformer_projection == "conv"
        self.has_projection = config.transformer_projection != "none"
        if self.has_projection:
            self.norm = make_norm(width, config.norm_groups, eps=1e-6)
            self.proj_in = nn.Conv2d(width, width, 1) if self.has_conv_projection else nn.Linear(width, width)
            self.proj_out = (
                zero_init(nn.Conv2d(width, width, 1))
                if self.has_conv_projection
                else zero_init(nn.Linear(width, width))
            )
        self.layers = nn.ModuleList(TransformerLayer(width, heads, has_self_attn, config) for _ in range(depth))

    def forward(self, x: Tensor, layer_keys_values: list[Tensor], mask: Tensor | None) -> Tensor:
        _, _, height, width = x.shape
        h = self.norm(x) if self.has_projection else x
        h = self.proj_in(h) if self.has_conv_projection else h
        h = h.permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, C)
        h = self.proj_in(h) if self.has_projection and not self.has_conv_projection else h
        for layer, keys_values in zip(self.layers, layer_keys_values, strict=True):
            h = layer(h, keys_values, mask)
        if self.has_projection and not self.has_conv_projection:
            h = apply_with_residual(self.proj_out, h, x.permute(0, 2, 3, 1).flatten(1, 2))
        h = h.view(h.shape[0], height, width, -1).permute(0, 3, 1, 2)  # (B, C, H, W)
        return apply_with_residual(self.proj_out, h, x) if self.has_conv_projection else h


class UNetBlock(nn.Module):
    """A residual block and the transformer behind it."""

    def __init__(
        self, in_channels: int, out_channels: int, depth: int, has_self_attn: bool, config: UNetConfig
    ) -> None:
        super().__init__()
        self.res_block, self.depth = ResBlock(in_channels, out_channels, config), depth
        self.transformer = SpatialTransformer(out_channels, depth, has_self_attn, config) if depth else None

    def forward(self, x: Tensor, time_embed: Tensor, layer_keys_values: list[Tensor], mask: Tensor | None) -> Tensor:
        x = self.res_block(x, time_embed)
        if self.transformer is not None:
            x = self.transformer(x, layer_keys_values, mask)
        return x


class UNet(nn.Module):
    """Ronneberger et al. 2015, as Ho et al. 2020 and Rombach et al. 2022 use it.

    forward(x (B, channels, H, W), clock (B,), given) -> (B, channels, H, W); given.tokens are (B, L, text_width).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        # All but the time's embedding, whose two last biases have one gradient: inductor (torch 2.13) then writes a
        # bfloat16 reduction into C++ twice under one name, so that the whole does not compile.
        self.compiled_trunk: Callable[..., Tensor] | None = None
        widths = [config.base_channels * m for m in config.channel_multipliers]
        last_level = len(widths) - 1
        self.time_embed_1 = nn.Linear(config.base_channels, 4 * config.base_channels)
        self.time_embed_2 = nn.Linear(4 * config.base_channels, 4 * config.base_channels)
        if config.vector_width:
            self.vector_embed_1 = nn.Linear(config.vector_width, 4 * config.base_channels)
            self.vector_embed_2 = nn.Linear(4 * config.base_channels, 4 * config.base_channels)
        if config.guidance_width:
            self.guidance_embed = nn.Linear(config.guidance_width, config.base_channels, bias=False)
        if config.coarse_predictor_layers and config.concat_channels:
            raise ValueError("a draft stands where other channels beside x would; take one of the two")
        self.coarse_predictor = (
            CoarseImagePredictor(config.channels, config.text_width, config.coarse_predictor_layers)
            if config.coarse_predictor_layers
            else None
        )
        concat_channels = config.concat_channels + (config.channels if config.coarse_predictor_layers else 0)
        self.conv_in = nn.Conv2d((config.channels + concat_channels) * config.patch_size**2, widths[0], 3, padding=1)
        channels, skip_channels = widths[0], [widths[0]]
        self.down_blocks, self.downsamplers = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            for _ in range(config.blocks_per_level):
                self.down_blocks.append(
                    UNetBlock(channels, width, config.transformer_depths[level], config.self_attention[level], config)
                )
                channels = width
                skip_channels.append(channels)
            if level < last_level:
                self.downsamplers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skip_channels.append(channels)
        self.mid_block_1 = UNetBlock(
            channels, channels, config.mid_transformer_depth, config.self_attention[-1], config
        )
        self.mid_block_2 = ResBlock(channels, channels, config)
        self.up_blocks, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks_per_level + 1):
                in_channels = channels + skip_channels.pop()
                self.up_blocks.append(
                    UNetBlock(
                        in_channels, width, config.transformer_depths[level], config.self_attention[level], config
                    )
                )
                channels = width
            if level:
                self.upsamplers.append(UpsampleConv(channels))
        self.norm_out = make_norm(channels, config.norm_groups)
        self.conv_out = zero_init(nn.Conv2d(channels, config.channels * config.patch_size**2, 3, padding=1))

    def text_attention_layers(self) -> list[Attention]:
        """Every attention to words, in the order in which forward meets them."""
        blocks = [*self.down_blocks, self.mid_block_1, *self.up_blocks]
        return [
            layer.cross_attn for block in blocks if block.transformer is not None for layer in block.transformer.layers
        ]

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """What does not depend on the time: the keys and values of all attention layers to words, side by side, and the
        coarse image."""
        # The order of these two calls is the order in which the gradients of the tokens are summed: changing it changes
        # the last bits of what is trained.
        keys_values = [layer.project_keys_values(conditioning.tokens) for layer in self.text_attention_layers()]
        coarse_image = None if self.coarse_predictor is None else self.coarse_predictor(conditioning)
        return PreparedConditioning(
            torch.cat(keys_values, dim=2), conditioning.mask, conditioning.vector, conditioning.concat, coarse_image
        )

    def embed_time(self, c_noise: Tensor, conditioning: PreparedConditioning) -> Tensor:
        """What every residual block is told: the time, and the given vector, as (B, 4·width)."""
        config = self.config
        time_features = sinusoidal_embedding(c_noise * config.time_scale, config.base_channels).to(
            self.time_embed_1.weight.dtype
        )
        vector, widths = conditioning.vector, [config.vector_width, config.guidance_width]
        if any(widths) and vector is None:
            raise ValueError(f"this network wants given.vector of {sum(widths)} values a picture")
        if config.guidance_width:
            vector, guidance_features = vector.split(widths, dim=1)  # type: ignore[union-attr]
            time_features = time_features + self.guidance_embed(guidance_features.to(time_features.dtype))
        time_embed: Tensor = self.time_embed_2(F.silu(self.time_embed_1(time_features)))
        if config.vector_width:
            time_embed = time_embed + self.vector_embed_2(F.silu(self.vector_embed_1(vector.to(time_features.dtype))))  # type: ignore[union-attr]
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
        """Down, through the middle and up again. time (B, 4·width); keys_values (B, L, Σ 2·C) of all readers."""
        config = self.config
        layer_keys_values = iter(
            torch.split(
                keys_values, [2 * attention.to_q.out_features for attention in self.text_attention_layers()], dim=2
            )
        )
        x = F.pixel_unshuffle(x, config.patch_size) if config.patch_size > 1 else x
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = [h]

        def run_block(block: nn.Module, h: Tensor) -> Tensor:
            assert isinstance(block, UNetBlock)
            return block(h, time_embed, [next(layer_keys_values) for _ in range(block.depth)], mask)  # type: ignore[no-any-return]

        for i, block in enumerate(self.down_blocks, 1):
            h = run_block(block, h)
            skips.append(h)
            if i % config.blocks_per_level == 0 and i < len(self.down_blocks):
                h = self.downsamplers[i // config.blocks_per_level - 1](h)
                skips.append(h)
        h = self.mid_block_2(run_block(self.mid_block_1, h), time_embed)
        for i, block in enumerate(self.up_blocks, 1):
            h = run_block(block, torch.cat([h, skips.pop()], dim=1))
            if i % (config.blocks_per_level + 1) == 0 and i < len(self.up_blocks):
                h = self.upsamplers[i // (config.blocks_per_level + 1) - 1](h)
        out = norm_silu_conv(self.conv_out, self.norm_out, h)
        return F.pixel_shuffle(out, config.patch_size) if config.patch_size > 1 else out
