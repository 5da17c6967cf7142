"""Between pictures and what is denoised. Unit variance always, so that no schedule need know it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Autoencoder(nn.Module):
    """pictures (B, 3, H, W) in [-1, 1] <-> latents (B, C, H / factor, W / factor) of mean 0 and variance 1."""

    channels: int
    factor: int
    config: Any

    def encode(self, pictures: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not encode")

    def decode(self, latents: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not decode")

    def posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents that the pictures may have, (B, C, H / factor, W / factor) each."""
        mean = self.encode(pictures)
        return mean, torch.zeros_like(mean)

    def at(self, dtype: torch.dtype) -> "Autoencoder":
        """One that works in that precision; the same where it makes no difference."""
        return self

    @property
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """Lowest and highest value of each channel, (C, 1, 1) each, where pictures bound them."""
        return None


@dataclass(frozen=True)
class IdentityConfig:
    """Mean and deviation of red, green and blue over the corpus, in pictures' units of [-1, 1]."""

    channels: ClassVar[int] = 3
    factor: ClassVar[int] = 1
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (0.5, 0.5, 0.5)


class Identity(Autoencoder):
    """Pixel space: only the corpus's mean and deviation of each colour stand between."""

    channels, factor = 3, 1
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: IdentityConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(config.deviation)[:, None, None], persistent=False)

    def encode(self, pictures: Tensor) -> Tensor:
        return (pictures - self.mean) / self.deviation

    def decode(self, latents: Tensor) -> Tensor:
        return latents * self.deviation + self.mean

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        return (-1 - self.mean) / self.deviation, (1 - self.mean) / self.deviation


def finite(coder: Autoencoder, code: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """code(x), float32; where values of it are not finite though x's are, the autoencoder is made float32 and asked
    again: float16 ends at 65,504, which some autoencoders go beyond, and the picture would be black."""
    found = code(x).float()
    half = {p.dtype for p in coder.parameters() if p.is_floating_point()} & {torch.float16, torch.bfloat16}
    if not half or bool(found.isfinite().all()) or not bool(x.isfinite().all()):
        return found
    said = str(half.pop()).removeprefix("torch.")
    logging.getLogger("unspeckle").warning("the autoencoder overflows in %s; it is asked again in float32", said)
    coder.float()
    return code(x).float()
