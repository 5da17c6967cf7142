"""What is wished of a measurement, what hears of it, and what all its parts share."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unspeckle.corpus import Split
from unspeckle.denoiser import PreparedConditioning
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import ResolvedRequest
from unspeckle.model import Model
from unspeckle.objective import Objective
from unspeckle.scoring.drawing import generate_images
from unspeckle.scoring.sweeps import network_calls_per_image
from unspeckle.training.plan import Plan


class Progress(Protocol):
    """Hears what is being done, and how much of it: units are calls of the network for one picture, or as much."""

    def start_stage(self, name: str) -> None: ...
    def advance(self, units: int) -> None: ...


@dataclass(frozen=True)
class ScoreSettings:
    """What a person chose: pictures for each seed, seeds, features, and the ask that all drawings share."""

    images_per_seed: int = 500
    seed_count: int = 4
    features: str = "scattering"
    request: Request = field(default_factory=Request)
    objective: Objective = field(
        default_factory=lambda: Objective("logit_normal", *Plan.time_mean_std)
    )  # whose loss is measured


class NearestPair(NamedTuple):
    """A drawn picture and the training picture nearest to it, `distance` levels away."""

    generated_image: Tensor
    training_image: Tensor
    caption: str
    distance: float


@dataclass
class ReportImages:
    """Pictures for the report, uint8 (N, 3, H, W)."""

    generated_images: Tensor | None = None
    captions: list[str] = field(default_factory=list)
    validation_images: Tensor | None = None  # of the same captions
    nearest_pairs: list[NearestPair] = field(default_factory=list)
    by_steps: list[Tensor] = field(default_factory=list)  # of each Point
    by_guidance_scale: list[Tensor] = field(default_factory=list)
    hybrids: list[Tensor] = field(default_factory=list)  # of each way, one of each pair


class GeneratedSet(NamedTuple):
    """Pictures (N, 3, H, W) and what they were drawn from."""

    images: Tensor
    captions: list[str]


@dataclass(frozen=True)
class ScoringRun:
    """What all measurements share."""

    model: Model
    settings: ScoreSettings
    resolved: ResolvedRequest
    progress: Progress
    report_images: ReportImages

    def generate_set(self, split: Split, seed_index: int) -> tuple[GeneratedSet, float]:
        """Captions of the split drawn, and the seconds for one of them."""
        captions = pick_captions(split, self.settings.images_per_seed, seed_index)
        calls_per_image = network_calls_per_image(self.resolved)
        seeds = self.image_seeds(len(captions), seed_index)
        generated = generate_images(
            self.model,
            captions,
            seeds,
            self.settings.request,
            lambda count: self.progress.advance(count * calls_per_image),
        )
        return GeneratedSet(generated.images, captions), generated.seconds_per_image

    def complete_conditioning(self, conditioning: PreparedConditioning) -> PreparedConditioning:
        """The captions' conditioning with what else the model takes as an input."""
        return self.model.add_conditioning(
            conditioning, positive=True, guidance_scale=self.resolved.guidance_scale, size=self.resolved.size
        )

    def image_seeds(self, count: int, seed_index: int = 0) -> range:
        """The seeds of the pictures."""
        first_seed = self.resolved.seed + seed_index * self.settings.images_per_seed
        return range(first_seed, first_seed + count)


def evenly_spaced_indices(count: int, sample_count: int) -> Tensor:
    """(wanted,) places among `count`, spread evenly; all of them again and again where more are wanted."""
    return (
        torch.arange(sample_count) * count // sample_count
        if sample_count <= count
        else torch.arange(sample_count) % count
    )


def pick_captions(split: Split, sample_count: int, seed_index: int) -> list[str]:
    """A wording of each, another one for another seed."""
    captions_by_image = [split.captions[i] for i in evenly_spaced_indices(len(split), sample_count).tolist()]
    return [captions[(i + seed_index) % len(captions)] for i, captions in enumerate(captions_by_image)]
