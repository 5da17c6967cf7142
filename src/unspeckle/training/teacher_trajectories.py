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

DISTILLATION_SAMPLER, DISTILLATION_TIMESTEP_SPACING = "ddim", "shifted"  # the teacher's here, and the student's always
_CAPTION, _START = 8, 9  # a Stream's purposes


class TeacherTrajectories(NamedTuple):
    """Some of the teacher's drawings."""

    points: Tensor  # (moves + 1, B, C, H, W), x_t at all times of the grid
    conditioning: Conditioning  # B rows


class Segment(NamedTuple):
    """From point `begin` to point `end` of a drawing, in one of `steps` steps."""

    start: int
    end: int
    step_count: int


def list_segments(plan: DistilPlan) -> list[Segment]:
    """All that a student learns of one drawing."""
    segment_lengths = [(step_count, plan.teacher_steps // step_count) for step_count in plan.step_counts]
    return [Segment(i * length, (i + 1) * length, steps) for steps, length in segment_lengths for i in range(steps)]


def segment_target(points: Tensor, schedule: Schedule, time_grid: Tensor, segment: Segment) -> Tensor:
    """The picture towards which one step of the law leads from the stretch's begin to its end, (B, C, H, W)."""
    alpha, sigma = (level[[segment.start, segment.end]].tolist() for level in schedule(time_grid))
    sigma_ratio = sigma[1] / sigma[0]
    target_image: Tensor = (points[segment.end] - sigma_ratio * points[segment.start]) / (
        alpha[1] - sigma_ratio * alpha[0]
    )
    return target_image


def draw_trajectory(
    model: Model, conditionings: Sequence[Conditioning], x: Tensor, steps: int, guidance_scale: float
) -> Tensor:
    """(steps + 1, B, C, H, W): a drawing's points from pure noise x, unit variance. givens: the wanted, the empty."""
    schedule = model.denoiser.schedule
    denoise = guidance.guided_denoise(model.denoiser, conditionings, guidance.classifier_free_guidance(guidance_scale))
    bounds: Any = model.autoencoder.latent_bounds if model.card.clamp_denoised else None
    denoise = denoise if bounds is None else guidance.clamp_denoised(denoise, *bounds)
    time_grid = timesteps(DISTILLATION_TIMESTEP_SPACING, schedule, steps)
    x_start = float(schedule(time_grid[0])[1]) * x
    return torch.stack(
        [step.x for step in SAMPLERS[DISTILLATION_SAMPLER](denoise, schedule, time_grid, x_start, lambda step, draw: x)]
    )


@torch.no_grad()
def draw_teacher_trajectories(teacher: Model, ids: Tensor, x: Tensor, plan: DistilPlan) -> TeacherTrajectories:
    """The teacher's drawings of the captions (B, L) from the noise x (B, C, H, W)."""
    conditioning = teacher.text_encoder(ids)
    empty_conditioning = teacher.text_encoder(teacher.tokenizer.encode([""]).to(ids.device).expand(len(ids), -1))
    return TeacherTrajectories(
        draw_trajectory(teacher, [conditioning, empty_conditioning], x, plan.teacher_steps, plan.guidance_scale),
        conditioning,
    )


@torch.no_grad()
def draw_student_images(student: Model, conditioning: Conditioning, x: Tensor, steps: int) -> Tensor:
    """The student's pictures (B, C, H, W) from the same, in so many steps."""
    few_step_student = replace(student, denoiser=FewStepDenoiser(student.denoiser, steps))
    return draw_trajectory(few_step_student, [conditioning], x, steps, 1.0)[-1]


def generate_teacher_trajectories(
    teacher: Model, ids: Tensor, plan: DistilPlan, first_index: int
) -> Iterator[TeacherTrajectories]:
    """Batches of drawings without end, from the one numbered `start`, of the captions ids (N, L): each hangs on the
    plan's seed and its own number alone."""
    shape = noise_shape(teacher, plan)
    while True:
        rng = ExampleRNG(plan.seed, torch.arange(first_index, first_index + plan.batch_size, device=ids.device))
        caption_indices = (rng.uniform(_CAPTION) * len(ids)).long().clamp(max=len(ids) - 1)
        yield draw_teacher_trajectories(teacher, ids[caption_indices], rng.normal(_START, shape), plan)
        first_index += plan.batch_size


def noise_shape(teacher: Model, plan: DistilPlan) -> tuple[int, int, int]:
    """(C, H, W) of what is denoised."""
    width, height = (side // teacher.autoencoder.downsampling_factor for side in plan.size)
    return teacher.autoencoder.latent_channels, height, width
