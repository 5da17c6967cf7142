"""Distilling: a student learns to take in 1, 2 or 4 steps the way that its teacher takes in many, guidance included.

Plain regression on the teacher's own drawings (Luhman & Luhman 2021), stretch by stretch (the segments of Heek et al.
2024 and Wang et al. 2024, "Phased consistency models"), the network told how many steps there are (as Frans et al. 2024
tell theirs). docs/recipe.md has the trials.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle import rng
from unspeckle.denoiser import concatenate
from unspeckle.generation.few_step import with_step_count
from unspeckle.generation.request import Request
from unspeckle.model import Model, ModelCard
from unspeckle.prompts import escape_prompt
from unspeckle.timesteps import timesteps
from unspeckle.training.loop import TrainingTask, Validator, load_for_inference
from unspeckle.training.master_weights import TextToImageUpdater, TrainableModules
from unspeckle.training.plan import DistilPlan
from unspeckle.training.teacher_trajectories import (
    DISTILLATION_SAMPLER,
    DISTILLATION_TIMESTEP_SPACING,
    TeacherTrajectories,
    draw_student_images,
    draw_teacher_trajectories,
    generate_teacher_trajectories,
    list_segments,
    noise_shape,
    segment_target,
)

DISTILLATION_VALIDATION_IMAGES = 32  # drawings
VALIDATION_BATCH_SIZE = 16  # of them in a batch


def init_student(teacher: Model) -> nn.Module:
    """The student before its first lesson: its teacher's network, with one more number to be told and deaf to it."""
    network: Any = teacher.network
    pooled_vector = teacher.text_encoder(teacher.tokenizer.encode([""]).to(teacher.device)).vector
    config = replace(network.config, vector_width=1 + (0 if pooled_vector is None else pooled_vector.shape[1]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student: nn.Module = type(network)(config)
    teacher_state, student_state = network.state_dict(), student.state_dict()
    for name, tensor in student_state.items():
        if name in teacher_state:
            padding = tensor.shape[-1] - teacher_state[name].shape[-1] if tensor.ndim else 0
            student_state[name] = F.pad(teacher_state[name], (0, padding)) if padding else teacher_state[name]
        elif name.startswith("vector_embed_2."):  # a network that was told nothing beside time and words
            student_state[name] = torch.zeros_like(tensor)
    student.load_state_dict(student_state)
    return student


class StudentUpdater(TextToImageUpdater):
    """A learner of lessons; its weights are the network's alone."""

    plan: DistilPlan

    def loss(self, batch: TeacherTrajectories, step: int = 0) -> Tensor:  # type: ignore[override]
        """Mean over all stretches of all drawings of the squared error, weighted as the teacher's training was."""
        schedule, count = self.denoiser.schedule, batch.points.shape[1]
        time_grid, segments = (
            timesteps(DISTILLATION_TIMESTEP_SPACING, schedule, self.plan.teacher_steps),
            list_segments(self.plan),
        )
        x_t = torch.cat([batch.points[segment.start] for segment in segments])
        targets = torch.cat([segment_target(batch.points, schedule, time_grid, segment) for segment in segments])
        t = time_grid[[segment.start for segment in segments]].to(self.device, torch.float32).repeat_interleave(count)
        step_counts = torch.tensor([segment.step_count for segment in segments], device=self.device).repeat_interleave(
            count
        )
        denoised = self.denoiser(
            x_t, t, with_step_count(concatenate([batch.conditioning] * len(segments)), step_counts)
        )
        weight = self.objective.loss_weight(t, schedule, self.denoiser.prediction)
        loss: Tensor = (weight * (denoised - targets).square().mean((1, 2, 3))).mean()
        return loss


class StudentResult(NamedTuple):
    """How a student's pictures differ from its teacher's of the same noise: at each of `counts` of steps the mean
    squared error as a share of that of their mean picture; total: the mean of the shares."""

    total: float
    step_counts: tuple[int, ...]
    relative_errors: tuple[float, ...]

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(map(str, self.step_counts))

    @property
    def levels_heading(self) -> str:
        return "steps"

    @property
    def summary(self) -> str:
        error_texts = (
            f"{error:.1%} in {step_count}"
            for step_count, error in zip(self.step_counts, self.relative_errors, strict=True)
        )
        return f"of the mean picture's error, the student's pictures differ from the teacher's by {', '.join(error_texts)} steps"


@dataclass
class DistillationTask(TrainingTask):
    """A course on a teacher's drawings. captions: to learn from; held_out: to be judged by, not among them."""

    plan: DistilPlan
    teacher: Model
    captions: tuple[str, ...]
    validation_captions: tuple[str, ...]
    card: ModelCard  # the student's

    def create_updater(self) -> TextToImageUpdater:
        return create_student_updater(self.plan, self.teacher)

    @cached_property
    def teacher_in_precision(self) -> Model:
        """The teacher in the precision of the work."""
        return copy_teacher_in_precision(self.teacher, self.plan)

    def encode_captions(self, captions: tuple[str, ...]) -> Tensor:
        return self.teacher.tokenizer.encode(captions).to(self.updater.device)

    def batches(self, steps_done: int) -> Iterator[TeacherTrajectories]:
        return generate_teacher_trajectories(
            self.teacher_in_precision, self.encode_captions(self.captions), self.plan, steps_done * self.plan.batch_size
        )

    def create_validator(self) -> Validator:
        plan = self.plan
        x = rng.noise_from_seeds(
            range(DISTILLATION_VALIDATION_IMAGES), noise_shape(self.teacher, plan), self.updater.device
        )(-1, 0)
        ids = self.encode_captions(
            tuple(
                self.validation_captions[i % len(self.validation_captions)]
                for i in range(DISTILLATION_VALIDATION_IMAGES)
            )
        )
        id_noise_pairs = [
            (ids[i : i + VALIDATION_BATCH_SIZE], x[i : i + VALIDATION_BATCH_SIZE])
            for i in range(0, DISTILLATION_VALIDATION_IMAGES, VALIDATION_BATCH_SIZE)
        ]
        teacher_images = torch.cat(
            [draw_teacher_trajectories(self.teacher_in_precision, *pair, plan).points[-1] for pair in id_noise_pairs]
        )
        variance = (teacher_images - teacher_images.mean(0)).square().mean()

        @torch.no_grad()
        def validate(model: Model) -> StudentResult:
            student = model.student
            assert student is not None
            relative_errors = []
            for step_count in plan.step_counts:
                student_images = torch.cat(
                    [
                        draw_student_images(student, student.text_encoder(ids), x, step_count)
                        for ids, x in id_noise_pairs
                    ]
                )
                relative_errors.append(float((student_images - teacher_images).square().mean() / variance))
            return StudentResult(sum(relative_errors) / len(relative_errors), plan.step_counts, tuple(relative_errors))

        return validate

    def build_model(self, tensors: list[Tensor], precision: str = "float32", weights_name: str = "") -> Model:
        teacher = self.teacher.to(self.updater.device) if precision == "float32" else self.teacher_in_precision
        network = load_for_inference(init_student(self.teacher), tensors, precision, self.updater.device)
        card = replace(self.card, corpus={**self.card.corpus, "weights": weights_name}) if weights_name else self.card
        return replace(teacher, student=teacher.with_network(network, card))

    def sample_requests(self) -> list[Request]:
        return [
            Request(escape_prompt(prompt), seed=i, steps=max(self.plan.step_counts))
            for i, prompt in enumerate(self.validation_captions[:16])
        ]


def create_student_updater(plan: DistilPlan, teacher: Model) -> StudentUpdater:
    """A pupil that knows nothing yet but what its teacher knows."""
    return StudentUpdater(
        plan, TrainableModules(init_student(teacher), nn.Identity()), teacher.tokenizer, teacher.autoencoder
    )


def copy_teacher_in_precision(teacher: Model, plan: DistilPlan) -> Model:
    """A copy of the teacher on the plan's device and in its precision."""

    def copy_module(module: nn.Module) -> nn.Module:
        return load_for_inference(
            copy.deepcopy(module), list(module.parameters()), plan.precision, torch.device(plan.device)
        )

    inference_teacher = teacher.with_network(copy_module(teacher.network), teacher.card)
    inference_teacher.text_encoder = copy_module(teacher.text_encoder)
    return inference_teacher


def student_card(teacher: Model, plan: DistilPlan, recipe: str) -> ModelCard:
    """What a person should know of the student."""
    summary = {
        "teacher": plan.teacher_hash,
        "scale": plan.guidance_scale,
        "pictures_seen": plan.total_images,
        "steps": plan.steps,
    }
    return replace(
        teacher.card, name=f"{teacher.card.name}, few steps", sampler=DISTILLATION_SAMPLER, timestep_spacing=DISTILLATION_TIMESTEP_SPACING, steps=max(plan.step_counts),
        guidance_scale=1.0, size=plan.size, step_counts=plan.step_counts, recipe=recipe, corpus={**summary, "seed": plan.seed},
    )  # fmt: skip
