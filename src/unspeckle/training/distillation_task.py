"""Distillation: a student learns to draw in 1, 2 or 4 steps what its teacher draws in many, guidance included.

The loss is plain regression on the teacher's own drawings (Luhman & Luhman 2021), segment by segment (the segments of
Heek et al. 2024 and of Wang et al. 2024, "Phased consistency models"), and the number of steps is an input of the
network (as in Frans et al. 2024). docs/recipe.md has the trials.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unspeckle import rng
from unspeckle.generation.request import Request
from unspeckle.model import Model, ModelCard
from unspeckle.prompts import escape_prompt
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.best_weights_task import load_for_inference
from unspeckle.training.model_task import ModelTask, Validator
from unspeckle.training.plan import DistillationPlan
from unspeckle.training.student_updater import StudentUpdater, init_student
from unspeckle.training.task import Stage
from unspeckle.training.teacher_trajectories import (
    DISTILLATION_SAMPLER,
    DISTILLATION_TIMESTEP_SPACING,
    TeacherTrajectories,
    draw_student_images,
    draw_teacher_trajectories,
    generate_teacher_trajectories,
    noise_shape,
)
from unspeckle.training.text_to_image_task import MAX_SAMPLE_PROMPTS, with_weights_name

VALIDATION_IMAGES = 32
VALIDATION_BATCH_SIZE = 16


class StudentResult(NamedTuple):
    """How a student's images differ from those that its teacher draws from the same noise."""

    # Mean of the relative errors
    total: float
    step_counts: tuple[int, ...]
    # Mean squared difference in each number of steps, as a share of that of the mean image
    relative_errors: tuple[float, ...]

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(map(str, self.step_counts))

    @property
    def levels_heading(self) -> str:
        return "steps"

    @property
    def summary(self) -> str:
        errors = zip(self.step_counts, self.relative_errors, strict=True)
        shares = ", ".join(f"{error:.1%} in {step_count}" for step_count, error in errors)
        return f"the student's images differ from the teacher's by {shares} steps of the mean image's error"


class DistillationTask(ModelTask):
    """Trains a student on its teacher's drawings.

    captions: what the teacher draws; validation_captions: what the student is judged by, not among them; card: of the
    student, but for which weights it is built of.
    """

    plan: DistillationPlan
    updater: StudentUpdater

    def __init__(
        self,
        plan: DistillationPlan,
        run_folder: Path,
        teacher: Model,
        *,
        captions: tuple[str, ...],
        validation_captions: tuple[str, ...],
        card: ModelCard,
    ) -> None:
        super().__init__(plan, run_folder, StudentUpdater(plan, teacher))
        self.teacher, self.card = teacher.to(plan.compute.device), card
        self.teacher_in_precision = copy_teacher_in_precision(teacher, plan)
        self.captions, self.validation_captions = captions, validation_captions

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("student", self.plan.work.steps),)

    def batches(self, start: int) -> Iterator[TeacherTrajectories]:
        ids = self._encode_captions(self.captions)
        return generate_teacher_trajectories(
            self.teacher_in_precision, ids, self.plan, first_index=start * self.plan.work.batch_size
        )

    def create_validator(self) -> Validator:
        shape = noise_shape(self.teacher, self.plan)
        x = rng.noise_from_seeds(range(VALIDATION_IMAGES), shape, self.updater.device)(-1, 0)
        captions = [self.validation_captions[i % len(self.validation_captions)] for i in range(VALIDATION_IMAGES)]
        ids = self._encode_captions(tuple(captions))
        batches = list(zip(torch.split(ids, VALIDATION_BATCH_SIZE), torch.split(x, VALIDATION_BATCH_SIZE), strict=True))
        trajectories = (draw_teacher_trajectories(self.teacher_in_precision, *batch, self.plan) for batch in batches)
        teacher_images = torch.cat([trajectory.points[-1] for trajectory in trajectories])
        variance = (teacher_images - teacher_images.mean(0)).square().mean()

        def relative_error(student: Model, step_count: int) -> float:
            images = [draw_student_images(student, student.text_encoder(ids), x, step_count) for ids, x in batches]
            return float((torch.cat(images) - teacher_images).square().mean() / variance)

        @torch.no_grad()
        def validate(model: Model) -> StudentResult:
            assert model.student is not None
            step_counts = self.plan.distillation.step_counts
            errors = tuple(relative_error(model.student, step_count) for step_count in step_counts)
            return StudentResult(sum(errors) / len(errors), step_counts, errors)

        return validate

    def build_model(self, tensors: list[Tensor], precision: str = "float32", weights_name: str = "") -> Model:
        """The teacher, and with it the student of these weights."""
        teacher = self.teacher if precision == "float32" else self.teacher_in_precision
        network = load_for_inference(init_student(self.teacher), tensors, precision, self.updater.device)
        return replace(teacher, student=teacher.with_network(network, with_weights_name(self.card, weights_name)))

    def sample_requests(self) -> list[Request]:
        steps, prompts = max(self.plan.distillation.step_counts), self.validation_captions[:MAX_SAMPLE_PROMPTS]
        return [Request(escape_prompt(prompt), seed=i, steps=steps) for i, prompt in enumerate(prompts)]

    def _encode_captions(self, captions: tuple[str, ...]) -> Tensor:
        tokenizer = self.teacher.tokenizer
        encode = tokenizer.encode_wordings if isinstance(tokenizer, Tokenizer) else tokenizer.encode
        return encode(captions).to(self.updater.device)


def copy_teacher_in_precision(teacher: Model, plan: DistillationPlan) -> Model:
    """A copy of the teacher on the plan's device and in its precision."""

    def copy_module(module: nn.Module) -> nn.Module:
        device = torch.device(plan.compute.device)
        return load_for_inference(copy.deepcopy(module), list(module.parameters()), plan.compute.precision, device)

    inference_teacher = teacher.with_network(copy_module(teacher.network), teacher.card)
    inference_teacher.text_encoder = copy_module(teacher.text_encoder)
    return inference_teacher


def student_card(teacher: Model, plan: DistillationPlan, recipe: str) -> ModelCard:
    """The student's card: how it was distilled, and what it draws with by default."""
    corpus = {
        "teacher": plan.distillation.teacher_hash,
        "guidance_scale": plan.distillation.guidance_scale,
        "images_seen": plan.work.total_images,
        "steps": plan.work.steps,
        "seed": plan.work.seed,
    }
    return replace(
        teacher.card,
        name=f"{teacher.card.name}, few steps",
        sampler=DISTILLATION_SAMPLER,
        timestep_spacing=DISTILLATION_TIMESTEP_SPACING,
        steps=max(plan.distillation.step_counts),
        guidance_scale=1.0,
        size=plan.model.size,
        step_counts=plan.distillation.step_counts,
        recipe=recipe,
        corpus=corpus,
    )
