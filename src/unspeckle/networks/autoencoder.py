"""The interface of autoencoders, which map images to what is denoised, and the one of pixel space.

What is denoised always has about unit variance, so that noise schedules need not know where it comes from.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Autoencoder(nn.Module):
    """Maps images (B, 3, H, W) in [-1, 1] to latents (B, C, H / factor, W / factor) of mean 0 and variance 1, and back.

    latent_channels: C. downsampling_factor: factor. config: the dataclass that it is built from.
    """

    latent_channels: int
    downsampling_factor: int
    config: Any

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> latents (B, C, H / factor, W / factor)."""
        raise TypeError(f"{type(self).__name__} cannot encode")

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, h · factor, w · factor), float32."""
        raise TypeError(f"{type(self).__name__} cannot decode")

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the images' latents, (B, C, H / factor, W / factor) each. The standard
        deviation of a deterministic encoder is 0."""
        mean = self.encode(images)
        return mean, torch.zeros_like(mean)

    def with_dtype(self, dtype: torch.dtype) -> "Autoencoder":
        """An autoencoder that computes in that dtype; itself if it makes no use of it."""
        return self

    @property
    def latent_bounds(self) -> tuple[Tensor, Tensor] | None:
        """The lowest and the highest value that each latent channel of an image can have, (C, 1, 1) each; None if they
        are not bounded."""
        return None


@dataclass(frozen=True)
class PixelAutoencoderConfig:
    """The statistics of the corpus in pixel space."""

    latent_channels: ClassVar[int] = 3
    downsampling_factor: ClassVar[int] = 1
    # Mean of red, green and blue, in [-1, 1].
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    # Their standard deviations.
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


class PixelAutoencoder(Autoencoder):
    """Pixel space: latents are the pixels, standardized by the corpus's mean and standard deviation of each color."""

    latent_channels, downsampling_factor = 3, 1
    config: PixelAutoencoderConfig
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
    """function(x), float32, where function is the autoencoder's encode or decode.

    If the autoencoder computes in half precision and the output is not finite although x is, the autoencoder is
    converted to float32 in place and the function called again. float16 ends at 65,504, which some autoencoders exceed;
    the image would be black."""
    output = function(x).float()
    half_dtypes = {p.dtype for p in autoencoder.parameters() if p.is_floating_point()} & {torch.float16, torch.bfloat16}
    if not half_dtypes or bool(output.isfinite().all()) or not bool(x.isfinite().all()):
        return output
    dtype_name = str(half_dtypes.pop()).removeprefix("torch.")
    logging.getLogger("unspeckle").warning("the autoencoder overflows in %s; it runs again in float32", dtype_name)
    autoencoder.float()
    return function(x).float()
