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
from unspeckle.model import Card, Model

GUIDED = {"guidance": "cfg", "rescale": 0.0, "interval": None, "guide": None}  # what an unguided drawing leaves so


def told(given: Conditioning, steps: Tensor) -> Conditioning:
    """Join log2 of each row's number of steps (B,) to what the network is told beside the words and the time."""
    number = torch.log2(steps.float())[:, None].to(given.tokens)
    return given._replace(vector=number if given.vector is None else torch.cat([given.vector, number], dim=1))


class Counted(Denoiser):
    """A student's denoiser for drawings of so many steps: its estimates are for the stretches of `times` at that."""

    def __init__(self, student: Denoiser, steps: int) -> None:
        super().__init__(student.network, student.schedule, student.prediction, student.clock)
        self.steps = steps

    def forward(self, x_t: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        return super().forward(x_t, t, told(given, torch.full((len(x_t),), self.steps, device=x_t.device)))


def drawer(model: Model, ask: Any) -> Model:
    """Who draws an Ask or an Order: the student, where the ask's steps are among those that it knows and no negative
    words, scale, sampler or grid but its own are asked for; else the model itself.

    InputError where the model is a student without its teacher, and cannot.
    """
    student = model if model.card.few else model.student
    if student is None:
        return model
    card, foreign = student.card, _foreign(student.card, ask)
    steps = card.steps if ask.steps is None and student is model else ask.steps
    if steps in card.few and not foreign:
        return replace(student, denoiser=Counted(student.denoiser, steps))
    if student is not model:
        return model
    known = ", ".join(map(str, card.few))
    if foreign:
        raise InputError(f"{foreign}: this model was distilled to few steps; leave it out")
    raise InputError(f"steps {steps!r}: this model was distilled to {known} steps; choose one of these")


def passed_over(model: Model, ask: Any) -> str:
    """What keeps a student from an ask in steps that it knows, so that its teacher draws it; else nothing."""
    if model.student is None or ask.steps not in model.student.card.few:
        return ""
    return _foreign(model.student.card, ask)


def _foreign(card: Card, ask: Any) -> str:
    """The first of the ask's wishes that a student with that card knows nothing of, if there is one."""
    own = ((name, getattr(ask, name), getattr(card, name)) for name in ("sampler", "grid", "scale"))
    foreign = [f"{name} {value!r}" for name, value, mine in own if value not in (None, mine)]
    foreign += ["negative words"] if ask.negative else []
    return next(iter(foreign + [f"{name} set" for name, usual in GUIDED.items() if getattr(ask, name) != usual]), "")
