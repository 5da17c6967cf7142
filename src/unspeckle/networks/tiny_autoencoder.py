"""The tiny autoencoder (TAESD; Boer Bohan 2023): latents of a large one to pictures, by a hundredth of the work."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.errors import InputError
from unspeckle.networks.autoencoder import Autoencoder


@dataclass(frozen=True)
class TinyAutoencoderConfig:
    """Sizes; blocks at each level of the encoder, the finest first, and of the decoder, the coarsest first. Latents are
    (what the encoder says - shift) · scale."""

    latent_channels: int = 4
    base_channels: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    has_encoder: bool = True  # else only the decoder is there


class TinyResBlock(nn.Module):
    """Three convolutions beside a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class TinyAutoencoder(Autoencoder):
    """Pictures to latents and back, by convolutions without a normalisation."""

    def __init__(self, config: TinyAutoencoderConfig) -> None:
        super().__init__()
        self.config, self.latent_channels, self.downsampling_factor = (
            config,
            config.latent_channels,
            1 << (len(config.decoder_blocks) - 1),
        )
        width, num_levels = config.base_channels, len(config.encoder_blocks)
        encoder_layers: list[nn.Module] = []
        for level, num_blocks in enumerate(config.encoder_blocks if config.has_encoder else ()):
            downsample = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
            encoder_layers += [
                downsample if level else nn.Conv2d(3, width, 3, padding=1),
                *(TinyResBlock(width) for _ in range(num_blocks)),
            ]
        self.encoder = nn.Sequential(
            *encoder_layers, *([nn.Conv2d(width, config.latent_channels, 3, padding=1)] if encoder_layers else [])
        )
        decoder_layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
        for level, num_blocks in enumerate(config.decoder_blocks):
            decoder_layers += [TinyResBlock(width) for _ in range(num_blocks)]
            if level < num_levels - 1:
                decoder_layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.decoder = nn.Sequential(*decoder_layers, nn.Conv2d(width, 3, 3, padding=1))

    def encode(self, images: Tensor) -> Tensor:
        if not self.config.has_encoder:
            raise InputError("this tiny autoencoder only decodes; put its taesd_encoder.safetensors beside the decoder")
        x = ((images + 1) / 2).to(self._dtype).contiguous(memory_format=torch.channels_last)
        out: Tensor = (self.encoder(x).float() - self.config.shift_factor) * self.config.scaling_factor
        return out

    def decode(self, latents: Tensor) -> Tensor:
        z = latents / self.config.scaling_factor + self.config.shift_factor
        z = (torch.tanh(z / 3) * 3).to(self._dtype).contiguous(memory_format=torch.channels_last)
        out: Tensor = self.decoder(z).float()
        return out * 2 - 1

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype
