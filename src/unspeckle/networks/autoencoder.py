"""Between pictures and what is denoised. Unit variance always, so that no schedule need know it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Autoencoder(nn.Module):
    """pictures (B, 3, H, W) in [-1, 1] <-> latents (B, C, H / factor, W / factor) of mean 0 and variance 1."""

    latent_channels: int
    downsampling_factor: int
    config: Any

    def encode(self, images: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not encode")

    def decode(self, latents: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not decode")

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents that the pictures may have, (B, C, H / factor, W / factor) each."""
        mean = self.encode(images)
        return mean, torch.zeros_like(mean)

    def with_dtype(self, dtype: torch.dtype) -> "Autoencoder":
        """One that works in that precision; the same where it makes no difference."""
        return self

    @property
    def latent_bounds(self) -> tuple[Tensor, Tensor] | None:
        """Lowest and highest value of each channel, (C, 1, 1) each, where pictures bound them."""
        return None


@dataclass(frozen=True)
class PixelAutoencoderConfig:
    """Mean and deviation of red, green and blue over the corpus, in pictures' units of [-1, 1]."""

    latent_channels: ClassVar[int] = 3
    downsampling_factor: ClassVar[int] = 1
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


class PixelAutoencoder(Autoencoder):
    """Pixel space: only the corpus's mean and deviation of each colour stand between."""

    latent_channels, downsampling_factor = 3, 1
    mean: Tensor
    std: Tensor

    def __init__(self, config: PixelAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        return latents * self.std + self.mean

    @property
    def latent_bounds(self) -> tuple[Tensor, Tensor]:
        return (-1 - self.mean) / self.std, (1 - self.mean) / self.std


def run_without_overflow(autoencoder: Autoencoder, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """code(x), float32; where values of it are not finite though x's are, the autoencoder is made float32 and asked
    again: float16 ends at 65,504, which some autoencoders go beyond, and the picture would be black."""
    output = function(x).float()
    half_dtypes = {p.dtype for p in autoencoder.parameters() if p.is_floating_point()} & {torch.float16, torch.bfloat16}
    if not half_dtypes or bool(output.isfinite().all()) or not bool(x.isfinite().all()):
        return output
    dtype_name = str(half_dtypes.pop()).removeprefix("torch.")
    logging.getLogger("unspeckle").warning("the autoencoder overflows in %s; it is asked again in float32", dtype_name)
    autoencoder.float()
    return function(x).float()
