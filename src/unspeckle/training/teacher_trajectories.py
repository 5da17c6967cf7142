"""What a teacher shows its student: its own drawings on their way from noise, and where each stretch of them leads.

The teacher draws, with guidance, by `moves` steps of the one law on a grid that is shifted to noise. A student that
knows n steps sees each drawing cut into n equal stretches. From the place x_t where a stretch begins there is one
picture for which a single step of the law lands at its end x_s; that picture is what the student is taught. It is a
mean of the teacher's estimates along the stretch, so that it stays within the bounds of a picture.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unspeckle import guidance
from unspeckle.denoiser import Conditioning
from unspeckle.generation.few_step import FewStepDenoiser
from unspeckle.model import Model
from unspeckle.rng import ExampleRNG
from unspeckle.samplers import SAMPLERS
from unspeckle.schedule import Schedule
from unspeckle.timesteps import timesteps
from unspeckle.training.plan import DistilPlan

SAMPLER, GRID = "ddim", "shifted"  # the teacher's here, and the student's always
_CAPTION, _START = 8, 9  # a Stream's purposes


class Lessons(NamedTuple):
    """Some of the teacher's drawings."""

    points: Tensor  # (moves + 1, B, C, H, W), x_t at all times of the grid
    given: Conditioning  # B rows


class Stretch(NamedTuple):
    """From point `begin` to point `end` of a drawing, in one of `steps` steps."""

    begin: int
    end: int
    steps: int


def stretches(plan: DistilPlan) -> list[Stretch]:
    """All that a student learns of one drawing."""
    cuts = [(steps, plan.moves // steps) for steps in plan.counts]
    return [Stretch(i * long, (i + 1) * long, steps) for steps, long in cuts for i in range(steps)]


def target(points: Tensor, schedule: Schedule, grid: Tensor, stretch: Stretch) -> Tensor:
    """The picture towards which one step of the law leads from the stretch's begin to its end, (B, C, H, W)."""
    alpha, sigma = (level[[stretch.begin, stretch.end]].tolist() for level in schedule(grid))
    kept = sigma[1] / sigma[0]
    wanted: Tensor = (points[stretch.end] - kept * points[stretch.begin]) / (alpha[1] - kept * alpha[0])
    return wanted


def drawn(model: Model, givens: Sequence[Conditioning], x: Tensor, steps: int, scale: float) -> Tensor:
    """(steps + 1, B, C, H, W): a drawing's points from pure noise x, unit variance. givens: the wanted, the empty."""
    schedule = model.denoiser.schedule
    denoise = guidance.guided_denoise(model.denoiser, givens, guidance.classifier_free_guidance(scale))
    bounds: Any = model.autoencoder.bounds if model.card.clamp_denoised else None
    denoise = denoise if bounds is None else guidance.clamp_denoised(denoise, *bounds)
    way = timesteps(GRID, schedule, steps)
    start = float(schedule(way[0])[1]) * x
    return torch.stack([step.x for step in SAMPLERS[SAMPLER](denoise, schedule, way, start, lambda step, draw: x)])


@torch.no_grad()
def shown(teacher: Model, ids: Tensor, x: Tensor, plan: DistilPlan) -> Lessons:
    """The teacher's drawings of the captions (B, L) from the noise x (B, C, H, W)."""
    given = teacher.text_encoder(ids)
    nothing = teacher.text_encoder(teacher.tokenizer.encode([""]).to(ids.device).expand(len(ids), -1))
    return Lessons(drawn(teacher, [given, nothing], x, plan.moves, plan.scale), given)


@torch.no_grad()
def repeated(student: Model, given: Conditioning, x: Tensor, steps: int) -> Tensor:
    """The student's pictures (B, C, H, W) from the same, in so many steps."""
    counted = replace(student, denoiser=FewStepDenoiser(student.denoiser, steps))
    return drawn(counted, [given], x, steps, 1.0)[-1]


def lessons(teacher: Model, ids: Tensor, plan: DistilPlan, start: int) -> Iterator[Lessons]:
    """Batches of drawings without end, from the one numbered `start`, of the captions ids (N, L): each hangs on the
    plan's seed and its own number alone."""
    shape = noise_shape(teacher, plan)
    while True:
        stream = ExampleRNG(plan.seed, torch.arange(start, start + plan.batch, device=ids.device))
        which = (stream.uniform(_CAPTION) * len(ids)).long().clamp(max=len(ids) - 1)
        yield shown(teacher, ids[which], stream.normal(_START, shape), plan)
        start += plan.batch


def noise_shape(teacher: Model, plan: DistilPlan) -> tuple[int, int, int]:
    """(C, H, W) of what is denoised."""
    width, height = (side // teacher.autoencoder.factor for side in plan.size)
    return teacher.autoencoder.channels, height, width
