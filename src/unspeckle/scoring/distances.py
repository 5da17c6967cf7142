"""Distances between two sets of features: of real pictures (N, D) and of drawn ones (M, D). All work in float64."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROWS_PER_CHUNK = 1024  # of a table of distances held at once


def kid(real: Tensor, generated: Tensor) -> float:
    """The kernel inception distance: the unbiased squared maximum mean discrepancy under the kernel (a·b / D + 1)³
    (Bińkowski et al. 2018). 0 on average where both come from one distribution, so it can be negative."""
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
    """1000 times the squared maximum mean discrepancy under the kernel exp(-|a - b|² / 200), of CLIP's embeddings of
    length 1 (Jayasumana et al. 2024). Their estimate counts each picture with itself: at least 0, biased upwards."""
    a, b = real.double(), generated.double()

    def mean_kernel(p: Tensor, q: Tensor) -> float:
        return sum(float((-d.square() / 200).exp().sum()) for _, d in _chunked_distances(p, q)) / (len(p) * len(q))

    return 1000 * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """The squared Fréchet distance of the Gaussians fitted to both (Dowson & Landau 1982; Heusel et al. 2017).

    Biased upwards, by much where there are fewer pictures than a few times D.
    """
    a, b = real.double(), generated.double()
    _check_row_counts(a, b, 2)
    sqrt_covariance = _matrix_sqrt(torch.cov(a.T))
    cross_trace = torch.linalg.eigvalsh(sqrt_covariance @ torch.cov(b.T) @ sqrt_covariance).clamp(min=0).sqrt().sum()
    covariance_distance = a.var(0).sum() + b.var(0).sum() - 2 * cross_trace
    return float((a.mean(0) - b.mean(0)).square().sum() + covariance_distance)


class PRDC(NamedTuple):
    """Shares in [0, 1], but for the density, which is about 1 where both come from one distribution."""

    precision: float  # of drawn pictures that lie among real ones
    recall: float  # of real pictures that lie among drawn ones
    density: float  # in how many of k real neighbourhoods a drawn picture lies
    coverage: float  # of real pictures with a drawn one in their neighbourhood


def compute_prdc(real: Tensor, generated: Tensor, k: int = 5) -> PRDC:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020). A picture's
    neighbourhood is the ball to its k-th nearest other one."""
    a, b = real.double(), generated.double()
    _check_row_counts(a, b, k + 1)
    real_radius, generated_radius = _neighborhood_radius(a, k), _neighborhood_radius(b, k)
    precise_count = recalled_count = covered_count = 0
    ball_count = 0.0
    for _, distance in _chunked_distances(b, a):  # (some drawn, N)
        is_within = distance <= real_radius
        precise_count += int(is_within.any(1).sum())
        ball_count += float(is_within.sum())
    for start, distance in _chunked_distances(a, b):  # (some real, M)
        recalled_count += int((distance <= generated_radius).any(1).sum())
        covered_count += int((distance.min(1).values <= real_radius[start : start + len(distance)]).sum())
    return PRDC(precise_count / len(b), recalled_count / len(a), ball_count / (k * len(b)), covered_count / len(a))


def nearest_neighbors(generated: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """For each drawn picture the distance to the nearest training picture (M,), and which one that is (M,)."""
    minima = [distance.min(1) for _, distance in _chunked_distances(generated.double(), training.double())]
    return torch.cat([minimum.values for minimum in minima]), torch.cat([minimum.indices for minimum in minima])


def _check_row_counts(a: Tensor, b: Tensor, min_rows: int) -> None:
    if min(len(a), len(b)) < min_rows:
        raise ValueError(f"{min(len(a), len(b))} pictures are too few: {min_rows} are needed on both sides")


def _chunked_distances(p: Tensor, q: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Where some rows of p begin, and their distances to all of q; exact, so that a picture lies at 0 from itself."""
    for start in range(0, len(p), ROWS_PER_CHUNK):
        yield start, torch.cdist(p[start : start + ROWS_PER_CHUNK], q, compute_mode="donot_use_mm_for_euclid_dist")


def _neighborhood_radius(p: Tensor, k: int) -> Tensor:
    return torch.cat(
        [distance.kthvalue(k + 1, dim=1).values for _, distance in _chunked_distances(p, p)]
    )  # itself is first


def _matrix_sqrt(matrix: Tensor) -> Tensor:
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    root: Tensor = eigenvectors * eigenvalues.clamp(min=0).sqrt() @ eigenvectors.T
    return root
