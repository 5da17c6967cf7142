"""What is found out about a model: numbers with their intervals, as frozen dataclasses that JSON holds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unspeckle.scoring.composition.hybrids import HybridsScore
from unspeckle.scoring.likelihood import BitsPerDim
from unspeckle.scoring.memorisation import MemorizationScore

# Student's t for 95 %, by degrees of freedom from 1
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class ConfidenceInterval:
    """A mean over seeds, and where it lies with 95 % confidence as far as seeds tell; None for one seed alone."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]  # of each seed


def confidence_interval(
    values: Sequence[float], minimum: float = -math.inf, maximum: float = math.inf
) -> ConfidenceInterval:
    """By Student's t, cut at the least and the most that a value can be; at least one value."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return ConfidenceInterval(mean, None, None, tuple(values))
    half_width = (_STUDENT_T[n - 2] if n - 2 < len(_STUDENT_T) else 2.0) * statistics.stdev(values) / math.sqrt(n)
    return ConfidenceInterval(mean, max(minimum, mean - half_width), min(maximum, mean + half_width), tuple(values))


@dataclass(frozen=True)
class Distance:
    """Of drawn pictures from held-out ones, and the floor: of as many training pictures from the same held-out ones."""

    name: str
    generated: ConfidenceInterval
    floor: ConfidenceInterval


@dataclass(frozen=True)
class LossScore:
    """Held-out loss by noise level; shares are of the mean picture's error."""

    total: float
    training_total: float  # the same of training pictures: much lower means that the model has learnt them by heart
    times: tuple[float, ...]
    relative_errors: tuple[float, ...]
    training_relative_errors: tuple[float, ...]
    image_count: int


@dataclass(frozen=True)
class SweepPoint:
    """One way of drawing. seconds: for a picture, in batches; the distances are None without a corpus."""

    sampler: str
    steps: int
    guidance_scale: float
    seconds_per_image: float
    kid: float | None = None
    kid_standard_error: float | None = None  # its standard error, over the drawn pictures
    precision: float | None = None
    recall: float | None = None
    coverage: float | None = None


@dataclass(frozen=True)
class CorpusInfo:
    """same: is it the corpus of which the model's card tells?"""

    name: str
    fingerprint: str
    training_count: int
    validation_count: int
    is_training_corpus: bool


@dataclass(frozen=True)
class FeatureInfo:
    name: str
    hash: str
    dimension: int


@dataclass(frozen=True)
class Scores:
    """Everything but the pictures. What could not be measured is None or empty, and `missing` says why."""

    model: str
    hash: str
    version: str
    device: str
    sampler: str
    timestep_spacing: str
    steps: int
    guidance_scale: float
    size: tuple[int, int]
    images_per_seed: int  # drawn for each seed
    seeds: tuple[int, ...]
    license: str = ""  # of the model, as its card says
    precision: str = "float32"  # in which it was drawn and its losses were measured
    seconds_per_image: float = 0.0  # for a picture, in batches
    corpus: CorpusInfo | None = None
    features: FeatureInfo | None = None
    validation_count: int = 0  # held-out pictures that drawn ones are compared with
    images_per_floor: int = 0  # training pictures in each floor
    distances: tuple[Distance, ...] = ()
    loss: LossScore | None = None
    bits_per_dim: BitsPerDim | None = None
    memorization: MemorizationScore | None = None
    by_steps: tuple[SweepPoint, ...] = ()
    by_guidance_scale: tuple[SweepPoint, ...] = ()
    composition: dict[str, Any] | None = (
        None  # how well pictures hold what words say, where the corpus is of emoji scenes
    )
    hybrids: HybridsScore | None = None  # two nouns in one prompt, where that corpus holds hybrids out
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    format: int = 1

    def find_distance(self, name: str) -> Distance | None:
        return next((distance for distance in self.distances if distance.name == name), None)


def find_warnings(scores: Scores) -> tuple[str, ...]:
    """Where the numbers mean less than they seem to."""
    messages = []
    if scores.corpus is not None and not scores.corpus.is_training_corpus:
        messages.append(
            "the model's card tells of another corpus (or of this one at another size): pictures held out here may "
            "have been trained on, so losses, bits and memorisation may flatter the model"
        )
    if scores.distances and scores.features is not None:
        messages += _count_warnings(scores, min(scores.images_per_seed, scores.validation_count), scores.features)
    if scores.memorization is not None and scores.memorization.has_few_images:
        messages.append("too few pictures are held out, or drawn, to say much of the 1st percentile of their distances")
    if scores.bits_per_dim is not None and scores.bits_per_dim.image_count < 64:
        messages.append(f"bits per dimension are counted on {scores.bits_per_dim.image_count} pictures only")
    return tuple(messages)


def _count_warnings(scores: Scores, smallest_count: int, features: FeatureInfo) -> list[str]:
    messages = []
    if smallest_count < 2 * features.dimension:
        messages.append(
            f"Fréchet distance: {smallest_count} pictures are few for {features.dimension} features; its floor shows how much of "
            "it is bias, and it compares with nothing else"
        )
    if smallest_count < 200:
        messages.append(
            f"{smallest_count} pictures are few: precision, recall, density and coverage say little below some hundreds"
        )
    if scores.images_per_floor < scores.images_per_seed:
        messages.append(
            f"there are only {scores.images_per_floor} training pictures for each floor, and {scores.images_per_seed} drawn: "
            "only the floors of KID and CLIP score compare"
        )
    if scores.corpus is not None and scores.images_per_floor * len(scores.seeds) > scores.corpus.training_count:
        messages.append("the floors share training pictures, so their intervals are too narrow")
    if len(scores.seeds) < 3:
        messages.append("fewer than three seeds: the intervals say little")
    return messages
