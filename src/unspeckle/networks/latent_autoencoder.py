"""A small convolutional autoencoder: pictures as few smooth latents, cheap to denoise, decoded with crisp edges."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.layers import norm, silenced


@dataclass(frozen=True)
class LatentConfig:
    """channels of the latents; factor, the pixels of a side that one place stands for (4 or 8); the widths at 1/2, 1/4
    (and 1/8) of the pictures' side; blocks at each of these."""

    channels: int = 8
    factor: int = 4
    widths: tuple[int, ...] = (48, 96)
    blocks: int = 2


class Block(nn.Module):
    """Two convolutions beside a skip (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width, 0), norm(width, 0)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = silenced(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = x + self.conv2(F.silu(self.norm2(h)))
        return out


class Latents(Autoencoder):
    """Encoder and decoder, with a normalisation between them whose running mean and variance are the latents' own."""

    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        self.config, self.channels, self.factor = config, config.channels, config.factor
        if config.factor != 2 ** len(config.widths):
            raise ValueError(f"factor {config.factor} wants a width for each of its halvings, not {config.widths}")
        wide, blocks = config.widths, config.blocks
        self.enter = nn.Conv2d(12, wide[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(wide):
            if level:
                self.down.append(nn.Conv2d(4 * wide[level - 1], width, 1))
            self.down.extend(Block(width) for _ in range(1 if level + 1 < len(wide) else blocks))
        self.narrow = nn.Conv2d(wide[-1], config.channels, 1)
        self.standard = nn.BatchNorm2d(config.channels, affine=False, momentum=0.01)
        self.widen = nn.Conv2d(config.channels, wide[-1], 3, padding=1)
        for level in reversed(range(len(wide))):
            self.up.extend(Block(wide[level]) for _ in range(blocks))
            if level:
                self.up.append(nn.Conv2d(wide[level], 4 * wide[level - 1], 1))
        self.leave = nn.Conv2d(wide[0], 12, 3, padding=1)

    def at(self, dtype: torch.dtype) -> "Latents":
        lower = copy.deepcopy(self).to(dtype)
        lower.standard = self.standard  # what standardises stays as exact as it is
        return lower

    def encode(self, pictures: Tensor) -> Tensor:
        h = self.enter(_rows(F.pixel_unshuffle(pictures, 2), self.enter))
        for layer in self.down:
            h = layer(h if isinstance(layer, Block) else F.pixel_unshuffle(h, 2))
        out: Tensor = self.standard(self.narrow(h).float())
        return out

    def decode(self, latents: Tensor) -> Tensor:
        h = self.widen(_rows(latents, self.widen))
        for layer in self.up:
            h = layer(h) if isinstance(layer, Block) else F.pixel_shuffle(layer(h), 2)
        return F.pixel_shuffle(self.leave(h), 2).float()


def _rows(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """x as the layer wants it: its precision, and channels-last memory."""
    return x.to(layer.weight.dtype).contiguous(memory_format=torch.channels_last)
