"""What two sets of pictures are compared by: features, a few hundred numbers a picture.

The default needs no download: a scattering transform (Bruna & Mallat 2013) on a pyramid of half-sized pictures. At each
size, waves of six directions are laid over the picture (Morlet's, in closed form); their strengths, and how these vary
from place to place at every coarser size, are averaged over the picture. It knows edges, textures, their colours and
how they lie beside each other, but no objects. `Whitened` makes differences count in proportion to how much real
pictures vary.
"""

import hashlib
import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

DIRECTIONS = 6
WAVE_RADIUS = 4  # pixels from a wave's middle to its end
ENVELOPE_WIDTH, SLANT, FREQUENCY = (
    1.3,
    0.6,
    0.62 * math.pi,
)  # of the envelope along the wave, across it; radians a pixel
LOG_OFFSET = 0.01  # strength below which differences count little
PIXELS_PER_BATCH = 1 << 18  # pixels at once: 64 pictures of 64 × 64
MAX_WHITENED_DIMS = 128  # directions in which whitened features vary


class FeatureExtractor(Protocol):
    """pictures (B, 3, H, W) uint8 -> (B, width) float32; hash: 12 hex digits of all that decides the numbers."""

    name: str
    hash: str

    def __call__(self, images: Tensor) -> Tensor: ...


class ScatteringFeatures:
    """Logarithms of the mean strengths of waves, first order in three colours, second order in grey."""

    name = "scattering"

    def __init__(self) -> None:
        self.wavelets, self.blur_kernel = _make_wavelets(), _binomial_kernel()
        self.hash = hash_tensors("scattering 1", (self.wavelets * 2**15).round().int())  # alike on every machine

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        batch_size = max(1, PIXELS_PER_BATCH // math.prod(images.shape[2:]))
        return torch.cat([self._extract_batch(batch) for batch in torch.split(images, batch_size)])

    def _extract_batch(self, images: Tensor) -> Tensor:
        opponent_images = to_opponent_colors(images)
        scale_count = max(2, min(6, round(math.log2(min(opponent_images.shape[2:]))) - 2))  # 4 at 64 pixels
        features = [opponent_images.mean((2, 3))]
        for scale in range(scale_count):
            strength = self._wave_modulus(opponent_images)  # (B, 3 · directions, H, W)
            features.append(_log_mean(strength))
            coarser = strength[:, :DIRECTIONS]
            for _ in range(scale + 1, scale_count):
                coarser = self._downsample(coarser)
                features.append(_log_mean(self._wave_modulus(coarser)))
            opponent_images = self._downsample(opponent_images)
        return torch.cat(features, 1)

    def _wave_modulus(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C · directions, H, W): the modulus of each wave's answer."""
        responses = F.conv2d(_pad_borders(x, WAVE_RADIUS).flatten(0, 1).unsqueeze(1), self.wavelets.to(x.device))
        even, odd = responses[:, :DIRECTIONS], responses[:, DIRECTIONS:]
        return (even.square() + odd.square()).sqrt().view(len(x), -1, *x.shape[2:])

    def _downsample(self, x: Tensor) -> Tensor:
        downsampled = F.conv2d(_pad_borders(x, 2).flatten(0, 1).unsqueeze(1), self.blur_kernel.to(x.device), stride=2)
        return downsampled.view(*x.shape[:2], *downsampled.shape[2:])


class WhitenedFeatures:
    """Features turned and scaled so that those of real pictures vary alike in each of at most 128 directions."""

    def __init__(self, extractor: FeatureExtractor, real: Tensor) -> None:
        """real (N, 3, H, W) uint8: the pictures that set the scale, at least 8; the hash tells them too."""
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
        whitened: Tensor = (self.extractor(images).double().cpu() - self.mean) @ self.whitening_matrix
        return whitened.float()


def to_opponent_colors(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) as grey, red against green, both against blue: float32."""
    red, green, blue = (images.float() / 127.5 - 1).unbind(1)
    return torch.stack(((red + green + blue) / 3, (red - green) / 2**0.5, (red + green - 2 * blue) / 6**0.5), 1)


def _make_wavelets() -> Tensor:
    """(2 · directions, 1, 9, 9): even waves, then odd ones, of no mean and norm 1 as a pair."""
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
    weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    return torch.outer(weights, weights)[None, None]


def _pad_borders(x: Tensor, padding: int) -> Tensor:
    """x continued by its mirror image, or where it is too small for that by its edge."""
    return F.pad(x, [padding] * 4, mode="reflect" if min(x.shape[2:]) > padding else "replicate")


def _log_mean(strength: Tensor) -> Tensor:
    return (strength.mean((2, 3)) + LOG_OFFSET).log()


def hash_tensors(label: str, *tensors: Tensor) -> str:
    """12 hex digits of a word and some tensors."""
    hasher = hashlib.sha256(label.encode())
    for tensor in tensors:
        hasher.update(f"{tuple(tensor.shape)}".encode())
        hasher.update(tensor.contiguous().cpu().numpy().tobytes())
    return hasher.hexdigest()[:12]
