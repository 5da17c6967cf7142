"""The embeddings of images, such as a CLIP gives, as what is denoised."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.networks.autoencoder import Autoencoder


@dataclass(frozen=True)
class EmbeddingSpaceConfig:
    """The shape of an EmbeddingSpace."""

    # Width and height in pixels of the images; neither is twice the other
    size: tuple[int, int]
    # Numbers of an embedding
    latent_channels: int

    @property
    def downsampling_factor(self) -> int:
        """Pixels of an image's side for each latent's: all of them."""
        return min(self.size)


class EmbeddingSpace(Autoencoder):
    """Embeddings as latents of a single place, (B, D, 1, 1), standardized, so that they can be denoised like an image:
    what the prior of an unCLIP model draws (Ramesh et al. 2022, section 2.2). There is no way back to an image.

    Its state is the mean and the standard deviation of each number over images."""

    mean: Tensor
    std: Tensor
    # Images (B, 3, H, W) in [-1, 1] to unit vectors (B, D); None where only embeddings are drawn
    embed_images: Callable[[Tensor], Tensor] | None = None

    def __init__(self, config: EmbeddingSpaceConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_channels, self.downsampling_factor = config.latent_channels, config.downsampling_factor
        self.register_buffer("mean", torch.zeros(self.latent_channels))
        self.register_buffer("std", torch.full((self.latent_channels,), self.latent_channels**-0.5))

    def encode(self, images: Tensor) -> Tensor:
        assert self.embed_images is not None
        return self.standardize(self.embed_images(images))[:, :, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        raise InputError(": is the prior of an unCLIP model, which draws no images; choose the whole model", "model")

    def standardize(self, embeddings: Tensor) -> Tensor:
        """Unit vectors (B, D) -> numbers (B, D) of mean 0 and variance 1 over images."""
        return (embeddings - self.mean) / self.std

    def to_embeddings(self, latents: Tensor) -> Tensor:
        """Latents (B, D, 1, 1) -> unit vectors (B, D)."""
        return F.normalize(latents.flatten(1).float() * self.std + self.mean, dim=1)
