"""Few-step students: networks distilled from a teacher, and which of the two draws a request.

A student's x̂ is not the expected image E[x | x_t], but the one towards which its teacher moves, guided, over the whole
segment up to the student's next time: one DDIM step of the student ends where many of the teacher's would. The network
takes the number of steps as an input.
"""

from dataclasses import replace

import torch
from torch import Tensor

from unspeckle.denoiser import AnyConditioning, Denoiser, SomeConditioning, with_fields
from unspeckle.errors import InputError
from unspeckle.generation.request import Request
from unspeckle.model import Model, ModelCard
from unspeckle.networks.gan import Generator

# Defaults of the options that change guidance
GUIDANCE_DEFAULTS: dict[str, object] = {
    "guidance_method": "cfg", "guidance_rescale": 0.0, "guidance_interval": None, "guide_model": None,
}  # fmt: skip


def with_step_count(conditioning: SomeConditioning, steps: Tensor) -> SomeConditioning:
    """The conditioning with log2 of each row's number of steps (B,) appended to its vector."""
    log_steps = torch.log2(steps.float())[:, None].to(conditioning[0])  # (B, 1)
    vector = conditioning.vector
    return with_fields(conditioning, vector=log_steps if vector is None else torch.cat([vector, log_steps], dim=1))


class FewStepDenoiser(Denoiser):
    """A student's denoiser in drawings of a fixed number of steps, which its network takes as an input."""

    def __init__(self, student: Denoiser, steps: int) -> None:
        super().__init__(student.network, student.schedule, student.prediction, student.time_conditioning)
        self.steps = steps

    def forward(self, x_t: Tensor, t: Tensor, conditioning: AnyConditioning) -> Tensor:
        steps = torch.full((len(x_t),), self.steps, device=x_t.device)
        return super().forward(x_t, t, with_step_count(conditioning, steps))


def select_network(model: Model, request: Request) -> Model:
    """The model whose network draws the request: the few-step student, if it knows the step count and the request has
    no negative prompt and no guidance scale, sampler or timestep spacing other than the student's; else the model.

    InputError where the model is a student without its teacher, and cannot draw the request."""
    if isinstance(model.network, Generator):
        check_one_step(request)
        return model
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
        raise InputError(f"{value}: this model was distilled to few steps and cannot follow it; leave it out", name)
    known = ", ".join(map(str, card.step_counts))
    raise InputError(f" {steps!r}: this model was distilled to {known} steps; choose one of these", "steps")


def check_one_step(request: Request) -> None:
    """InputError for what a GAN cannot do: it makes an image of pure noise in one step, and predicts only once."""
    if request.steps not in (None, 1):
        raise InputError(f" {request.steps!r}: this model is a GAN, which draws in one step; choose 1", "steps")
    if request.guidance_scale not in (None, 1):
        scale = request.guidance_scale
        raise InputError(f" {scale!r}: this model is a GAN, which is not guided; leave it out", "guidance_scale")
    for name, default in {"negative_prompt": "", **GUIDANCE_DEFAULTS}.items():
        if getattr(request, name) != default:
            raise InputError(": this model is a GAN, which is not guided; leave it out", name)
    for name in ("image", "mask", "hires_size"):
        if getattr(request, name) is not None:
            raise InputError(": this model is a GAN, which draws from noise and no image; leave it out", name)


def why_not_student(model: Model, request: Request) -> tuple[str, str] | None:
    """The option, and its value as text, for which the student does not draw a request whose step count it knows; None
    where there is no such option."""
    if model.student is None or request.steps not in model.student.card.step_counts:
        return None
    return _unsupported_option(model.student.card, request)


def _unsupported_option(card: ModelCard, request: Request) -> tuple[str, str] | None:
    """The first option of the request that a student with that card cannot follow, and its value as text."""
    for name in ("sampler", "timestep_spacing", "guidance_scale"):
        value = getattr(request, name)
        if value is not None and value != getattr(card, name):
            return name, f" {value!r}"
    if request.negative_prompt:
        return "negative_prompt", ""
    changed = (name for name, default in GUIDANCE_DEFAULTS.items() if getattr(request, name) != default)
    return next(((name, "") for name in changed), None)
