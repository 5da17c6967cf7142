"""How near drawn images come to held-out ones, for a model that has no loss of its own to compare: the energy distance
of both sets, at several sizes."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Sides in pixels to which images are averaged
SIDES = (2, 4, 8, 16)


class EnergyDistances(NamedTuple):
    """The energy distance at each side, as a share of that of a model that always draws the mean image."""

    sides: tuple[int, ...]
    relative_errors: tuple[float, ...]

    @property
    def total(self) -> float:
        return math.fsum(self.relative_errors) / len(self.relative_errors)

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(f"{side} px" for side in self.sides)

    @property
    def levels_heading(self) -> str:
        return "size"

    @property
    def summary(self) -> str:
        return f"distance to held-out images: {self.total:.1%} of the mean image's"


def energy_distances(drawn: Tensor, real: Tensor) -> EnergyDistances:
    """Of images (N, C, H, W) and (M, C, H, W), at those of SIDES that are no larger than they are."""
    sides = [side for side in SIDES if side <= min(real.shape[2:])]
    errors = []
    for side in sides:
        x, y = (F.adaptive_avg_pool2d(images.float(), side).flatten(1) for images in (drawn, real))
        mean_image = y.mean(dim=0, keepdim=True)
        errors.append(energy_distance(x, y) / max(energy_distance(mean_image, y), 1e-12))
    return EnergyDistances(tuple(sides), tuple(errors))


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| of the rows of x (N, D) and y (M, D), without bias: 0 in the mean if both are
    from one distribution (Székely & Rizzo 2013, eq. 5)."""
    return float(2 * torch.cdist(x, y).mean() - _mean_distance(x) - _mean_distance(y))


def _mean_distance(x: Tensor) -> Tensor:
    """The mean distance of two different rows."""
    return torch.cdist(x, x).sum() / max(1, len(x) * (len(x) - 1))
