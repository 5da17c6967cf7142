"""The tiny autoencoder TAESD (Boer Bohan 2023): it decodes a larger one's latents with a hundredth of the work."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.errors import InputError
from unspeckle.networks.autoencoder import Autoencoder


@dataclass(frozen=True)
class TinyAutoencoderConfig:
    """The sizes of a tiny autoencoder, and the normalization of its latents: (output of the encoder - shift_factor) ·
    scaling_factor."""

    # Channels of the latents.
    latent_channels: int = 4
    # Channels of all layers.
    base_channels: int = 64
    # Blocks of each level of the encoder, from the full resolution down.
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    # Blocks of each level of the decoder, from the lowest resolution up.
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    # Whether there is an encoder.
    has_encoder: bool = True


class TinyResBlock(nn.Module):
    """Three convolutions and a residual connection; (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class TinyAutoencoder(Autoencoder):
    """A convolutional autoencoder without normalization layers."""

    config: TinyAutoencoderConfig

    def __init__(self, config: TinyAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_channels, self.downsampling_factor = config.latent_channels, 1 << (len(config.decoder_blocks) - 1)
        self.encoder = nn.Sequential(*(make_encoder_layers(config) if config.has_encoder else []))
        self.decoder = nn.Sequential(*make_decoder_layers(config))

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> latents (B, C, H / factor, W / factor). InputError without an encoder."""
        if not self.config.has_encoder:
            raise InputError(
                "this tiny autoencoder has no encoder; put its taesd_encoder.safetensors beside the decoder"
            )
        x = ((images + 1) / 2).to(self._dtype).contiguous(memory_format=torch.channels_last)
        latents: Tensor = (self.encoder(x).float() - self.config.shift_factor) * self.config.scaling_factor
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        z = latents / self.config.scaling_factor + self.config.shift_factor
        z = (torch.tanh(z / 3) * 3).to(self._dtype).contiguous(memory_format=torch.channels_last)
        out: Tensor = self.decoder(z).float()
        return out * 2 - 1

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype


def make_encoder_layers(config: TinyAutoencoderConfig) -> list[nn.Module]:
    """The layers from images (B, 3, H, W) in [0, 1] to latents."""
    width, layers = config.base_channels, list[nn.Module]()
    for level, num_blocks in enumerate(config.encoder_blocks):
        downsample = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        layers.append(downsample if level else nn.Conv2d(3, width, 3, padding=1))
        layers += [TinyResBlock(width) for _ in range(num_blocks)]
    return [*layers, nn.Conv2d(width, config.latent_channels, 3, padding=1)]


def make_decoder_layers(config: TinyAutoencoderConfig) -> list[nn.Module]:
    """The layers from latents to images (B, 3, H, W) in [0, 1]."""
    width, num_upsamples = config.base_channels, len(config.encoder_blocks) - 1
    layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
    for level, num_blocks in enumerate(config.decoder_blocks):
        layers += [TinyResBlock(width) for _ in range(num_blocks)]
        if level < num_upsamples:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
    return [*layers, nn.Conv2d(width, 3, 3, padding=1)]
