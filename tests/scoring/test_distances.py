"""Distances: what their formulas say, computed by other means."""

import itertools

import pytest
import torch
from torch import Tensor

from unspeckle.scoring import distances
from unspeckle.scoring.distances import compute_prdc, frechet_distance, kid


def normal(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(count: int, mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """Points whose sample mean and covariance are exactly these."""
    x = normal(count, len(mean), seed)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return x @ torch.linalg.cholesky(covariance).T + mean


def test_kid_is_the_sum_over_pairs() -> None:
    a, b = normal(7, 3, 0), normal(5, 3, 1)

    def kernel(p: Tensor, q: Tensor) -> float:
        return float((p @ q / 3 + 1) ** 3)

    within_a = [kernel(p, q) for p, q in itertools.permutations(a, 2)]
    within_b = [kernel(p, q) for p, q in itertools.permutations(b, 2)]
    between = [kernel(p, q) for p in a for q in b]
    expected = sum(within_a) / len(within_a) + sum(within_b) / len(within_b) - 2 * sum(between) / len(between)
    assert kid(a, b) == pytest.approx(expected, rel=1e-12)


def test_kid_of_one_distribution_is_zero_on_average_even_for_few_images() -> None:
    values = torch.tensor([kid(normal(12, 4, 2 * i), normal(9, 4, 2 * i + 1)) for i in range(400)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / 400**0.5
    assert (values < 0).any()


def test_frechet_of_gaussians_with_known_moments() -> None:
    turn = torch.linalg.qr(normal(3, 3, 5)).Q
    first = turn @ torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)) @ turn.T
    second = turn @ torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)) @ turn.T
    mean = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
    a, b = with_moments(50, torch.zeros(3, dtype=torch.float64), first, 0), with_moments(40, mean, second, 1)
    expected = 9 + (1 - 2) ** 2 + (2 - 1) ** 2 + (3 - 0.5) ** 2  # the covariances commute
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_of_fewer_images_than_features() -> None:
    a, b = normal(6, 20, 0), normal(8, 20, 1)
    product = torch.cov(a.T) @ torch.cov(b.T)
    cross = torch.linalg.eigvals(product).real.clamp(min=0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_a_generator_of_one_of_two_kinds_is_precise_and_recalls_half() -> None:
    left, right = normal(40, 2, 0), normal(40, 2, 1) + 100
    prdc = compute_prdc(torch.cat([left, right]), left + 1e-9, k=3)
    assert prdc == (1.0, 0.5, pytest.approx(prdc.density), 0.5)
    assert prdc.density > 1  # every generated image is at a real one, inside that one's own ball, too


def test_neighborhoods_on_a_line_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # radii for k = 1: 1, 1, 2, 4
    generated = torch.tensor([[0.5], [4.5], [20.0]])  # radii: 4, 4, 15.5
    # 0.5 is in the balls of 0 and 1, not of 3 (2.5 > 2); 4.5 in those of 3 and 7; 20 in none
    # real ones in generated balls: 0 (0.5), 1 (0.5), 3 (0.5), 7 (4.5): all; covered: 0, 1, 3 (1.5 <= 2), 7 (2.5 <= 4)
    assert compute_prdc(real, generated, k=1) == (2 / 3, 1.0, 4 / 3, 1.0)
    assert compute_prdc(real, generated[2:].expand(2, 1) + torch.tensor([[0.0], [1.0]]), k=1) == (0.0, 0.0, 0.0, 0.0)


def test_large_matrices_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(30, 4, 0), normal(23, 4, 1)
    whole = kid(a, b), compute_prdc(a, b, 2)
    monkeypatch.setattr(distances, "ROWS_PER_CHUNK", 7)
    assert kid(a, b) == pytest.approx(whole[0], rel=1e-12)
    assert compute_prdc(a, b, 2) == whole[1]


def test_too_few_images_are_an_error() -> None:
    with pytest.raises(ValueError, match="4 images are too few: both sets need at least 6"):
        compute_prdc(normal(4, 2, 0), normal(9, 2, 1))
