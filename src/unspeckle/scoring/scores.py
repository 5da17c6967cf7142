"""What is measured of a model, as frozen dataclasses that are written as JSON; and when the numbers deserve doubt."""

from dataclasses import dataclass

from unspeckle.scoring.bits_per_dim import BitsPerDim
from unspeckle.scoring.composition.hybrids import HybridsScore
from unspeckle.scoring.composition.score import CompositionScore
from unspeckle.scoring.intervals import ConfidenceInterval
from unspeckle.scoring.memorization import MemorizationScore


@dataclass(frozen=True)
class Distance:
    """A distance of the generated images from the validation images, and what real images would get."""

    name: str  # kid, frechet, precision, recall, density, coverage; with CLIP's features also cmmd and clip_score
    generated: ConfidenceInterval  # of the generated images
    floor: ConfidenceInterval  # of as many training images, compared with the same validation images


@dataclass(frozen=True)
class LossScore:
    """The loss of the model on validation and on training images.

    A relative error is that of the predicted image, divided by that of the mean image: 1 means nothing is known.
    """

    total: float  # the loss on validation images, averaged over the noise levels of training
    training_total: float  # the same on training images; if it is much lower, the model has learnt them by heart
    times: tuple[float, ...]  # the noise levels, as times t in (0, 1)
    relative_errors: tuple[float, ...]  # on validation images, for each of the times
    training_relative_errors: tuple[float, ...]  # on training images, for each of the times
    image_count: int  # images of either kind


@dataclass(frozen=True)
class SweepPoint:
    """One sampling setup of a sweep: how long it takes, and with a corpus how good its images are."""

    sampler: str
    steps: int
    guidance_scale: float
    seconds_per_image: float  # when drawn in batches
    kid: float | None = None  # KID, and below precision, recall and coverage; all None without a corpus
    kid_standard_error: float | None = None  # the standard error of the KID over the generated images
    precision: float | None = None
    recall: float | None = None
    coverage: float | None = None


@dataclass(frozen=True)
class CorpusInfo:
    """The corpus that the model was compared with."""

    name: str
    fingerprint: str
    training_count: int  # images of the training split
    validation_count: int  # images of the validation split
    is_training_corpus: bool  # whether it is the corpus that the model's card names


@dataclass(frozen=True)
class ClassAccuracy:
    """How often images of a class are seen as that class."""

    caption: str
    fixed: float  # drawn by the caption itself
    loose: float  # drawn by other wordings of it
    real: float  # real validation images


@dataclass(frozen=True)
class ClassWordingScore:
    """Means over all classes, and each of them, the one that suffers most first."""

    fixed: float
    loose: float
    real: float
    wordings: tuple[str, ...]  # those of one class, as examples
    images_per_class: int  # drawn by the caption, and as many by other wordings
    classes: tuple[ClassAccuracy, ...]


@dataclass(frozen=True)
class FeatureInfo:
    """The features that distances were measured in."""

    name: str
    hash: str
    dimension: int  # numbers for each image


@dataclass(frozen=True)
class Scores:
    """All numbers of a report. What could not be measured is None or empty, and `missing` says why."""

    model: str  # the model's name
    hash: str  # the model's hash
    version: str  # the version of unspeckle that measured it
    device: str
    sampler: str
    timestep_spacing: str
    steps: int
    guidance_scale: float
    size: tuple[int, int]  # (width, height) in pixels
    images_per_seed: int  # images generated for each seed
    seeds: tuple[int, ...]  # the repetitions that intervals are computed over
    license: str = ""  # the model's license, as its card says
    precision: str = "float32"  # the precision of generating images and of measuring losses
    seconds_per_image: float = 0.0  # when drawn in batches
    corpus: CorpusInfo | None = None
    features: FeatureInfo | None = None
    validation_count: int = 0  # validation images that the generated ones are compared with
    images_per_floor: int = 0  # training images in each repetition of a floor
    distances: tuple[Distance, ...] = ()
    loss: LossScore | None = None
    bits_per_dim: BitsPerDim | None = None
    memorization: MemorizationScore | None = None
    by_steps: tuple[SweepPoint, ...] = ()  # samplers and step counts
    by_guidance_scale: tuple[SweepPoint, ...] = ()
    # How well images hold what their prompts say, if the corpus is of emoji scenes.
    composition: CompositionScore | None = None
    class_wording: ClassWordingScore | None = None  # how classes suffer when they are asked for loosely
    hybrids: HybridsScore | None = None  # one subject out of two nouns, if that corpus holds hybrids out of training
    missing: tuple[str, ...] = ()  # what was not measured, and why
    warnings: tuple[str, ...] = ()  # why some numbers mean less than they seem to
    format: int = 2  # the format of the JSON file; 1 had the names of version 0.1

    def find_distance(self, name: str) -> Distance | None:
        """The distance of that name, or None if it was not measured."""
        return next((distance for distance in self.distances if distance.name == name), None)


MIN_BITS_IMAGES = 64  # bits per dimension of fewer images are warned about
MIN_PRDC_IMAGES = 200  # precision, recall, density and coverage of fewer images are warned about


def find_warnings(scores: Scores) -> tuple[str, ...]:
    """Where the numbers mean less than they seem to."""
    messages = []
    if scores.corpus is not None and not scores.corpus.is_training_corpus:
        messages.append(
            "the model's card names another corpus (or this one at another size): validation images may have been "
            "trained on, so losses, bits and memorization may flatter the model"
        )
    if scores.distances and scores.features is not None:
        messages += _count_warnings(scores, min(scores.images_per_seed, scores.validation_count), scores.features)
    if scores.memorization is not None and scores.memorization.has_few_images:
        messages.append(
            "there are too few validation or generated images for a reliable 1st percentile of their distances"
        )
    if scores.bits_per_dim is not None and scores.bits_per_dim.image_count < MIN_BITS_IMAGES:
        messages.append(f"bits per dimension are measured on {scores.bits_per_dim.image_count} images only")
    return tuple(messages)


def _count_warnings(scores: Scores, smallest_count: int, features: FeatureInfo) -> list[str]:
    """Warnings about numbers of images; smallest_count is that of the smaller of the two sets compared."""
    messages = []
    if smallest_count < 2 * features.dimension:
        messages.append(
            f"Fréchet distance: {smallest_count} images are few for {features.dimension} features; its floor shows how "
            "much of it is bias, and it cannot be compared with other reports"
        )
    if smallest_count < MIN_PRDC_IMAGES:
        messages.append(
            f"{smallest_count} images are few: precision, recall, density and coverage need some hundreds to mean much"
        )
    if scores.images_per_floor < scores.images_per_seed:
        messages.append(
            f"there are only {scores.images_per_floor} training images for each floor, but {scores.images_per_seed} "
            "generated ones: only the floors of KID and CLIP score can be compared"
        )
    if scores.corpus is not None and scores.images_per_floor * len(scores.seeds) > scores.corpus.training_count:
        messages.append("the floors share training images, so their intervals are too narrow")
    if len(scores.seeds) < 3:
        messages.append("fewer than three seeds: the intervals mean little")
    return messages
