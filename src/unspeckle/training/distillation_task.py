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
from unspeckle.generation.few_step import with_step_count
from unspeckle.generation.pipeline import Request
from unspeckle.guidance import concatenate
from unspeckle.model import ModelCard, Model
from unspeckle.prompts import escape
from unspeckle.timesteps import timesteps
from unspeckle.training.loop import Course, Judge, copied
from unspeckle.training.master_weights import Learner, Weights
from unspeckle.training.plan import DistilPlan
from unspeckle.training.teacher_trajectories import (
    GRID,
    SAMPLER,
    Lessons,
    lessons,
    noise_shape,
    repeated,
    shown,
    stretches,
    target,
)

HELD_OUT = 32  # drawings
TOGETHER = 16  # of them in a batch


def beginner(teacher: Model) -> nn.Module:
    """The student before its first lesson: its teacher's network, with one more number to be told and deaf to it."""
    network: Any = teacher.network
    vector = teacher.text_encoder(teacher.tokenizer.encode([""]).to(teacher.device)).vector
    config = replace(network.config, vector_width=1 + (0 if vector is None else vector.shape[1]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student: nn.Module = type(network)(config)
    held, own = network.state_dict(), student.state_dict()
    for name, tensor in own.items():
        if name in held:
            wider = tensor.shape[-1] - held[name].shape[-1] if tensor.ndim else 0
            own[name] = F.pad(held[name], (0, wider)) if wider else held[name]
        elif name.startswith("vector2."):  # a network that was told nothing beside time and words
            own[name] = torch.zeros_like(tensor)
    student.load_state_dict(own)
    return student


class Pupil(Learner):
    """A learner of lessons; its weights are the network's alone."""

    plan: DistilPlan

    def loss(self, batch: Lessons, step: int = 0) -> Tensor:  # type: ignore[override]
        """Mean over all stretches of all drawings of the squared error, weighted as the teacher's training was."""
        schedule, count = self.denoiser.schedule, batch.points.shape[1]
        grid, all_ = timesteps(GRID, schedule, self.plan.moves), stretches(self.plan)
        x_t = torch.cat([batch.points[stretch.begin] for stretch in all_])
        wanted = torch.cat([target(batch.points, schedule, grid, stretch) for stretch in all_])
        t = grid[[stretch.begin for stretch in all_]].to(self.device, torch.float32).repeat_interleave(count)
        steps = torch.tensor([stretch.steps for stretch in all_], device=self.device).repeat_interleave(count)
        estimate = self.denoiser(x_t, t, with_step_count(concatenate([batch.given] * len(all_)), steps))
        weight = self.objective.loss_weight(t, schedule, self.denoiser.prediction)
        loss: Tensor = (weight * (estimate - wanted).square().mean((1, 2, 3))).mean()
        return loss


class Likeness(NamedTuple):
    """How a student's pictures differ from its teacher's of the same noise: at each of `counts` of steps the mean
    squared error as a share of that of their mean picture; total: the mean of the shares."""

    total: float
    counts: tuple[int, ...]
    shares: tuple[float, ...]

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(map(str, self.counts))

    @property
    def heading(self) -> str:
        return "steps"

    @property
    def said(self) -> str:
        each = (f"{share:.1%} in {steps}" for steps, share in zip(self.counts, self.shares, strict=True))
        return (
            f"of the mean picture's error, the student's pictures differ from the teacher's by {', '.join(each)} steps"
        )


@dataclass
class Distilling(Course):
    """A course on a teacher's drawings. captions: to learn from; held_out: to be judged by, not among them."""

    plan: DistilPlan
    teacher: Model
    captions: tuple[str, ...]
    held_out: tuple[str, ...]
    card: ModelCard  # the student's

    def learns(self) -> Learner:
        return pupil(self.plan, self.teacher)

    @cached_property
    def working(self) -> Model:
        """The teacher in the precision of the work."""
        return hired(self.teacher, self.plan)

    def ids(self, captions: tuple[str, ...]) -> Tensor:
        return self.teacher.tokenizer.encode(captions).to(self.learner.device)

    def data(self, done: int) -> Iterator[Lessons]:
        return lessons(self.working, self.ids(self.captions), self.plan, done * self.plan.batch)

    def judge(self) -> Judge:
        plan = self.plan
        x = rng.noise_from_seeds(range(HELD_OUT), noise_shape(self.teacher, plan), self.learner.device)(-1, 0)
        ids = self.ids(tuple(self.held_out[i % len(self.held_out)] for i in range(HELD_OUT)))
        parts = [(ids[i : i + TOGETHER], x[i : i + TOGETHER]) for i in range(0, HELD_OUT, TOGETHER)]
        wanted = torch.cat([shown(self.working, *part, plan).points[-1] for part in parts])
        spread = (wanted - wanted.mean(0)).square().mean()

        @torch.no_grad()
        def judged(model: Model) -> Likeness:
            student = model.student
            assert student is not None
            shares = []
            for steps in plan.counts:
                found = torch.cat([repeated(student, student.text_encoder(ids), x, steps) for ids, x in parts])
                shares.append(float((found - wanted).square().mean() / spread))
            return Likeness(sum(shares) / len(shares), plan.counts, tuple(shares))

        return judged

    def model(self, tensors: list[Tensor], precision: str = "float32", weights: str = "") -> Model:
        teacher = self.teacher.to(self.learner.device) if precision == "float32" else self.working
        network = copied(beginner(self.teacher), tensors, precision, self.learner.device)
        card = replace(self.card, corpus={**self.card.corpus, "weights": weights}) if weights else self.card
        return replace(teacher, student=teacher.with_network(network, card))

    def asks(self) -> list[Request]:
        return [Request(escape(prompt), seed=i, steps=max(self.plan.counts)) for i, prompt in enumerate(self.held_out[:16])]


def pupil(plan: DistilPlan, teacher: Model) -> Pupil:
    """A pupil that knows nothing yet but what its teacher knows."""
    return Pupil(plan, Weights(beginner(teacher), nn.Identity()), teacher.tokenizer, teacher.autoencoder)


def hired(teacher: Model, plan: DistilPlan) -> Model:
    """A copy of the teacher on the plan's device and in its precision."""

    def part(module: nn.Module) -> nn.Module:
        return copied(copy.deepcopy(module), list(module.parameters()), plan.precision, torch.device(plan.device))

    hired = teacher.with_network(part(teacher.network), teacher.card)
    hired.text_encoder = part(teacher.text_encoder)
    return hired


def card(teacher: Model, plan: DistilPlan, recipe: str) -> ModelCard:
    """What a person should know of the student."""
    summary = {"teacher": plan.teacher, "scale": plan.scale, "pictures_seen": plan.pictures, "steps": plan.steps}
    return replace(
        teacher.card, name=f"{teacher.card.name}, few steps", sampler=SAMPLER, grid=GRID, steps=max(plan.counts),
        scale=1.0, size=plan.size, few=plan.counts, recipe=recipe, corpus={**summary, "seed": plan.seed},
    )  # fmt: skip
