"""The small convolutional autoencoder that is trained here: images to a few smooth latent channels that are cheap to
denoise."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.layers import make_norm, zero_init


@dataclass(frozen=True)
class LatentAutoencoderConfig:
    """The sizes of a small autoencoder."""

    # Channels of the latents.
    latent_channels: int = 8
    # Pixels of an image's side for each latent's: 4 or 8.
    downsampling_factor: int = 4
    # Channels at 1/2, 1/4 (and 1/8) of the image's size: one entry for each halving.
    widths: tuple[int, ...] = (48, 96)
    # Residual blocks at each of these sizes; the encoder has only one at all but the smallest.
    blocks_per_level: int = 2


class LatentResBlock(nn.Module):
    """A residual block with two convolutions (He et al. 2016); (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = make_norm(width, 0), make_norm(width, 0)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = zero_init(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = x + self.conv2(F.silu(self.norm2(h)))
        return out


class LatentAutoencoder(Autoencoder):
    """An encoder and a decoder, and a batch normalization between them, whose running mean and variance standardize the
    latents. Its convolutions see images with 2 × 2 pixels folded into channels."""

    config: LatentAutoencoderConfig

    def __init__(self, config: LatentAutoencoderConfig) -> None:
        super().__init__()
        widths, blocks_per_level = config.widths, config.blocks_per_level
        if config.downsampling_factor != 2 ** len(widths):
            raise ValueError(
                f"downsampling_factor {config.downsampling_factor} needs a width per halving, not {widths}"
            )
        self.config = config
        self.latent_channels, self.downsampling_factor = config.latent_channels, config.downsampling_factor
        self.conv_in = nn.Conv2d(12, widths[0], 3, padding=1)
        self.encoder_layers, self.decoder_layers = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            if level:
                self.encoder_layers.append(nn.Conv2d(4 * widths[level - 1], width, 1))
            num_blocks = 1 if level + 1 < len(widths) else blocks_per_level
            self.encoder_layers.extend(LatentResBlock(width) for _ in range(num_blocks))
        self.to_latents = nn.Conv2d(widths[-1], config.latent_channels, 1)
        self.latent_norm = nn.BatchNorm2d(config.latent_channels, affine=False, momentum=0.01)
        self.from_latents = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        for level in reversed(range(len(widths))):
            self.decoder_layers.extend(LatentResBlock(widths[level]) for _ in range(blocks_per_level))
            if level:
                self.decoder_layers.append(nn.Conv2d(widths[level], 4 * widths[level - 1], 1))
        self.conv_out = nn.Conv2d(widths[0], 12, 3, padding=1)

    def with_dtype(self, dtype: torch.dtype) -> "LatentAutoencoder":
        """A copy that computes in that dtype. The normalization of the latents is shared, and stays exact."""
        clone = copy.deepcopy(self).to(dtype)
        clone.latent_norm = self.latent_norm
        return clone

    def encode(self, images: Tensor) -> Tensor:
        h = self.conv_in(_to_layer_format(F.pixel_unshuffle(images, 2), self.conv_in))
        for layer in self.encoder_layers:
            h = layer(h if isinstance(layer, LatentResBlock) else F.pixel_unshuffle(h, 2))
        latents: Tensor = self.latent_norm(self.to_latents(h).float())
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        h = self.from_latents(_to_layer_format(latents, self.from_latents))
        for layer in self.decoder_layers:
            h = layer(h) if isinstance(layer, LatentResBlock) else F.pixel_shuffle(layer(h), 2)
        return F.pixel_shuffle(self.conv_out(h), 2).float()


def _to_layer_format(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """x in the layer's dtype and in channels-last memory."""
    return x.to(layer.weight.dtype).contiguous(memory_format=torch.channels_last)
