"""What two sets of images are compared by: features, some hundred numbers for each image.

The default needs no download: a scattering transform (Bruna & Mallat 2013) on an image pyramid. At each scale the
image is filtered by Morlet wavelets of six directions; the modulus of each response, and how it varies over the image
at every coarser scale, are averaged over the image. This describes edges, textures, their colors and how they are
arranged, but not objects. WhitenedFeatures weighs differences by how much real images vary.
"""

import hashlib
import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

DIRECTIONS = 6  # directions of wavelets
WAVE_RADIUS = 4  # pixels from a wavelet's center to its border
ENVELOPE_WIDTH = 1.3  # standard deviation in pixels of the Gaussian envelope along the wave
SLANT = 0.6  # the envelope is wider across the wave, by 1 / SLANT
FREQUENCY = 0.62 * math.pi  # radians per pixel
LOG_OFFSET = 0.01  # added to a response before taking its logarithm, so that differences of weak responses count little
PIXELS_PER_BATCH = 1 << 18  # pixels transformed at once: 64 images of 64 × 64
MAX_WHITENED_DIMS = 128  # dimensions of whitened features, at most


class FeatureExtractor(Protocol):
    """Computes features of images."""

    name: str  # for the report
    hash: str  # 12 hexadecimal digits that identify everything the features depend on

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, D), on the CPU."""


class ScatteringFeatures:
    """Logarithms of mean wavelet responses: first order in three color channels, second order in gray.

    The dimension D depends on the image size: 291 at 64 × 64 pixels.
    """

    name = "scattering"

    def __init__(self) -> None:
        self.wavelets, self.blur_kernel = _make_wavelets(), _binomial_kernel()
        # Rounded, so that the hash is the same on every machine
        self.hash = hash_tensors("scattering 1", (self.wavelets * 2**15).round().int())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, D)."""
        batch_size = max(1, PIXELS_PER_BATCH // math.prod(images.shape[2:]))
        return torch.cat([self._extract_batch(batch) for batch in torch.split(images, batch_size)])

    def _extract_batch(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, D)."""
        opponent_images = to_opponent_colors(images)
        scale_count = max(2, min(6, round(math.log2(min(opponent_images.shape[2:]))) - 2))  # 4 at 64 pixels
        features = [opponent_images.mean((2, 3))]
        for scale in range(scale_count):
            strength = self._wave_modulus(opponent_images)  # (B, 3 · DIRECTIONS, H, W)
            features.append(_log_mean(strength))
            coarser = strength[:, :DIRECTIONS]
            for _ in range(scale + 1, scale_count):
                coarser = self._downsample(coarser)
                features.append(_log_mean(self._wave_modulus(coarser)))
            opponent_images = self._downsample(opponent_images)
        return torch.cat(features, 1)

    def _wave_modulus(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C · DIRECTIONS, H, W): the modulus of each wavelet's response."""
        responses = F.conv2d(_pad_borders(x, WAVE_RADIUS).flatten(0, 1).unsqueeze(1), self.wavelets.to(x.device))
        even, odd = responses[:, :DIRECTIONS], responses[:, DIRECTIONS:]
        return (even.square() + odd.square()).sqrt().view(len(x), -1, *x.shape[2:])

    def _downsample(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2), blurred first."""
        downsampled = F.conv2d(_pad_borders(x, 2).flatten(0, 1).unsqueeze(1), self.blur_kernel.to(x.device), stride=2)
        return downsampled.view(*x.shape[:2], *downsampled.shape[2:])


class WhitenedFeatures:
    """Features projected on the principal components of real images and scaled to variance 1 in each of them."""

    def __init__(self, extractor: FeatureExtractor, real: Tensor) -> None:
        """real (N, 3, H, W) uint8 are at least 8 images that set the scale; the hash depends on them, too."""
        self.extractor = extractor
        real_features = extractor(real).double().cpu()
        self.mean = real_features.mean(0)
        _, singular_values, components = torch.linalg.svd(real_features - self.mean, full_matrices=False)
        dims = min(MAX_WHITENED_DIMS, max(2, len(real_features) // 4), len(singular_values))
        std = singular_values[:dims] / math.sqrt(len(real_features) - 1)
        self.whitening_matrix = components[:dims].T / (std + std[0] / 100).clamp(min=1e-12)
        self.name = f"{extractor.name}, whitened"
        self.hash = hash_tensors(extractor.hash, real)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, D)."""
        whitened: Tensor = (self.extractor(images).double().cpu() - self.mean) @ self.whitening_matrix
        return whitened.float()


def to_opponent_colors(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, H, W): gray, red minus green, yellow minus blue."""
    red, green, blue = (images.float() / 127.5 - 1).unbind(1)
    return torch.stack(((red + green + blue) / 3, (red - green) / 2**0.5, (red + green - 2 * blue) / 6**0.5), 1)


def _make_wavelets() -> Tensor:
    """(2 · DIRECTIONS, 1, 9, 9): even (cosine) wavelets, then odd (sine) ones; of mean 0, each pair of norm 1."""
    offsets = torch.arange(-WAVE_RADIUS, WAVE_RADIUS + 1, dtype=torch.float64)
    even, odd = [], []
    for direction in range(DIRECTIONS):
        angle = math.pi * direction / DIRECTIONS
        along = offsets * math.cos(angle) + offsets[:, None] * math.sin(angle)
        across = offsets[:, None] * math.cos(angle) - offsets * math.sin(angle)
        envelope = (-(along**2 + (SLANT * across) ** 2) / (2 * ENVELOPE_WIDTH**2)).exp()
        cosine, sine = envelope * (FREQUENCY * along).cos(), envelope * (FREQUENCY * along).sin()
        cosine = cosine - envelope * (cosine.sum() / envelope.sum())
        norm = (cosine.square() + sine.square()).sum().sqrt()
        even.append(cosine / norm)
        odd.append(sine / norm)
    return torch.stack(even + odd).unsqueeze(1).float()


def _binomial_kernel() -> Tensor:
    """(1, 1, 5, 5), of sum 1."""
    weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    return torch.outer(weights, weights)[None, None]


def _pad_borders(x: Tensor, padding: int) -> Tensor:
    """x padded by reflection, or by repeating its border pixels if it is too small for that."""
    return F.pad(x, [padding] * 4, mode="reflect" if min(x.shape[2:]) > padding else "replicate")


def _log_mean(strength: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C)."""
    return (strength.mean((2, 3)) + LOG_OFFSET).log()


def hash_tensors(label: str, *tensors: Tensor) -> str:
    """12 hexadecimal digits of the SHA-256 of the label and the tensors."""
    hasher = hashlib.sha256(label.encode())
    for tensor in tensors:
        hasher.update(f"{tuple(tensor.shape)}".encode())
        hasher.update(tensor.contiguous().cpu().numpy().tobytes())
    return hasher.hexdigest()[:12]
