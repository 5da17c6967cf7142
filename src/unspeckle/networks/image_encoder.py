"""The image half of a CLIP of our own: a small convolutional network from an image to a vector."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.networks.latent_autoencoder import LatentResBlock

# Pixels of an image's side that are folded into channels first
PATCH_SIZE = 4


@dataclass(frozen=True)
class ImageEncoderConfig:
    """The sizes of an image encoder."""

    # Width and height in pixels of the images that it was trained on; each is a multiple of size_multiple
    size: tuple[int, int] = (64, 64)
    # Channels of the feature maps, from the finest (a quarter of the image's side), each with half the side of the one
    # before
    widths: tuple[int, ...] = (64, 128, 192)
    # Residual blocks of each
    blocks: int = 2
    # Numbers of the vector
    embedding_width: int = 128
    # Width of the text embeddings beside it
    text_width: int = 128
    # Of a network that denoises; an image encoder takes no conditioning
    channels: ClassVar[int] = 3
    concat_channels: ClassVar[int] = 0
    guidance_width: ClassVar[int] = 0
    coarse_predictor_layers: ClassVar[int] = 0

    @property
    def size_multiple(self) -> int:
        """The sides of images are multiples of this."""
        return PATCH_SIZE << (len(self.widths) - 1)

    @property
    def vector_width(self) -> int:
        """Width of the pooled text embeddings."""
        return self.text_width


class ImageEncoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to vectors (B, D): residual blocks, then the mean over all places."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_in = nn.Conv2d(3 * PATCH_SIZE**2, config.widths[0], 3, padding=1)
        self.layers = nn.ModuleList()
        for level, width in enumerate(config.widths):
            if level:
                self.layers.append(nn.Conv2d(4 * config.widths[level - 1], width, 1))
            self.layers.extend(LatentResBlock(width) for _ in range(config.blocks))
        self.final_norm = nn.LayerNorm(config.widths[-1])
        self.proj_out = nn.Linear(config.widths[-1], config.embedding_width, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(F.pixel_unshuffle(images.to(self.conv_in.weight.dtype), PATCH_SIZE))
        for layer in self.layers:
            h = layer(h if isinstance(layer, LatentResBlock) else F.pixel_unshuffle(h, 2))
        out: Tensor = self.proj_out(self.final_norm(h.mean(dim=(2, 3))))  # (B, D)
        return out
