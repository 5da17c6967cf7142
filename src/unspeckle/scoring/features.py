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
REACH = 4  # pixels from a wave's middle to its end
WIDTH, SLANT, FREQUENCY = 1.3, 0.6, 0.62 * math.pi  # of the envelope along the wave, across it; radians a pixel
FAINT = 0.01  # strength below which differences count little
TOGETHER = 1 << 18  # pixels at once: 64 pictures of 64 × 64
MOST = 128  # directions in which whitened features vary


class Features(Protocol):
    """pictures (B, 3, H, W) uint8 -> (B, width) float32; hash: 12 hex digits of all that decides the numbers."""

    name: str
    hash: str

    def __call__(self, pictures: Tensor) -> Tensor: ...


class Scattering:
    """Logarithms of the mean strengths of waves, first order in three colours, second order in grey."""

    name = "scattering"

    def __init__(self) -> None:
        self.waves, self.blur = _waves(), _binomial()
        self.hash = digest("scattering 1", (self.waves * 2**15).round().int())  # alike on every machine

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        share = max(1, TOGETHER // math.prod(pictures.shape[2:]))
        return torch.cat([self._some(some) for some in torch.split(pictures, share)])

    def _some(self, pictures: Tensor) -> Tensor:
        picture = opponent(pictures)
        sizes = max(2, min(6, round(math.log2(min(picture.shape[2:]))) - 2))  # 4 at 64 pixels
        found = [picture.mean((2, 3))]
        for size in range(sizes):
            strength = self._strength(picture)  # (B, 3 · directions, H, W)
            found.append(_log(strength))
            coarser = strength[:, :DIRECTIONS]
            for _ in range(size + 1, sizes):
                coarser = self._half(coarser)
                found.append(_log(self._strength(coarser)))
            picture = self._half(picture)
        return torch.cat(found, 1)

    def _strength(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C · directions, H, W): the modulus of each wave's answer."""
        wave = F.conv2d(_framed(x, REACH).flatten(0, 1).unsqueeze(1), self.waves.to(x.device))
        even, odd = wave[:, :DIRECTIONS], wave[:, DIRECTIONS:]
        return (even.square() + odd.square()).sqrt().view(len(x), -1, *x.shape[2:])

    def _half(self, x: Tensor) -> Tensor:
        halved = F.conv2d(_framed(x, 2).flatten(0, 1).unsqueeze(1), self.blur.to(x.device), stride=2)
        return halved.view(*x.shape[:2], *halved.shape[2:])


class Whitened:
    """Features turned and scaled so that those of real pictures vary alike in each of at most 128 directions."""

    def __init__(self, features: Features, real: Tensor) -> None:
        """real (N, 3, H, W) uint8: the pictures that set the scale, at least 8; the hash tells them too."""
        self.features = features
        rows = features(real).double().cpu()
        self.mean = rows.mean(0)
        _, spread, turn = torch.linalg.svd(rows - self.mean, full_matrices=False)
        kept = min(MOST, max(2, len(rows) // 4), len(spread))
        deviation = spread[:kept] / math.sqrt(len(rows) - 1)
        self.matrix = turn[:kept].T / (deviation + deviation[0] / 100).clamp(min=1e-12)
        self.name = f"{features.name}, whitened"
        self.hash = digest(features.hash, real)

    def __call__(self, pictures: Tensor) -> Tensor:
        turned: Tensor = (self.features(pictures).double().cpu() - self.mean) @ self.matrix
        return turned.float()


def opponent(pictures: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) as grey, red against green, both against blue: float32."""
    red, green, blue = (pictures.float() / 127.5 - 1).unbind(1)
    return torch.stack(((red + green + blue) / 3, (red - green) / 2**0.5, (red + green - 2 * blue) / 6**0.5), 1)


def _waves() -> Tensor:
    """(2 · directions, 1, 9, 9): even waves, then odd ones, of no mean and norm 1 as a pair."""
    place = torch.arange(-REACH, REACH + 1, dtype=torch.float64)
    even, odd = [], []
    for direction in range(DIRECTIONS):
        angle = math.pi * direction / DIRECTIONS
        along = place * math.cos(angle) + place[:, None] * math.sin(angle)
        across = place[:, None] * math.cos(angle) - place * math.sin(angle)
        envelope = (-(along**2 + (SLANT * across) ** 2) / (2 * WIDTH**2)).exp()
        c, s = envelope * (FREQUENCY * along).cos(), envelope * (FREQUENCY * along).sin()
        c = c - envelope * (c.sum() / envelope.sum())
        norm = (c.square() + s.square()).sum().sqrt()
        even.append(c / norm)
        odd.append(s / norm)
    return torch.stack(even + odd).unsqueeze(1).float()


def _binomial() -> Tensor:
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    return torch.outer(row, row)[None, None]


def _framed(x: Tensor, by: int) -> Tensor:
    """x continued by its mirror image, or where it is too small for that by its edge."""
    return F.pad(x, [by] * 4, mode="reflect" if min(x.shape[2:]) > by else "replicate")


def _log(strength: Tensor) -> Tensor:
    return (strength.mean((2, 3)) + FAINT).log()


def digest(word: str, *tensors: Tensor) -> str:
    """12 hex digits of a word and some tensors."""
    whole = hashlib.sha256(word.encode())
    for tensor in tensors:
        whole.update(f"{tuple(tensor.shape)}".encode())
        whole.update(tensor.contiguous().cpu().numpy().tobytes())
    return whole.hexdigest()[:12]
