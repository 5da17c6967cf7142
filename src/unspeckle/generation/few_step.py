"""Students: networks that learned from a teacher to draw in few steps, and which of the two draws a request.

A student's x̂ is not the image that is expected now, but the one towards which its teacher moves, guidance and all, over
the whole segment ahead: one DDIM step lands where the teacher's many would. The network sees how many steps there are.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unspeckle.denoiser import AnyConditioning, Denoiser, SomeConditioning, with_fields
from unspeckle.errors import InputError
from unspeckle.model import Model, ModelCard

GUIDANCE_DEFAULTS = {  # the values of a request's options of guidance where nobody asked for them
    "guidance_method": "cfg", "guidance_rescale": 0.0, "guidance_interval": None, "guide_model": None,
}  # fmt: skip


def with_step_count(conditioning: SomeConditioning, steps: Tensor) -> SomeConditioning:
    """The conditioning with log2 of each row's number of steps (B,) appended to its vector."""
    number = torch.log2(steps.float())[:, None].to(conditioning[0])
    vector = conditioning.vector
    return with_fields(conditioning, vector=number if vector is None else torch.cat([vector, number], dim=1))


class FewStepDenoiser(Denoiser):
    """A student's denoiser for drawings of that many steps."""

    def __init__(self, student: Denoiser, steps: int) -> None:
        super().__init__(student.network, student.schedule, student.prediction, student.time_conditioning)
        self.steps = steps

    def forward(self, x_t: Tensor, t: Tensor, conditioning: AnyConditioning) -> Tensor:
        steps = torch.full((len(x_t),), self.steps, device=x_t.device)
        return super().forward(x_t, t, with_step_count(conditioning, steps))


def select_network(model: Model, request: Any) -> Model:
    """Who draws a request: the student, where it knows the step count and no negative prompt, guidance scale, sampler or
    timestep spacing but its own is asked for; else the model itself.

    InputError where the model is a student without its teacher, and cannot draw it."""
    student = model if model.card.step_counts else model.student
    if student is None:
        return model
    card, unsupported = student.card, _unsupported_option(student.card, request)
    steps = card.steps if request.steps is None and student is model else request.steps
    if steps in card.step_counts and unsupported is None:
        return replace(student, denoiser=FewStepDenoiser(student.denoiser, steps))
    if student is not model:
        return model
    if unsupported is not None:
        name, value = unsupported
        raise InputError(f"{value}: this model was distilled to few steps and does without; leave it out", name)
    known = ", ".join(map(str, card.step_counts))
    raise InputError(f" {steps!r}: this model was distilled to {known} steps; choose one of these", "steps")


def why_not_student(model: Model, request: Any) -> tuple[str, str] | None:
    """The option, and its value, that keeps a student from a request whose step count it knows; else None."""
    if model.student is None or request.steps not in model.student.card.step_counts:
        return None
    return _unsupported_option(model.student.card, request)


def _unsupported_option(card: ModelCard, request: Any) -> tuple[str, str] | None:
    """The first option of the request that a student with that card cannot follow, and its value."""
    for name in ("sampler", "timestep_spacing", "guidance_scale"):
        value = getattr(request, name)
        if value is not None and value != getattr(card, name):
            return name, f" {value!r}"
    if request.negative_prompt:
        return "negative_prompt", ""
    return next(((name, "") for name, usual in GUIDANCE_DEFAULTS.items() if getattr(request, name) != usual), None)
