"""A model that draws large images from small ones (Ho et al. 2022, "Cascaded Diffusion Models")."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.denoiser import SomeConditioning, with_fields
from unspeckle.model import Model

# How much noise the small images had in training, at most, in units of their standard deviation, and how much they get
# in drawings: what hides the faults of the model that drew them ("noise conditioning augmentation", section 4.1)
MAX_NOISE_LEVEL, NOISE_LEVEL = 0.5, 0.1


@dataclass
class UpsamplerModel(Model):
    """A Model whose network takes a small image besides x, enlarged and with some noise, and how much noise that is
    at the end of its vector."""

    # The sides of its images are so many times those of the small ones
    factor: int = field(kw_only=True)

    def add_conditioning(
        self, conditioning: SomeConditioning, positive: bool, guidance_scale: float, size: tuple[int, int]
    ) -> SomeConditioning:
        levels = torch.full((len(conditioning[0]),), NOISE_LEVEL, device=conditioning[0].device)
        return append_noise_level(conditioning, levels)

    def encode_small_images(self, images: Tensor, noise: Tensor) -> Tensor:
        """Small images (B, 3, h, w) in [-1, 1], with noise (B, C, H, W), as what the network takes beside x."""
        enlarged = enlarge(images, self.factor)
        return self.autoencoder.encode(enlarged) + NOISE_LEVEL * noise

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "upsampler": {"factor": self.factor}}


def append_noise_level(conditioning: SomeConditioning, levels: Tensor) -> SomeConditioning:
    """The conditioning with the noise levels (B,) of its small images behind its vector."""
    column = levels[:, None].to(conditioning[0])
    vector = conditioning.vector
    return with_fields(conditioning, vector=column if vector is None else torch.cat([vector, column], dim=1))


def enlarge(images: Tensor, factor: int) -> Tensor:
    """Images (B, 3, h, w) -> (B, 3, factor · h, factor · w), bilinearly."""
    return F.interpolate(images, scale_factor=float(factor), mode="bilinear", align_corners=False)


def shrink(images: Tensor, factor: int) -> Tensor:
    """Images (B, 3, H, W) -> (B, 3, H / factor, W / factor), each pixel the mean of those that it stands for."""
    return F.avg_pool2d(images, factor)
