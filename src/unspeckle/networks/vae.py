"""The autoencoder of latent diffusion (Rombach et al. 2022): images to a few channels at an eighth of their size."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.layers import ScaledDotProductAttention, UpsampleConv, to_feature_map, to_tokens


@dataclass(frozen=True)
class VAEConfig:
    """The sizes of a VAE, and the normalization of its latents: (output of the encoder - shift_factor) · scaling_factor
    has about unit variance."""

    # Channels of the latents.
    latent_channels: int = 4
    # Channels at full resolution, in units of which channel_multipliers counts.
    base_channels: int = 128
    # One entry for each level; each level has half the height and width of the one before.
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    # Residual blocks of each level of the encoder; the decoder has one more.
    blocks_per_level: int = 2
    # Groups of the group normalizations.
    norm_groups: int = 32
    # Whether a 1 × 1 convolution follows the encoder, and another precedes the decoder.
    use_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0

    @property
    def downsampling_factor(self) -> int:
        """Pixels of an image's side for each latent's."""
        return 1 << (len(self.channel_multipliers) - 1)


class VAEResBlock(nn.Module):
    """A residual block with two convolutions (He et al. 2016)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, in_channels, 1e-6), nn.GroupNorm(groups, out_channels, 1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class VAEAttention(nn.Module):
    """Self-attention over the pixels of a feature map, with one head, normalization and residual connection."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.sdpa = ScaledDotProductAttention(heads=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> (B, width, H, W)."""
        return to_feature_map(to_tokens(x) + self.to_out(self.attend(x)), x.shape)

    def attend(self, x: Tensor) -> Tensor:
        """What forward projects and adds to x: (B, width, H, W) -> (B, H·W, width)."""
        tokens = to_tokens(self.norm(x))
        attended: Tensor = self.sdpa(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return attended


class VAEMidBlock(nn.Sequential):
    """The blocks of encoder and decoder at the lowest resolution."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__(
            VAEResBlock(width, width, groups), VAEAttention(width, groups), VAEResBlock(width, width, groups)
        )


class VAEEncoder(nn.Module):
    """Images (B, 3, H, W) to mean and log-variance (B, 2 · latent_channels, H / factor, W / factor)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
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
        self.norm_out: nn.Module = nn.GroupNorm(config.norm_groups, channels, 1e-6)
        self.act_out: nn.Module = nn.SiLU()
        self.conv_out: nn.Module = nn.Conv2d(channels, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        for i, block in enumerate(self.down_blocks, 1):
            h = block(h)
            if i % self.blocks_per_level == 0 and i < len(self.down_blocks):
                padded = F.pad(h, (0, 1, 0, 1))  # only on the right and at the bottom, as the original does
                h = self.downsamplers[i // self.blocks_per_level - 1](padded)
        h = self.mid_block(h)
        out: Tensor = self.conv_out(self.act_out(self.norm_out(h)))
        return out


class VAEDecoder(nn.Module):
    """Latents (B, latent_channels, h, w) to images (B, 3, h · factor, w · factor)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in reversed(config.channel_multipliers)]
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
        self.norm_out: nn.Module = nn.GroupNorm(config.norm_groups, channels, 1e-6)
        self.act_out: nn.Module = nn.SiLU()
        self.conv_out: nn.Module = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z.contiguous(memory_format=torch.channels_last)))
        for i, block in enumerate(self.up_blocks, 1):
            h = block(h)
            if i % self.blocks_per_level == 0 and i < len(self.up_blocks):
                h = self.upsamplers[i // self.blocks_per_level - 1](h)
        out: Tensor = self.conv_out(self.act_out(self.norm_out(h)))
        return out


class VAE(Autoencoder):
    """A variational autoencoder: the encoder gives a Gaussian over the latents of each image. Latents outside this
    class are normalized to about unit variance."""

    config: VAEConfig

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_channels, self.downsampling_factor = config.latent_channels, config.downsampling_factor
        self.encoder, self.decoder = VAEEncoder(config), VAEDecoder(config)
        self.quant_conv = make_quant_conv(2 * config.latent_channels, config.use_quant_conv)
        self.post_quant_conv = make_quant_conv(config.latent_channels, config.use_quant_conv)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the normalized latents, (B, latent_channels, H / factor, W / factor) each."""
        moments = self.quant_conv(self.encoder(images.to(self._dtype)))
        mean, log_variance = moments.float().chunk(2, dim=1)
        std = (log_variance.clamp(-30, 20) / 2).exp()
        return (mean - self.config.shift_factor) * self.config.scaling_factor, std * self.config.scaling_factor

    def encode(self, images: Tensor) -> Tensor:
        """The mean of the posterior."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        z = (latents / self.config.scaling_factor + self.config.shift_factor).to(self._dtype)
        out: Tensor = self.decoder(self.post_quant_conv(z)).float()
        return out

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def make_quant_conv(channels: int, is_present: bool) -> nn.Module:
    """A 1 × 1 convolution, or the identity for VAEs without one."""
    return nn.Conv2d(channels, channels, 1) if is_present else nn.Identity()
