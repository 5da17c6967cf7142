"""The tiny autoencoder (TAESD; Boer Bohan 2023): latents of a large one to pictures, by a hundredth of the work."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.errors import InputError
from unspeckle.networks.autoencoder import Autoencoder


@dataclass(frozen=True)
class TinyVaeConfig:
    """Sizes; blocks at each level of the encoder, the finest first, and of the decoder, the coarsest first. Latents are
    (what the encoder says - shift) · scale."""

    latents: int = 4
    width: int = 64
    down: tuple[int, ...] = (1, 3, 3, 3)
    up: tuple[int, ...] = (3, 3, 3, 1)
    scale: float = 1.0
    shift: float = 0.0
    encodes: bool = True  # else only the decoder is there


class TinyBlock(nn.Module):
    """Three convolutions beside a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class TinyVae(Autoencoder):
    """Pictures to latents and back, by convolutions without a normalisation."""

    def __init__(self, config: TinyVaeConfig) -> None:
        super().__init__()
        self.config, self.channels, self.factor = config, config.latents, 1 << (len(config.up) - 1)
        width, levels = config.width, len(config.down)
        down: list[nn.Module] = []
        for level, count in enumerate(config.down if config.encodes else ()):
            enters = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
            down += [enters if level else nn.Conv2d(3, width, 3, padding=1), *(TinyBlock(width) for _ in range(count))]
        self.encoder = nn.Sequential(*down, *([nn.Conv2d(width, config.latents, 3, padding=1)] if down else []))
        up: list[nn.Module] = [nn.Conv2d(config.latents, width, 3, padding=1), nn.ReLU()]
        for level, count in enumerate(config.up):
            up += [TinyBlock(width) for _ in range(count)]
            if level < levels - 1:
                up += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.decoder = nn.Sequential(*up, nn.Conv2d(width, 3, 3, padding=1))

    def encode(self, pictures: Tensor) -> Tensor:
        if not self.config.encodes:
            raise InputError("this tiny autoencoder only decodes; put its taesd_encoder.safetensors beside the decoder")
        x = ((pictures + 1) / 2).to(self._dtype).contiguous(memory_format=torch.channels_last)
        out: Tensor = (self.encoder(x).float() - self.config.shift) * self.config.scale
        return out

    def decode(self, latents: Tensor) -> Tensor:
        z = latents / self.config.scale + self.config.shift
        z = (torch.tanh(z / 3) * 3).to(self._dtype).contiguous(memory_format=torch.channels_last)
        out: Tensor = self.decoder(z).float()
        return out * 2 - 1

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype
