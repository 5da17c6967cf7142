"""Features: a scattering transform that does what its closed form says, and a scale set by real pictures."""

import math

import pytest
import torch
from torch import Tensor

from unspeckle.scoring.features import (
    DIRECTIONS,
    FREQUENCY,
    LOG_OFFSET,
    ScatteringFeatures,
    WhitenedFeatures,
    to_opponent_colors,
)


def noise(count: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def stripes(side: int, angle: float, frequency: float = FREQUENCY) -> Tensor:
    place = torch.arange(side, dtype=torch.float64)
    along = place * math.cos(angle) + place[:, None] * math.sin(angle)
    grey = ((frequency * along).sin() * 100 + 127.5).round().to(torch.uint8)
    return grey.expand(1, 3, side, side)


def test_the_numbers_are_those_of_this_version() -> None:
    """Whoever changes the transform changes its version too: scores of two versions do not compare."""
    features = ScatteringFeatures()
    assert features.hash == "8fba898517fc"
    some = features(noise(1, 32))[0]
    assert len(some) == 3 + 3 * 3 * DIRECTIONS + 3 * DIRECTIONS**2  # three sizes at 32 pixels
    assert some[[0, 3, 30, 100, -1]].tolist() == pytest.approx([-0.0207, -1.2402, -2.3847, -1.9702, -2.5555], abs=2e-3)


def test_a_flat_picture_has_no_waves() -> None:
    flat = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    found = ScatteringFeatures()(flat)[0]
    assert found[:3].tolist() == pytest.approx(to_opponent_colors(flat).mean((2, 3))[0].tolist(), abs=1e-6)
    assert found[3:].tolist() == pytest.approx([math.log(LOG_OFFSET)] * (len(found) - 3), abs=1e-3)


def test_each_wave_answers_to_its_own_direction_and_size() -> None:
    features = ScatteringFeatures()
    for direction in range(DIRECTIONS):
        angle = math.pi * direction / DIRECTIONS
        fine = features(stripes(64, angle))[0, 3 : 3 + DIRECTIONS]  # grey, at full size
        assert int(fine.argmax()) == direction
        assert float(fine.exp()[direction]) > 3 * float(fine.exp()[(direction + 3) % DIRECTIONS])
    first = 3 + 3 * DIRECTIONS + 3 * DIRECTIONS**2  # where the waves of the half-sized picture begin: 4 sizes
    slow, fast = (features(stripes(64, 0, f))[0] for f in (FREQUENCY / 2, FREQUENCY))
    assert slow[first] > slow[3] and fast[3] > fast[first]


def test_turning_a_picture_by_a_quarter_turns_the_directions() -> None:
    """Half of the six directions are the other half turned by a right angle."""
    picture = noise(1, 65)
    found, turned = (ScatteringFeatures()(p)[0] for p in (picture, picture.rot90(1, (2, 3))))
    grey, other = found[3 : 3 + DIRECTIONS], turned[3 : 3 + DIRECTIONS]
    assert torch.allclose(grey.roll(3), other, atol=1e-4)


def test_colours_are_opponent() -> None:
    red, grey = (torch.tensor(c, dtype=torch.uint8).view(1, 3, 1, 1) for c in ([255, 0, 0], [90, 90, 90]))
    assert to_opponent_colors(grey).flatten().tolist() == pytest.approx([90 / 127.5 - 1, 0, 0], abs=1e-6)
    assert to_opponent_colors(red).flatten().tolist() == pytest.approx([-1 / 3, 2**0.5, 2 / 6**0.5], abs=1e-6)


def test_a_picture_s_features_hang_on_it_alone() -> None:
    some = noise(70, 16)
    whole = ScatteringFeatures()(some)
    assert torch.allclose(whole[66:67], ScatteringFeatures()(some[66:67]), atol=1e-5)


def test_whitened_real_pictures_vary_alike_in_every_direction() -> None:
    real = noise(400, 16)
    real[:, :, :8] //= 3  # so that some directions vary more
    whitened = WhitenedFeatures(ScatteringFeatures(), real)
    rows = whitened(real).double()
    assert rows.shape[1] <= 100
    assert rows.mean(0).abs().max() < 1e-3
    covariance = torch.cov(rows.T)
    spread = covariance.diagonal()
    assert (covariance - spread.diag()).abs().max() < 1e-3
    assert spread.max() < 1 and spread[0] > 0.97  # a hundredth of the widest is added to each
    assert whitened.hash != WhitenedFeatures(ScatteringFeatures(), real.flip(0)[:-1]).hash
    assert whitened.hash == WhitenedFeatures(ScatteringFeatures(), real).hash
