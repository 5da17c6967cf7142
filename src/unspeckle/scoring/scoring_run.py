"""The settings of a measurement, the images that it collects for its report, and what all its parts share."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from unspeckle.corpus.splits import Split
from unspeckle.denoiser import PreparedConditioning
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import ResolvedRequest
from unspeckle.model import Model
from unspeckle.objective import Objective
from unspeckle.scoring.image_generation import generate_images
from unspeckle.scoring.progress import Progress
from unspeckle.scoring.sweeps import SweepSetup
from unspeckle.unclip import UnCLIPModel

# That of `unspeckle train`, for models that come without their plan.
DEFAULT_OBJECTIVE = Objective("logit_normal", 0.3, 1.0)


@dataclass(frozen=True)
class ScoreSettings:
    """How a model is to be measured."""

    images_per_seed: int = 500  # images to generate for each seed
    seed_count: int = 4  # how often to repeat it with other seeds; intervals are computed over these
    features: str = "scattering"  # scattering, inception, dinov2 or clip; NAME:PATH names a local copy of the weights
    # Steps, sampler, guidance and size of all images; its prompt is not used.
    request: Request = field(default_factory=Request)
    objective: Objective = DEFAULT_OBJECTIVE  # the training objective whose loss is measured


class NearestPair(NamedTuple):
    """A generated image and the training image nearest to it."""

    generated_image: Tensor  # uint8 (3, H, W)
    training_image: Tensor  # uint8 (3, H, W)
    caption: str  # what the image was generated from
    distance: float  # in color levels, 0 to 255; see memorization.py


@dataclass
class ReportImages:
    """Images for the report, uint8 (N, 3, H, W)."""

    generated_images: Tensor | None = None  # some of the first seed's images; None without a corpus
    captions: list[str] = field(default_factory=list)  # what they were generated from
    validation_images: Tensor | None = None  # the validation images with the same captions
    # The generated images that are nearest to a training image, the nearest first.
    nearest_pairs: list[NearestPair] = field(default_factory=list)
    by_steps: list[Tensor] = field(default_factory=list)  # the first images of each point of Scores.by_steps
    # The first images of each point of Scores.by_guidance_scale.
    by_guidance_scale: list[Tensor] = field(default_factory=list)
    hybrids: list[Tensor] = field(default_factory=list)  # for each method, one image of each pair of nouns


class GeneratedSet(NamedTuple):
    """The images of one seed."""

    images: Tensor  # uint8 (N, 3, H, W)
    captions: list[str]  # what they were generated from


@dataclass(frozen=True)
class ScoringRun:
    """What all parts of a measurement share."""

    model: Model
    settings: ScoreSettings
    resolved: ResolvedRequest  # the settings' request, resolved for the model
    progress: Progress
    report_images: ReportImages  # filled while measuring

    @property
    def setup(self) -> SweepSetup:
        """How all images but those of the sweeps are drawn."""
        return SweepSetup.of_request(self.resolved)

    def generate_set(self, split: Split, seed_index: int) -> tuple[GeneratedSet, float]:
        """Images of captions of the split, and the seconds that one image took."""
        captions = pick_captions(split, self.settings.images_per_seed, seed_index)
        seeds = self.image_seeds(len(captions), seed_index)
        calls_per_image = self.setup.network_calls_per_image

        def advance(image_count: int) -> None:
            self.progress.advance(image_count * calls_per_image)

        generated = generate_images(self.model, captions, seeds, self.settings.request, advance)
        return GeneratedSet(generated.images, captions), generated.seconds_per_image

    def complete_conditioning(self, conditioning: PreparedConditioning, images: Tensor) -> PreparedConditioning:
        """The captions' conditioning with everything else that the network takes as an input to denoise these images,
        uint8 (B, 3, H, W)."""
        model, resolved = self.model, self.resolved
        conditioning = model.add_conditioning(
            conditioning, positive=True, guidance_scale=resolved.guidance_scale, size=resolved.size
        )
        if not isinstance(model, UnCLIPModel):
            return conditioning
        embeddings = model.image_text.encode_images(images.to(model.device).float() / 127.5 - 1)
        return model.add_image_embeddings(conditioning, embeddings, positive=True)

    @property
    def factor(self) -> int:
        """How many times larger the drawn images are than what the model itself denoises."""
        return 1 if self.resolved.upsampler is None else self.resolved.upsampler.factor

    def image_seeds(self, count: int, seed_index: int = 0) -> range:
        """The seeds of `count` images; those of another seed_index do not overlap with them."""
        first_seed = self.resolved.seed + seed_index * self.settings.images_per_seed
        return range(first_seed, first_seed + count)


def evenly_spaced_indices(count: int, sample_count: int) -> Tensor:
    """(sample_count,) indices below count, evenly spaced; all of them repeatedly if more are needed."""
    indices = torch.arange(sample_count)
    return indices * count // sample_count if sample_count <= count else indices % count


def pick_captions(split: Split, sample_count: int, seed_index: int) -> list[str]:
    """One caption for each of evenly spaced images; an image with several captions gives another one to each seed."""
    captions_by_image = [split.captions[i] for i in evenly_spaced_indices(len(split), sample_count).tolist()]
    return [captions[(i + seed_index) % len(captions)] for i, captions in enumerate(captions_by_image)]
