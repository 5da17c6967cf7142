"""Between pictures and what is denoised. Every autoencoder gives unit variance, so that no schedule needs to know it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Autoencoder(nn.Module):
    """pictures (B, 3, H, W) in [-1, 1] <-> latents (B, C, H / factor, W / factor) of mean 0 and variance 1."""

    channels: int
    factor: int

    def encode(self, pictures: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not encode")

    def decode(self, latents: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not decode")

    @property
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """Lowest and highest value of each channel, (C, 1, 1) each, where pictures bound them."""
        return None


class Identity(Autoencoder):
    """Pixel space: only the corpus's mean and deviation of each colour channel stand between."""

    channels, factor = 3, 1
    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float] = (0.0,) * 3, deviation: Sequence[float] = (0.5,) * 3) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32)[:, None, None])

    def encode(self, pictures: Tensor) -> Tensor:
        return (pictures - self.mean) / self.deviation

    def decode(self, latents: Tensor) -> Tensor:
        return latents * self.deviation + self.mean

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        return (-1 - self.mean) / self.deviation, (1 - self.mean) / self.deviation
