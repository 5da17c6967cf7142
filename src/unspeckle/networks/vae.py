"""The autoencoder of latent diffusion (Rombach et al. 2022): pictures to a few channels at an eighth of their sides."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.layers import UpsampleConv, apply_with_residual, multi_head_attention, norm_silu_conv


@dataclass(frozen=True)
class VAEConfig:
    """Sizes; latents are (what the encoder says - shift) · scale, which has about unit variance."""

    latent_channels: int = 4
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks_per_level: int = 2  # at each level of the encoder; the decoder has one more
    norm_groups: int = 32
    use_quant_conv: bool = True  # 1 × 1 convolutions on both sides of the latents
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0

    @property
    def downsampling_factor(self) -> int:
        return 1 << (len(self.channel_multipliers) - 1)


class VAEResBlock(nn.Module):
    """Two convolutions (He et al. 2016)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, in_channels, 1e-6), nn.GroupNorm(groups, out_channels, 1e-6)
        self.conv1, self.conv2 = (
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class VAEAttention(nn.Module):
    """Every place sees every other, with one head."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        h = multi_head_attention(self.to_q(h), self.to_k(h), self.to_v(h), 1)
        h = apply_with_residual(self.to_out, h, x.permute(0, 2, 3, 1).flatten(1, 2))
        return h.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


class VAEMidBlock(nn.Sequential):
    """What both halves do at the coarsest level."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__(
            VAEResBlock(width, width, groups), VAEAttention(width, groups), VAEResBlock(width, width, groups)
        )


class VAEEncoder(nn.Module):
    """Pictures (B, 3, H, W) to mean and log-variance (B, 2 · latents, H / factor, W / factor)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.blocks_per_level = config.blocks_per_level
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks, self.downsamplers, channels = nn.ModuleList(), nn.ModuleList(), widths[0]
        for level, width in enumerate(widths):
            for _ in range(config.blocks_per_level):
                self.down_blocks.append(VAEResBlock(channels, width, config.norm_groups))
                channels = width
            if level < len(widths) - 1:
                self.downsamplers.append(nn.Conv2d(channels, channels, 3, stride=2))
        self.mid_block = VAEMidBlock(channels, config.norm_groups)
        self.norm_out = nn.GroupNorm(config.norm_groups, channels, 1e-6)
        self.conv_out = nn.Conv2d(channels, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        for i, block in enumerate(self.down_blocks, 1):
            h = block(h)
            if i % self.blocks_per_level == 0 and i < len(self.down_blocks):
                h = self.downsamplers[i // self.blocks_per_level - 1](F.pad(h, (0, 1, 0, 1)))
        return norm_silu_conv(self.conv_out, self.norm_out, self.mid_block(h))


class VAEDecoder(nn.Module):
    """Latents (B, latents, h, w) to pictures (B, 3, h · factor, w · factor)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in reversed(config.channel_multipliers)]
        self.blocks_per_level = config.blocks_per_level + 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = VAEMidBlock(widths[0], config.norm_groups)
        self.up_blocks, self.upsamplers, channels = nn.ModuleList(), nn.ModuleList(), widths[0]
        for level, width in enumerate(widths):
            for _ in range(self.blocks_per_level):
                self.up_blocks.append(VAEResBlock(channels, width, config.norm_groups))
                channels = width
            if level < len(widths) - 1:
                self.upsamplers.append(UpsampleConv(channels))
        self.norm_out = nn.GroupNorm(config.norm_groups, channels, 1e-6)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z.contiguous(memory_format=torch.channels_last)))
        for i, block in enumerate(self.up_blocks, 1):
            h = block(h)
            if i % self.blocks_per_level == 0 and i < len(self.up_blocks):
                h = self.upsamplers[i // self.blocks_per_level - 1](h)
        return norm_silu_conv(self.conv_out, self.norm_out, h)


class VAE(Autoencoder):
    """A Gaussian of latents for each picture; standardised at this border."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config, self.latent_channels, self.downsampling_factor = (
            config,
            config.latent_channels,
            config.downsampling_factor,
        )
        self.encoder, self.decoder = VAEEncoder(config), VAEDecoder(config)
        self.quant_conv = (
            nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
            if config.use_quant_conv
            else nn.Identity()
        )
        self.post_quant_conv = (
            nn.Conv2d(config.latent_channels, config.latent_channels, 1) if config.use_quant_conv else nn.Identity()
        )

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the standardised latents."""
        mean, log_variance = self.quant_conv(self.encoder(images.to(self._dtype))).float().chunk(2, dim=1)
        std = (log_variance.clamp(-30, 20) / 2).exp()
        return (mean - self.config.shift_factor) * self.config.scaling_factor, std * self.config.scaling_factor

    def encode(self, images: Tensor) -> Tensor:
        """The posterior's mean."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        z = (latents / self.config.scaling_factor + self.config.shift_factor).to(self._dtype)
        out: Tensor = self.decoder(self.post_quant_conv(z)).float()
        return out

    @property
    def _dtype(self) -> torch.dtype:
        return self.decoder.norm_out.weight.dtype
