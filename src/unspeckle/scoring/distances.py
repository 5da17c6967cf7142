"""Distances between two sets of features: of real pictures (N, D) and of drawn ones (M, D). All work in float64."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 1024  # of a table of distances held at once


def kid(real: Tensor, drawn: Tensor) -> float:
    """The kernel inception distance: the unbiased squared maximum mean discrepancy under the kernel (a·b / D + 1)³
    (Bińkowski et al. 2018). 0 on average where both come from one distribution, so it can be negative."""
    a, b = real.double(), drawn.double()
    _enough(a, b, 2)

    def mean(p: Tensor, q: Tensor) -> float:
        parts = [((rows @ q.T / p.shape[1] + 1) ** 3).sum() for rows in torch.split(p, ROWS)]
        return float(torch.stack(parts).sum()) / (len(p) * len(q))

    def mean_of_pairs(p: Tensor) -> float:
        n, itself = len(p), float(((p.square().sum(1) / p.shape[1] + 1) ** 3).sum())
        return (mean(p, p) * n * n - itself) / (n * (n - 1))

    return mean_of_pairs(a) + mean_of_pairs(b) - 2 * mean(a, b)


def cmmd(real: Tensor, drawn: Tensor) -> float:
    """1000 times the squared maximum mean discrepancy under the kernel exp(-|a - b|² / 200), of CLIP's embeddings of
    length 1 (Jayasumana et al. 2024). Their estimate counts each picture with itself: at least 0, biased upwards."""
    a, b = real.double(), drawn.double()

    def mean(p: Tensor, q: Tensor) -> float:
        return sum(float((-d.square() / 200).exp().sum()) for _, d in _distances(p, q)) / (len(p) * len(q))

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


def frechet(real: Tensor, drawn: Tensor) -> float:
    """The squared Fréchet distance of the Gaussians fitted to both (Dowson & Landau 1982; Heusel et al. 2017).

    Biased upwards, by much where there are fewer pictures than a few times D.
    """
    a, b = real.double(), drawn.double()
    _enough(a, b, 2)
    root = _root(torch.cov(a.T))
    cross = torch.linalg.eigvalsh(root @ torch.cov(b.T) @ root).clamp(min=0).sqrt().sum()
    spread = a.var(0).sum() + b.var(0).sum() - 2 * cross
    return float((a.mean(0) - b.mean(0)).square().sum() + spread)


class Neighbours(NamedTuple):
    """Shares in [0, 1], but for the density, which is about 1 where both come from one distribution."""

    precision: float  # of drawn pictures that lie among real ones
    recall: float  # of real pictures that lie among drawn ones
    density: float  # in how many of k real neighbourhoods a drawn picture lies
    coverage: float  # of real pictures with a drawn one in their neighbourhood


def neighbours(real: Tensor, drawn: Tensor, k: int = 5) -> Neighbours:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020). A picture's
    neighbourhood is the ball to its k-th nearest other one."""
    a, b = real.double(), drawn.double()
    _enough(a, b, k + 1)
    real_radius, drawn_radius = _radius(a, k), _radius(b, k)
    inside = recalled = covered = 0
    balls = 0.0
    for _, distance in _distances(b, a):  # (some drawn, N)
        within = distance <= real_radius
        inside += int(within.any(1).sum())
        balls += float(within.sum())
    for start, distance in _distances(a, b):  # (some real, M)
        recalled += int((distance <= drawn_radius).any(1).sum())
        covered += int((distance.min(1).values <= real_radius[start : start + len(distance)]).sum())
    return Neighbours(inside / len(b), recalled / len(a), balls / (k * len(b)), covered / len(a))


def nearest(drawn: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """For each drawn picture the distance to the nearest training picture (M,), and which one that is (M,)."""
    found = [distance.min(1) for _, distance in _distances(drawn.double(), training.double())]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _enough(a: Tensor, b: Tensor, count: int) -> None:
    if min(len(a), len(b)) < count:
        raise ValueError(f"{min(len(a), len(b))} pictures are too few: {count} are needed on both sides")


def _distances(p: Tensor, q: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Where some rows of p begin, and their distances to all of q; exact, so that a picture lies at 0 from itself."""
    for start in range(0, len(p), ROWS):
        yield start, torch.cdist(p[start : start + ROWS], q, compute_mode="donot_use_mm_for_euclid_dist")


def _radius(p: Tensor, k: int) -> Tensor:
    return torch.cat([distance.kthvalue(k + 1, dim=1).values for _, distance in _distances(p, p)])  # itself is first


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root
