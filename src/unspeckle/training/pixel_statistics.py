"""Mean and standard deviation of the pixels of a corpus: the autoencoder of models that denoise pixels."""

import math

import numpy as np
import torch

from unspeckle.corpus.splits import Corpus
from unspeckle.networks.autoencoder import PixelAutoencoder, PixelAutoencoderConfig

MAX_IMAGES = 1024
# Images read at once, and pixels in all of them
MAX_CHUNK_IMAGES, MAX_CHUNK_PIXELS = 64, 1 << 22
MIN_STD = 0.05


def fit_pixel_autoencoder(corpus: Corpus) -> PixelAutoencoder:
    """Pixels standardized by the mean and the standard deviation of each channel, over at most MAX_IMAGES training
    images."""
    split = corpus.training
    count = min(len(split), MAX_IMAGES)
    indices = np.arange(count) * len(split) // count
    sums, squares, pixel_count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    chunk_size = max(1, min(MAX_CHUNK_IMAGES, MAX_CHUNK_PIXELS // math.prod(split.size)))
    for chunk in np.array_split(indices, -(-count // chunk_size)):
        pixels = split.center_crops(chunk).double() / 127.5 - 1
        sums += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
        pixel_count += pixels[:, 0].numel()
    mean = sums / pixel_count
    std = (squares / pixel_count - mean**2).clamp(min=0).sqrt().clamp(min=MIN_STD)
    r, g, b = ((round(float(m), 4), round(float(s), 4)) for m, s in zip(mean, std, strict=True))
    return PixelAutoencoder(PixelAutoencoderConfig((r[0], g[0], b[0]), (r[1], g[1], b[1])))
