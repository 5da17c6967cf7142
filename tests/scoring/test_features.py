"""Features: a scattering transform that does what its formula says, and a scale set by real images."""

import math

import pytest
import torch
from scoring_examples import random_images
from torch import Tensor

from unspeckle.scoring.features import (
    DIRECTIONS,
    FREQUENCY,
    LOG_OFFSET,
    ScatteringFeatures,
    WhitenedFeatures,
    to_opponent_colors,
)


def stripes(side: int, angle: float, frequency: float = FREQUENCY) -> Tensor:
    position = torch.arange(side, dtype=torch.float64)
    along = position * math.cos(angle) + position[:, None] * math.sin(angle)
    gray = ((frequency * along).sin() * 100 + 127.5).round().to(torch.uint8)
    return gray.expand(1, 3, side, side)


def test_the_numbers_are_those_of_this_version() -> None:
    """A change of the transform needs another hash: scores of two versions cannot be compared."""
    features = ScatteringFeatures()
    assert features.hash == "8fba898517fc"
    values = features(random_images(1, 3, 32, 32))[0]
    assert len(values) == 3 + 3 * 3 * DIRECTIONS + 3 * DIRECTIONS**2  # three scales at 32 pixels
    assert values[[0, 3, 30, 100, -1]].tolist() == pytest.approx(
        [-0.0207, -1.2402, -2.3847, -1.9702, -2.5555], abs=2e-3
    )


def test_a_flat_image_has_no_response() -> None:
    flat = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    values = ScatteringFeatures()(flat)[0]
    assert values[:3].tolist() == pytest.approx(to_opponent_colors(flat).mean((2, 3))[0].tolist(), abs=1e-6)
    assert values[3:].tolist() == pytest.approx([math.log(LOG_OFFSET)] * (len(values) - 3), abs=1e-3)


def test_each_wavelet_responds_to_its_own_direction_and_scale() -> None:
    features = ScatteringFeatures()
    for direction in range(DIRECTIONS):
        angle = math.pi * direction / DIRECTIONS
        fine = features(stripes(64, angle))[0, 3 : 3 + DIRECTIONS]  # gray, at full size
        assert int(fine.argmax()) == direction
        assert float(fine.exp()[direction]) > 3 * float(fine.exp()[(direction + 3) % DIRECTIONS])
    first = 3 + 3 * DIRECTIONS + 3 * DIRECTIONS**2  # where the responses at half size begin: 4 scales
    slow, fast = (features(stripes(64, 0, f))[0] for f in (FREQUENCY / 2, FREQUENCY))
    assert slow[first] > slow[3] and fast[3] > fast[first]


def test_a_rotation_by_90_degrees_rotates_the_directions() -> None:
    """Half of the six directions are the other half rotated by a right angle."""
    image = random_images(1, 3, 65, 65)
    values, rotated_values = (ScatteringFeatures()(p)[0] for p in (image, image.rot90(1, (2, 3))))
    gray, rotated_gray = values[3 : 3 + DIRECTIONS], rotated_values[3 : 3 + DIRECTIONS]
    assert torch.allclose(gray.roll(3), rotated_gray, atol=1e-4)


def test_color_channels_are_opponent() -> None:
    red, gray = (torch.tensor(c, dtype=torch.uint8).view(1, 3, 1, 1) for c in ([255, 0, 0], [90, 90, 90]))
    assert to_opponent_colors(gray).flatten().tolist() == pytest.approx([90 / 127.5 - 1, 0, 0], abs=1e-6)
    assert to_opponent_colors(red).flatten().tolist() == pytest.approx([-1 / 3, 2**0.5, 2 / 6**0.5], abs=1e-6)


def test_an_images_features_depend_on_it_alone() -> None:
    images = random_images(70, 3, 16, 16)
    features = ScatteringFeatures()(images)
    assert torch.allclose(features[66:67], ScatteringFeatures()(images[66:67]), atol=1e-5)


def test_whitened_real_images_vary_alike_in_every_direction() -> None:
    real = random_images(400, 3, 16, 16)
    real[:, :, :8] //= 3  # so that some directions vary more
    whitened = WhitenedFeatures(ScatteringFeatures(), real)
    whitened_features = whitened(real).double()
    assert whitened_features.shape[1] <= 100
    assert whitened_features.mean(0).abs().max() < 1e-3
    covariance = torch.cov(whitened_features.T)
    variance = covariance.diagonal()
    assert (covariance - variance.diag()).abs().max() < 1e-3
    assert variance.max() < 1 and variance[0] > 0.97  # a hundredth of the largest is added to each
    assert whitened.hash != WhitenedFeatures(ScatteringFeatures(), real.flip(0)[:-1]).hash
    assert whitened.hash == WhitenedFeatures(ScatteringFeatures(), real).hash
