"""What is wished of a measurement, what hears of it, and what all its parts share."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unspeckle.corpus import Split
from unspeckle.denoiser import Conditioning
from unspeckle.generation.pipeline import Request, ResolvedRequest
from unspeckle.model import Model
from unspeckle.objective import Objective
from unspeckle.scoring.drawing import drawn
from unspeckle.scoring.sweeps import calls
from unspeckle.training.plan import Plan


class Watch(Protocol):
    """Hears what is being done, and how much of it: units are calls of the network for one picture, or as much."""

    def stage(self, name: str) -> None: ...
    def tell(self, units: int) -> None: ...


@dataclass(frozen=True)
class Wishes:
    """What a person chose: pictures for each seed, seeds, features, and the ask that all drawings share."""

    pictures: int = 500
    seeds: int = 4
    features: str = "scattering"
    ask: Request = field(default_factory=Request)
    objective: Objective = field(
        default_factory=lambda: Objective("logit_normal", *Plan.times)
    )  # whose loss is measured


class Pair(NamedTuple):
    """A drawn picture and the training picture nearest to it, `distance` levels away."""

    drawn: Tensor
    training: Tensor
    caption: str
    distance: float


@dataclass
class Album:
    """Pictures for the report, uint8 (N, 3, H, W)."""

    drawn: Tensor | None = None
    captions: list[str] = field(default_factory=list)
    held_out: Tensor | None = None  # of the same captions
    pairs: list[Pair] = field(default_factory=list)
    by_steps: list[Tensor] = field(default_factory=list)  # of each Point
    by_scale: list[Tensor] = field(default_factory=list)
    hybrids: list[Tensor] = field(default_factory=list)  # of each way, one of each pair


class Drawn(NamedTuple):
    """Pictures (N, 3, H, W) and what they were drawn from."""

    pictures: Tensor
    captions: list[str]


@dataclass(frozen=True)
class Task:
    """What all measurements share."""

    model: Model
    wishes: Wishes
    order: ResolvedRequest
    watch: Watch
    album: Album

    def draw(self, split: Split, seed: int) -> tuple[Drawn, float]:
        """Captions of the split drawn, and the seconds for one of them."""
        captions = captions_of(split, self.wishes.pictures, seed)
        cost = calls(self.order)
        numbers = self.numbers(len(captions), seed)
        found = drawn(self.model, captions, numbers, self.wishes.ask, lambda count: self.watch.tell(count * cost))
        return Drawn(found.pictures, captions), found.seconds

    def complete(self, given: Conditioning) -> Conditioning:
        """What the captions' pictures are denoised with."""
        return self.model.add_conditioning(given, positive=True, guidance_scale=self.order.guidance_scale, size=self.order.size)

    def numbers(self, count: int, seed: int = 0) -> range:
        """The seeds of the pictures."""
        first = self.order.seed + seed * self.wishes.pictures
        return range(first, first + count)


def spread(count: int, wanted: int) -> Tensor:
    """(wanted,) places among `count`, spread evenly; all of them again and again where more are wanted."""
    return torch.arange(wanted) * count // wanted if wanted <= count else torch.arange(wanted) % count


def captions_of(split: Split, wanted: int, seed: int) -> list[str]:
    """A wording of each, another one for another seed."""
    found = [split.wordings[i] for i in spread(len(split), wanted).tolist()]
    return [wordings[(i + seed) % len(wordings)] for i, wordings in enumerate(found)]
