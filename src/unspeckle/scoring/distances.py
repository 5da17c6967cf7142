"""Distances between the features of real images (N, D) and of generated ones (M, D), all computed in float64."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROWS_PER_CHUNK = 1024  # rows of a distance matrix in memory at once


def kid(real: Tensor, generated: Tensor) -> float:
    """Kernel inception distance: the unbiased estimate of the squared maximum mean discrepancy (Bińkowski et al. 2018).

    The kernel is (a·b / D + 1)³. It is 0 on average if both sets come from one distribution, so it can be negative.
    ValueError for fewer than 2 images in either set.
    """
    a, b = real.double(), generated.double()
    _check_row_counts(a, b, 2)

    def mean_kernel(p: Tensor, q: Tensor) -> float:
        chunk_sums = [((rows @ q.T / p.shape[1] + 1) ** 3).sum() for rows in torch.split(p, ROWS_PER_CHUNK)]
        return float(torch.stack(chunk_sums).sum()) / (len(p) * len(q))

    def mean_kernel_of_pairs(p: Tensor) -> float:
        n, diagonal_sum = len(p), float(((p.square().sum(1) / p.shape[1] + 1) ** 3).sum())
        return (mean_kernel(p, p) * n * n - diagonal_sum) / (n * (n - 1))

    return mean_kernel_of_pairs(a) + mean_kernel_of_pairs(b) - 2 * mean_kernel(a, b)


def cmmd(real: Tensor, generated: Tensor) -> float:
    """1000 times the squared maximum mean discrepancy of CLIP embeddings of length 1 (Jayasumana et al. 2024).

    The kernel is exp(-|a - b|² / 200). Their estimate counts the pair of each image with itself, so it is at least 0
    and biased upwards.
    """
    a, b = real.double(), generated.double()

    def mean_kernel(p: Tensor, q: Tensor) -> float:
        return sum(float((-d.square() / 200).exp().sum()) for _, d in _chunked_distances(p, q)) / (len(p) * len(q))

    return 1000 * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """The squared Fréchet distance of Gaussians fitted to both sets (Dowson & Landau 1982; Heusel et al. 2017).

    It is biased upwards, strongly if there are fewer images than a few times D. ValueError for fewer than 2 images in
    either set.
    """
    a, b = real.double(), generated.double()
    _check_row_counts(a, b, 2)
    sqrt_covariance = _matrix_sqrt(torch.cov(a.T))
    cross_trace = torch.linalg.eigvalsh(sqrt_covariance @ torch.cov(b.T) @ sqrt_covariance).clamp(min=0).sqrt().sum()
    covariance_distance = a.var(0).sum() + b.var(0).sum() - 2 * cross_trace
    return float((a.mean(0) - b.mean(0)).square().sum() + covariance_distance)


class PRDC(NamedTuple):
    """Precision, recall, density and coverage. All are fractions but the density, which is about 1 for real images."""

    precision: float  # generated images in the neighborhood of a real one
    recall: float  # real images in the neighborhood of a generated one
    density: float  # real neighborhoods that a generated image lies in on average, divided by k
    coverage: float  # real images with a generated one in their neighborhood


def compute_prdc(real: Tensor, generated: Tensor, k: int = 5) -> PRDC:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    An image's neighborhood is the ball that reaches to the k-th nearest other image of its set. ValueError for fewer
    than k + 1 images in either set.
    """
    a, b = real.double(), generated.double()
    _check_row_counts(a, b, k + 1)
    real_radius, generated_radius = _neighborhood_radius(a, k), _neighborhood_radius(b, k)
    precise_count = recalled_count = covered_count = 0
    ball_count = 0.0
    for _, distance in _chunked_distances(b, a):  # (rows of b, N)
        is_within = distance <= real_radius
        precise_count += int(is_within.any(1).sum())
        ball_count += float(is_within.sum())
    for start, distance in _chunked_distances(a, b):  # (rows of a, M)
        recalled_count += int((distance <= generated_radius).any(1).sum())
        covered_count += int((distance.min(1).values <= real_radius[start : start + len(distance)]).sum())
    return PRDC(precise_count / len(b), recalled_count / len(a), ball_count / (k * len(b)), covered_count / len(a))


def _check_row_counts(a: Tensor, b: Tensor, min_rows: int) -> None:
    if min(len(a), len(b)) < min_rows:
        raise ValueError(f"{min(len(a), len(b))} images are too few: both sets need at least {min_rows}")


def _chunked_distances(p: Tensor, q: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The index of some rows of p, and their distances (rows, len(q)); an image's distance to itself is exactly 0."""
    for start in range(0, len(p), ROWS_PER_CHUNK):
        yield start, torch.cdist(p[start : start + ROWS_PER_CHUNK], q, compute_mode="donot_use_mm_for_euclid_dist")


def _neighborhood_radius(p: Tensor, k: int) -> Tensor:
    """(len(p),): the distance to the k-th nearest other row; the nearest is the row itself."""
    return torch.cat([distance.kthvalue(k + 1, dim=1).values for _, distance in _chunked_distances(p, p)])


def _matrix_sqrt(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix."""
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    root: Tensor = eigenvectors * eigenvalues.clamp(min=0).sqrt() @ eigenvectors.T
    return root
