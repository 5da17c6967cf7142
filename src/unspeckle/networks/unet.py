"""The U-Net: one class for the small networks that are trained here and for those of Stable Diffusion 1, 2 and XL."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import AnyConditioning, Conditioning, PreparedConditioning
from unspeckle.networks.coarse_predictor import CoarseImagePredictor, concat_images
from unspeckle.networks.layers import Attention, UpsampleConv, make_norm, sinusoidal_embedding, zero_init
from unspeckle.networks.unet_blocks import ResBlock, SpatialTransformer, UNetBlock


@dataclass(frozen=True)
class UNetConfig:
    """The sizes of a U-Net. Tuples have one entry for each level; level 0 has the full resolution, and each level after
    it half the height and width of the one before."""

    # Channels of x, and of the output.
    channels: int = 3
    # Channels of conditioning.concat, which are concatenated to x: those of inpainting, for example.
    concat_channels: int = 0
    # Side of the patches of pixels that are folded into channels at the input and unfolded at the output.
    patch_size: int = 1
    # Channels at level 0, in units of which channel_multipliers counts.
    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2)
    # Blocks of each level on the way down; there is one more on the way up.
    blocks_per_level: int = 2
    # Transformer layers in each block of a level; 0 for no transformer.
    transformer_depths: tuple[int, ...] = (1, 1)
    # Transformer layers of the middle block.
    mid_transformer_depth: int = 1
    # Whether the transformers of a level have self-attention; all of them attend to the text.
    self_attention: tuple[bool, ...] = (False, True)
    # Whether transformer layers have a feed-forward layer.
    feed_forward: bool = False
    # The projections around a transformer: "none", "conv" (Stable Diffusion 1) or "linear" (2 and XL).
    transformer_projection: str = "none"
    # Channels of an attention head.
    head_width: int = 32
    # If not 0, the number of heads of every attention layer, in place of head_width (Stable Diffusion 1).
    heads: int = 0
    # Channels of conditioning.tokens.
    text_width: int = 192
    # Channels of conditioning.vector without the guidance embedding.
    vector_width: int = 0
    # Channels of the embedding of the guidance scale, which follows in conditioning.vector (LCM; Luo et al. 2023).
    guidance_width: int = 0
    # Whether the time scales and shifts the second normalization of a residual block (Dhariwal & Nichol 2021), or is
    # only added (Stable Diffusion).
    scale_shift: bool = True
    # c_noise is multiplied by this, so that it covers the periods of the sinusoidal embedding.
    time_scale: float = 1000.0
    # Layers of the CoarseImagePredictor, whose prediction is concatenated to x; 0 for none.
    coarse_predictor_layers: int = 0
    # Groups of the group normalizations; 0 for LayerNorm2d, which is faster on a CPU.
    norm_groups: int = 32

    @property
    def size_multiple(self) -> int:
        """Height and width of x must be multiples of this."""
        return self.patch_size << (len(self.channel_multipliers) - 1)

    @property
    def time_width(self) -> int:
        """Channels of the time embedding."""
        return 4 * self.base_channels


class UNet(nn.Module):
    """The U-Net (Ronneberger et al. 2015) as a denoising network (Ho et al. 2020; Rombach et al. 2022).

    forward(x (B, channels, H, W), c_noise (B,), conditioning) -> (B, channels, H, W)
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        if config.coarse_predictor_layers and config.concat_channels:
            raise ValueError("a U-Net has either coarse_predictor_layers or concat_channels, not both")
        self.config = config
        self.time_embed_1 = nn.Linear(config.base_channels, config.time_width)
        self.time_embed_2 = nn.Linear(config.time_width, config.time_width)
        if config.vector_width:
            self.vector_embed_1 = nn.Linear(config.vector_width, config.time_width)
            self.vector_embed_2 = nn.Linear(config.time_width, config.time_width)
        if config.guidance_width:
            self.guidance_embed = nn.Linear(config.guidance_width, config.base_channels, bias=False)
        self.coarse_predictor: CoarseImagePredictor | None = None
        if config.coarse_predictor_layers:
            self.coarse_predictor = CoarseImagePredictor(
                config.channels, config.text_width, config.coarse_predictor_layers
            )
        self._build_trunk()

    def _build_trunk(self) -> None:
        config = self.config
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        concat_channels = config.channels if config.coarse_predictor_layers else config.concat_channels
        in_channels = (config.channels + concat_channels) * config.patch_size**2
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks, self.downsamplers = nn.ModuleList(), nn.ModuleList()
        channels, skip_channels = widths[0], [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(config.blocks_per_level):
                self.down_blocks.append(self._make_block(channels, width, level, config.transformer_depths[level]))
                channels = width
                skip_channels.append(channels)
            if level < len(widths) - 1:
                self.downsamplers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skip_channels.append(channels)
        last_level = len(widths) - 1
        self.mid_block_1 = self._make_block(channels, channels, last_level, config.mid_transformer_depth)
        self.mid_block_2 = self._make_res_block(channels, channels)
        self.up_blocks, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks_per_level + 1):
                in_channels = channels + skip_channels.pop()
                self.up_blocks.append(self._make_block(in_channels, width, level, config.transformer_depths[level]))
                channels = width
            if level:
                self.upsamplers.append(UpsampleConv(channels))
        self.norm_out: nn.Module = make_norm(channels, config.norm_groups)
        self.act_out: nn.Module = nn.SiLU()
        self.conv_out: nn.Module = zero_init(nn.Conv2d(channels, config.channels * config.patch_size**2, 3, padding=1))

    def _make_block(self, in_channels: int, out_channels: int, level: int, depth: int) -> UNetBlock:
        config = self.config
        res_block = self._make_res_block(in_channels, out_channels)
        if not depth:
            return UNetBlock(res_block, None)
        transformer = SpatialTransformer(
            out_channels,
            depth,
            config.heads or out_channels // config.head_width,
            config.text_width,
            has_self_attn=config.self_attention[level],
            has_feed_forward=config.feed_forward,
            projection=config.transformer_projection,
            norm_groups=config.norm_groups,
        )
        return UNetBlock(res_block, transformer)

    def _make_res_block(self, in_channels: int, out_channels: int) -> ResBlock:
        config = self.config
        return ResBlock(
            in_channels,
            out_channels,
            config.time_width,
            norm_groups=config.norm_groups,
            scale_shift=config.scale_shift,
        )

    def blocks_with_text(self) -> list[UNetBlock]:
        """All blocks that may attend to the text, in the order of the forward pass."""
        return [*self.down_blocks, self.mid_block_1, *self.up_blocks]

    def text_attention_layers(self) -> list[Attention]:
        """All layers that attend to the text, in the order of the forward pass."""
        return [layer for block in self.blocks_with_text() for layer in block.cross_attentions]

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """Everything that depends on the conditioning but not on the time: the keys and values of all layers that
        attend to the text, side by side, and the coarse image."""
        # The order of these two calls is the order in which the gradients of the tokens are summed: changing it changes
        # the last bits of what is trained.
        keys_values = [layer.project_keys_values(conditioning.tokens) for layer in self.text_attention_layers()]
        coarse_image = None if self.coarse_predictor is None else self.coarse_predictor(conditioning)
        _, mask, vector, concat = conditioning
        return PreparedConditioning(torch.cat(keys_values, dim=2), mask, vector, concat, coarse_image)

    def embed_time(self, c_noise: Tensor, conditioning: PreparedConditioning) -> Tensor:
        """c_noise (B,) and conditioning.vector -> the embedding (B, time_width) that all residual blocks receive."""
        config, vector = self.config, conditioning.vector
        vector_widths = [config.vector_width, config.guidance_width]
        features = sinusoidal_embedding(c_noise * config.time_scale, config.base_channels)
        features = features.to(self.time_embed_1.weight.dtype)
        if vector is None:
            if any(vector_widths):
                raise ValueError(f"this network needs a conditioning.vector of {sum(vector_widths)} values per image")
            return F.silu(self.time_embed_2(F.silu(self.time_embed_1(features))))
        if config.guidance_width:
            vector, guidance = torch.split(vector, vector_widths, dim=1)
            features = features + self.guidance_embed(guidance.to(features.dtype))
        time_embed = self.time_embed_2(F.silu(self.time_embed_1(features)))
        if config.vector_width:
            time_embed = time_embed + self.vector_embed_2(F.silu(self.vector_embed_1(vector.to(features.dtype))))
        return F.silu(time_embed)

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: AnyConditioning) -> Tensor:
        prepared = self.prepare(conditioning) if isinstance(conditioning, Conditioning) else conditioning
        return self.trunk(
            concat_images(x, prepared), self.embed_time(c_noise, prepared), prepared.keys_values, prepared.mask
        )

    def trunk(self, x: Tensor, time_embed: Tensor, keys_values: Tensor, mask: Tensor | None) -> Tensor:
        """The network without its embeddings; training may compile it.

        x (B, in_channels, H, W), time_embed (B, time_width), keys_values (B, L, Σ 2·C) of all layers that attend to the
        text, mask (B, L) bool -> (B, channels, H, W)."""
        blocks_per_level, patch_size = self.config.blocks_per_level, self.config.patch_size
        block_keys_values = iter(self._split_by_block(keys_values))
        x = F.pixel_unshuffle(x, patch_size) if patch_size > 1 else x
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for i, block in enumerate(self.down_blocks, 1):
            h = block(h, time_embed, next(block_keys_values), mask)
            skips.append(h)
            if i % blocks_per_level == 0 and i < len(self.down_blocks):
                h = self.downsamplers[i // blocks_per_level - 1](h)
                skips.append(h)
        h = self.mid_block_1(h, time_embed, next(block_keys_values), mask)
        h = self.mid_block_2(h, time_embed)
        for i, block in enumerate(self.up_blocks, 1):
            h = block(torch.cat([h, skips.pop()], dim=1), time_embed, next(block_keys_values), mask)
            if i % (blocks_per_level + 1) == 0 and i < len(self.up_blocks):
                h = self.upsamplers[i // (blocks_per_level + 1) - 1](h)
        out: Tensor = self.conv_out(self.act_out(self.norm_out(h)))
        return F.pixel_shuffle(out, patch_size) if patch_size > 1 else out

    def _split_by_block(self, keys_values: Tensor) -> list[list[Tensor]]:
        """The keys and values (B, L, 2·C) of each block's layers that attend to the text."""
        sizes = [2 * layer.to_q.out_features for layer in self.text_attention_layers()]
        layer_keys_values = iter(torch.split(keys_values, sizes, dim=2))
        return [[next(layer_keys_values) for _ in block.cross_attentions] for block in self.blocks_with_text()]
