"""Students: networks that a teacher taught to draw in few steps, and who of the two draws what is asked.

A student's estimate is not the picture expected now, but the one towards which the teacher moves, guidance and all,
over the whole stretch ahead: one step of the law lands where the teacher's many would. How long it is, it is told.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unspeckle.denoiser import Denoiser, Conditioning
from unspeckle.errors import InputError
from unspeckle.model import ModelCard, Model

GUIDANCE_DEFAULTS = {
    "guidance": "cfg",
    "rescale": 0.0,
    "interval": None,
    "guide": None,
}  # what an unguided drawing leaves so


def with_step_count(conditioning: Conditioning, steps: Tensor) -> Conditioning:
    """Join log2 of each row's number of steps (B,) to what the network is told beside the words and the time."""
    number = torch.log2(steps.float())[:, None].to(conditioning.tokens)
    return conditioning._replace(
        vector=number if conditioning.vector is None else torch.cat([conditioning.vector, number], dim=1)
    )


class FewStepDenoiser(Denoiser):
    """A student's denoiser for drawings of so many steps: its estimates are for the stretches of `times` at that."""

    def __init__(self, student: Denoiser, steps: int) -> None:
        super().__init__(student.network, student.schedule, student.prediction, student.clock)
        self.steps = steps

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return super().forward(
            x_t, t, with_step_count(conditioning, torch.full((len(x_t),), self.steps, device=x_t.device))
        )


def select_network(model: Model, request: Any) -> Model:
    """Who draws an Ask or an Order: the student, where the ask's steps are among those that it knows and no negative
    words, scale, sampler or grid but its own are asked for; else the model itself.

    InputError where the model is a student without its teacher, and cannot.
    """
    student = model if model.card.step_counts else model.student
    if student is None:
        return model
    card, unsupported = student.card, unsupported_option(student.card, request)
    steps = card.steps if request.steps is None and student is model else request.steps
    if steps in card.step_counts and not unsupported:
        return replace(student, denoiser=FewStepDenoiser(student.denoiser, steps))
    if student is not model:
        return model
    known = ", ".join(map(str, card.step_counts))
    if unsupported:
        raise InputError(f"{unsupported}: this model was distilled to few steps; leave it out")
    raise InputError(f"steps {steps!r}: this model was distilled to {known} steps; choose one of these")


def why_not_student(model: Model, request: Any) -> str:
    """What keeps a student from an ask in steps that it knows, so that its teacher draws it; else nothing."""
    if model.student is None or request.steps not in model.student.card.step_counts:
        return ""
    return unsupported_option(model.student.card, request)


def unsupported_option(card: ModelCard, request: Any) -> str:
    """The first of the ask's wishes that a student with that card knows nothing of, if there is one."""
    own = ((name, getattr(request, name), getattr(card, name)) for name in ("sampler", "grid", "scale"))
    foreign = [f"{name} {value!r}" for name, value, mine in own if value not in (None, mine)]
    foreign += ["negative words"] if request.negative else []
    return next(
        iter(foreign + [f"{name} set" for name, usual in GUIDANCE_DEFAULTS.items() if getattr(request, name) != usual]),
        "",
    )
