"""What a student learns from: its teacher's own drawings on their way from noise, and where each segment of them leads.

The teacher draws, with guidance, by teacher_steps steps of DDIM at times that are shifted to noise. For a student of n
steps each of its trajectories is cut into n equal segments. At the beginning x_t of a segment there is one image for
which a single step of DDIM arrives at its end x_s; that image is the student's target. It is a mean of the teacher's
estimates along the segment, so that it stays within the bounds of an image.
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
from unspeckle.training.plan import DistillationPlan, DistillationSettings

# The teacher's while it teaches, and the student's always
DISTILLATION_SAMPLER, DISTILLATION_TIMESTEP_SPACING = "ddim", "shifted"
# Purposes of an ExampleRNG
_CAPTION, _INITIAL_NOISE = 8, 9


class TeacherTrajectories(NamedTuple):
    """Some of the teacher's drawings."""

    # x_t at all times of the teacher, (teacher_steps + 1, B, C, H, W)
    points: Tensor
    # Of B rows
    conditioning: Conditioning


class Segment(NamedTuple):
    """A part of a trajectory that the student takes in one of step_count steps."""

    # Indices of its first and its last point
    start: int
    end: int
    step_count: int


def list_segments(settings: DistillationSettings) -> list[Segment]:
    """All segments of a trajectory, for each number of steps that the student learns."""
    segment_lengths = [(count, settings.teacher_steps // count) for count in settings.step_counts]
    return [Segment(i * length, (i + 1) * length, count) for count, length in segment_lengths for i in range(count)]


def segment_target(points: Tensor, schedule: Schedule, times: Tensor, segment: Segment) -> Tensor:
    """The image (B, C, H, W) for which one step of DDIM leads from the segment's start to its end.

    Solves x_s = alpha_s · x̂ + sigma_s / sigma_t · (x_t - alpha_t · x̂) for x̂."""
    alpha, sigma = (level[[segment.start, segment.end]].tolist() for level in schedule(times))
    ratio = sigma[1] / sigma[0]
    target: Tensor = (points[segment.end] - ratio * points[segment.start]) / (alpha[1] - ratio * alpha[0])
    return target


def draw_trajectory(
    model: Model, conditionings: Sequence[Conditioning], x: Tensor, steps: int, guidance_scale: float
) -> Tensor:
    """The points (steps + 1, B, C, H, W) of a drawing that begins with noise x of unit variance.

    conditionings: of the captions, and of empty ones if there is guidance."""
    schedule = model.denoiser.schedule
    denoise = guidance.build_guided_denoise(
        model.denoiser, conditionings, guidance.classifier_free_guidance(guidance_scale)
    )
    bounds: Any = model.autoencoder.latent_bounds if model.card.clamp_denoised else None
    denoise = denoise if bounds is None else guidance.clamp_denoised(denoise, *bounds)
    times = timesteps(DISTILLATION_TIMESTEP_SPACING, schedule, steps)
    x_start = float(schedule(times[0])[1]) * x
    sample = SAMPLERS[DISTILLATION_SAMPLER]
    return torch.stack([step.x for step in sample(denoise, schedule, times, x_start, lambda step, draw: x)])


@torch.no_grad()
def draw_teacher_trajectories(teacher: Model, ids: Tensor, x: Tensor, plan: DistillationPlan) -> TeacherTrajectories:
    """The teacher's drawings of captions, ids (B, L), from the noise x (B, C, H, W)."""
    settings = plan.distillation
    conditioning = teacher.text_encoder(ids)
    empty_conditioning = teacher.text_encoder(teacher.tokenizer.encode([""]).to(ids.device).expand(len(ids), -1))
    conditionings = [conditioning, empty_conditioning]
    points = draw_trajectory(teacher, conditionings, x, settings.teacher_steps, settings.guidance_scale)
    return TeacherTrajectories(points, conditioning)


@torch.no_grad()
def draw_student_images(student: Model, conditioning: Conditioning, x: Tensor, steps: int) -> Tensor:
    """The student's images (B, C, H, W) from the same noise, in that many steps."""
    few_step_student = replace(student, denoiser=FewStepDenoiser(student.denoiser, steps))
    return draw_trajectory(few_step_student, [conditioning], x, steps, 1.0)[-1]


def generate_teacher_trajectories(
    teacher: Model, ids: Tensor, plan: DistillationPlan, first_index: int
) -> Iterator[TeacherTrajectories]:
    """Batches of drawings without end, beginning with drawing number first_index, of captions chosen from ids (N, L). A
    drawing depends on the plan's seed and its number alone."""
    shape, work = noise_shape(teacher, plan), plan.work
    while True:
        rng = ExampleRNG(work.seed, torch.arange(first_index, first_index + work.batch_size, device=ids.device))
        caption_indices = (rng.uniform(_CAPTION) * len(ids)).long().clamp(max=len(ids) - 1)
        yield draw_teacher_trajectories(teacher, ids[caption_indices], rng.normal(_INITIAL_NOISE, shape), plan)
        first_index += work.batch_size


def noise_shape(teacher: Model, plan: DistillationPlan) -> tuple[int, int, int]:
    """(C, H, W) of what is denoised."""
    width, height = (side // teacher.autoencoder.downsampling_factor for side in plan.model.size)
    return teacher.autoencoder.latent_channels, height, width
