"""What networks take of the image's size and of the guidance scale, as vectors beside the text."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.networks.layers import sinusoidal_embedding


def size_embedding(size: tuple[int, int], width: int, aesthetic_score: float) -> Tensor:
    """(1, width): sinusoids of the image's height and width, of a crop at (0, 0), and of the size to draw (Podell et
    al. 2023, section 2.2). The refiner takes the aesthetic score in place of the last two; the width, a multiple of 6
    or not, tells which."""
    image_width, image_height = size
    last_values = [image_height, image_width] if width % 6 == 0 else [aesthetic_score]
    values = torch.tensor([image_height, image_width, 0, 0, *last_values], dtype=torch.float32)
    return sinusoidal_embedding(values, width // len(values)).view(1, width)


def guidance_scale_embedding(guidance_scale: float, width: int) -> Tensor:
    """(1, width): the guidance scale as latent consistency models take it (Luo et al. 2023, section 4.2)."""
    half_width = width // 2
    frequencies = torch.exp(-math.log(10_000) / (half_width - 1) * torch.arange(half_width, dtype=torch.float32))
    angles = 1000 * (guidance_scale - 1) * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()])[None], (0, width % 2))
