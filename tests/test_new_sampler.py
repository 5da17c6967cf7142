"""A sampler needs one place, its entry in SAMPLERS: every model draws with it, and its images are replayed."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusers_drawings import SIZE, pipeline_and_model
from tiny_models import random_model
from unspeckle.denoiser import Denoise
from unspeckle.generation.metadata import image_metadata
from unspeckle.generation.pipeline import draw, steps
from unspeckle.generation.request import Request
from unspeckle.model import Model
from unspeckle.output.a1111_parameters import format_parameters, parse_parameters, request_options
from unspeckle.rng import NoiseFunction
from unspeckle.samplers import SAMPLERS, Step
from unspeckle.schedule import Schedule
from unspeckle.timesteps import TIMESTEP_SPACINGS


@torch.no_grad()
def toy(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: NoiseFunction) -> Iterator[Step]:
    """Euler's method, by another name."""
    yield from SAMPLERS["euler"](denoise, schedule, times, x, noise)


@pytest.fixture(params=["own", "1", "2", "xl"])
def model(request: Any, tmp_path_factory: Any) -> Model:
    return random_model() if request.param == "own" else pipeline_and_model(request.param, tmp_path_factory)[1]


def test_a_new_sampler_draws_with_every_model(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "toy", toy)
    size = model.card.size if type(model) is Model else SIZE
    for spacing in (None, *TIMESTEP_SPACINGS):
        found, expected = (
            list(steps(model, Request("a frog", sampler=sampler, timestep_spacing=spacing, steps=3, size=size)))
            for sampler in ("toy", "euler")
        )
        assert len(found) == 4 and torch.equal(found[-1].x, expected[-1].x), spacing


def test_its_images_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "toy", toy)
    (image,) = draw(random_model(), "a frog", sampler="toy", steps=2)
    metadata = image_metadata(image)
    assert metadata["sampler"] == "toy"
    assert request_options(parse_parameters(format_parameters(metadata)))["sampler"] == "toy"
