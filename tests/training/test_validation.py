"""Validation at fixed times that stand for those of training."""

import pytest
import torch

from unspeckle.objective import Objective
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import CosineSchedule, FlowSchedule, Schedule, VESchedule
from unspeckle.training.validation import NOISE_LEVELS, quantile_times


@pytest.mark.parametrize("time_distribution", ["uniform", "logit_normal", "edm"])
@pytest.mark.parametrize(
    "schedule", [FlowSchedule(), VESchedule(), CosineSchedule()], ids=lambda schedule: type(schedule).__name__
)
def test_validation_times_are_quantiles_of_those_of_training(time_distribution: str, schedule: Schedule) -> None:
    """An eighth of the times of training lies about each of the eight, half of it below."""
    objective = Objective(time_distribution, -0.3, 1.1)
    times = objective.sample_times(ExampleRNG(3, torch.arange(40_000)), schedule).double()
    below = (times[None] < quantile_times(objective, schedule).double()[:, None]).double().mean(1)
    assert below.tolist() == pytest.approx([(i + 0.5) / NOISE_LEVELS for i in range(NOISE_LEVELS)], abs=0.01)
