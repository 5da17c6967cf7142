"""What is found out about a model: numbers with their intervals, as frozen dataclasses that JSON holds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unspeckle.scoring.composition.hybrids import HybridsScore
from unspeckle.scoring.likelihood import Bits
from unspeckle.scoring.memorisation import Memorisation

# Student's t for 95 %, by degrees of freedom from 1
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, and where it lies with 95 % confidence as far as seeds tell; None for one seed alone."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]  # of each seed


def interval(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> Interval:
    """By Student's t, cut at the least and the most that a value can be; at least one value."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Interval(mean, None, None, tuple(values))
    half = (_T[n - 2] if n - 2 < len(_T) else 2.0) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, max(least, mean - half), min(most, mean + half), tuple(values))


@dataclass(frozen=True)
class Distance:
    """Of drawn pictures from held-out ones, and the floor: of as many training pictures from the same held-out ones."""

    name: str
    drawn: Interval
    floor: Interval


@dataclass(frozen=True)
class Loss:
    """Held-out loss by noise level; shares are of the mean picture's error."""

    total: float
    training: float  # the same of training pictures: much lower means that the model has learnt them by heart
    times: tuple[float, ...]
    shares: tuple[float, ...]
    training_shares: tuple[float, ...]
    pictures: int


@dataclass(frozen=True)
class Point:
    """One way of drawing. seconds: for a picture, in batches; the distances are None without a corpus."""

    sampler: str
    steps: int
    scale: float
    seconds: float
    kid: float | None = None
    kid_error: float | None = None  # its standard error, over the drawn pictures
    precision: float | None = None
    recall: float | None = None
    coverage: float | None = None


@dataclass(frozen=True)
class CorpusFacts:
    """same: is it the corpus of which the model's card tells?"""

    name: str
    fingerprint: str
    training: int
    held_out: int
    same: bool


@dataclass(frozen=True)
class FeatureFacts:
    name: str
    hash: str
    width: int


@dataclass(frozen=True)
class Scores:
    """Everything but the pictures. What could not be measured is None or empty, and `missing` says why."""

    model: str
    hash: str
    version: str
    device: str
    sampler: str
    grid: str
    steps: int
    scale: float
    size: tuple[int, int]
    pictures: int  # drawn for each seed
    seeds: tuple[int, ...]
    licence: str = ""  # of the model, as its card says
    precision: str = "float32"  # in which it was drawn and its losses were measured
    seconds: float = 0.0  # for a picture, in batches
    corpus: CorpusFacts | None = None
    features: FeatureFacts | None = None
    compared: int = 0  # held-out pictures that drawn ones are compared with
    floor_pictures: int = 0  # training pictures in each floor
    distances: tuple[Distance, ...] = ()
    loss: Loss | None = None
    bits: Bits | None = None
    memorisation: Memorisation | None = None
    by_steps: tuple[Point, ...] = ()
    by_scale: tuple[Point, ...] = ()
    words: dict[str, Any] | None = None  # how well pictures hold what words say, where the corpus is of emoji scenes
    hybrids: HybridsScore | None = None  # two nouns in one prompt, where that corpus holds hybrids out
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    format: int = 1

    def distance(self, name: str) -> Distance | None:
        return next((d for d in self.distances if d.name == name), None)


def warnings(scores: Scores) -> tuple[str, ...]:
    """Where the numbers mean less than they seem to."""
    said = []
    if scores.corpus is not None and not scores.corpus.same:
        said.append(
            "the model's card tells of another corpus (or of this one at another size): pictures held out here may "
            "have been trained on, so losses, bits and memorisation may flatter the model"
        )
    if scores.distances and scores.features is not None:
        said += _of_counts(scores, min(scores.pictures, scores.compared), scores.features)
    if scores.memorisation is not None and scores.memorisation.few:
        said.append("too few pictures are held out, or drawn, to say much of the 1st percentile of their distances")
    if scores.bits is not None and scores.bits.pictures < 64:
        said.append(f"bits per dimension are counted on {scores.bits.pictures} pictures only")
    return tuple(said)


def _of_counts(scores: Scores, fewest: int, features: FeatureFacts) -> list[str]:
    said = []
    if fewest < 2 * features.width:
        said.append(
            f"Fréchet distance: {fewest} pictures are few for {features.width} features; its floor shows how much of "
            "it is bias, and it compares with nothing else"
        )
    if fewest < 200:
        said.append(
            f"{fewest} pictures are few: precision, recall, density and coverage say little below some hundreds"
        )
    if scores.floor_pictures < scores.pictures:
        said.append(
            f"there are only {scores.floor_pictures} training pictures for each floor, and {scores.pictures} drawn: "
            "only the floors of KID and CLIP score compare"
        )
    if scores.corpus is not None and scores.floor_pictures * len(scores.seeds) > scores.corpus.training:
        said.append("the floors share training pictures, so their intervals are too narrow")
    if len(scores.seeds) < 3:
        said.append("fewer than three seeds: the intervals say little")
    return said
