"""The composition score: how often images of prompts that training never saw show what the prompts say.

Six categories after GenEval (Ghosh et al. 2023) and three of our own. The images are judged by a detector, whose own
accuracy is measured on real renders of the same prompts: see detector_limits.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.pipeline import sample_steps
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.model import Model
from unspeckle.scoring.composition.composition_test import CompositionTest
from unspeckle.scoring.composition.detector import Detector
from unspeckle.scoring.composition.detector_limits import DetectorLimits, measure_detector_limits, seed_spread
from unspeckle.scoring.composition.prompts import GENEVAL_CATEGORIES, CompositionPrompt
from unspeckle.scoring.composition.verdicts import Verdict, judge_images
from unspeckle.scoring.intervals import wilson_interval

ProgressCallback = Callable[[int, int], None]  # called with (prompts done, prompts in all)


class JudgedImages(NamedTuple):
    """The images of one prompt and the verdict on each."""

    prompt: CompositionPrompt
    images: Tensor  # uint8 (seeds, 3, H, W)
    verdicts: list[Verdict]


@dataclass(frozen=True)
class CategoryScore:
    """How well one category does."""

    name: str
    prompt_count: int  # including repetitions
    image_count: int
    correct_count: int
    accuracy: float  # correct_count / image_count
    low: float  # lower end of the accuracy's 95 % interval
    high: float  # upper end of it
    ceiling: float  # accuracy of real renders of the prompts; and the next two: see DetectorLimits
    floor: float
    hard_negative_rate: float
    render_count: int  # real renders that the ceiling was measured on
    extra_object_rate: float  # fraction of the images with objects that the prompt does not name
    spread: float = 0.0  # how different the images of one prompt are with different seeds: see seed_spread
    render_spread: float = 0.0  # how different real renders of one prompt are


@dataclass(frozen=True)
class NounScore:
    """How often a noun fails."""

    noun: str
    image_count: int  # images whose prompt names it
    missing_count: int  # images in which it was not found
    wrong_count: int  # images in which it was found, but that are wrong for another reason


@dataclass(frozen=True)
class CompositionScore:
    """The composition score; the numbers below are means over GenEval's six categories."""

    model: str
    hash: str
    steps: int
    sampler: str
    guidance_scale: float
    mean: float  # of the accuracies
    low: float  # lower end of its 95 % interval
    high: float  # upper end of it
    ceiling: float
    floor: float
    hard_negative_rate: float
    categories: tuple[CategoryScore, ...]
    nouns: tuple[NounScore, ...]  # the worst first


def score_composition(
    model: Model,
    test: CompositionTest,
    detector: Detector,
    *,
    request: Request | None = None,
    seed_count: int = 4,
    progress: ProgressCallback | None = None,
) -> CompositionScore:
    """Draw every prompt of the test with seed_count seeds and judge the images.

    The request gives the sampling setup, the size and the first seed; its prompt is not used. Of the progress, the
    first half is the measurement of the detector, the second the images.
    """
    request = request or Request()
    count = len(test.prompts)

    def report(completed: int, total: int) -> None:
        if progress is not None:
            progress(completed, total)

    limits = measure_detector_limits(
        test, detector, seed_count, progress=lambda completed: report(completed, 2 * count)
    )
    judged = generate_and_judge(model, test.prompts, detector, request, seed_count)
    counted = _with_progress(judged, lambda completed: report(count + completed, 2 * count))
    return combine_scores(model, request, counted, limits)


def _with_progress(judged: Iterator[JudgedImages], progress: Callable[[int], None]) -> Iterator[JudgedImages]:
    for completed, item in enumerate(judged, 1):
        progress(completed)
        yield item


def generate_and_judge(
    model: Model, prompts: Iterable[CompositionPrompt], detector: Detector, request: Request, seed_count: int = 4
) -> Iterator[JudgedImages]:
    """Each prompt drawn with seed_count seeds, as one batch, and judged."""
    for prompt in prompts:
        first_seed = request.seed + prompt.repetition * seed_count
        prompt_request = replace(request, prompt=prompt.text, seed=first_seed, count=seed_count)
        for step in sample_steps(resolve(model, prompt_request)):
            last_step = step
        pixels = np.stack([np.asarray(image) for image in decode_to_images(model, last_step.x)])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        yield JudgedImages(prompt, images, judge_images(images, prompt, detector))


def combine_scores(
    model: Model, request: Request, judged: Iterable[JudgedImages], limits_by_category: Mapping[str, DetectorLimits]
) -> CompositionScore:
    """The score of all judged images."""
    resolved = resolve(model, request)
    categories, nouns = tally_scores(judged, limits_by_category)
    mean, low, high = mean_with_interval(categories)
    geneval_scores = [c for c in categories if c.name in GENEVAL_CATEGORIES]
    count = max(1, len(geneval_scores))
    return CompositionScore(
        model=model.card.name,
        hash=model.hash,
        steps=resolved.steps,
        sampler=resolved.sampler,
        guidance_scale=resolved.guidance_scale,
        mean=mean,
        low=low,
        high=high,
        ceiling=sum(c.ceiling for c in geneval_scores) / count,
        floor=sum(c.floor for c in geneval_scores) / count,
        hard_negative_rate=sum(c.hard_negative_rate for c in geneval_scores) / count,
        categories=tuple(categories),
        nouns=tuple(nouns),
    )


def tally_scores(
    judged: Iterable[JudgedImages], limits_by_category: Mapping[str, DetectorLimits]
) -> tuple[list[CategoryScore], list[NounScore]]:
    """The scores of every category and every noun that the prompts have."""
    prompt_counts, image_counts, correct_counts, extra_counts = (Counter[str]() for _ in range(4))
    spreads = dict[str, float]()
    noun_counts, missing_counts, wrong_counts = (Counter[str]() for _ in range(3))
    for prompt, images, verdicts in judged:
        prompt_counts[prompt.category] += 1
        spreads[prompt.category] = spreads.get(prompt.category, 0.0) + seed_spread(images)
        for verdict in verdicts:
            image_counts[prompt.category] += 1
            correct_counts[prompt.category] += verdict.is_correct
            extra_counts[prompt.category] += verdict.extra_count > 0
            noun_counts.update(prompt.nouns)
            missing_counts.update(verdict.missing_nouns)
            if not verdict.is_correct:
                wrong_counts.update(noun for noun in prompt.nouns if noun not in verdict.missing_nouns)
    categories = []
    for name, count in image_counts.items():
        low, high = wilson_interval(correct_counts[name], count)
        categories.append(
            CategoryScore(
                name=name,
                prompt_count=prompt_counts[name],
                image_count=count,
                correct_count=correct_counts[name],
                accuracy=correct_counts[name] / count,
                low=low,
                high=high,
                **limits_by_category[name]._asdict(),
                extra_object_rate=extra_counts[name] / count,
                spread=spreads[name] / prompt_counts[name],
            )
        )
    worst_nouns = sorted(noun_counts, key=lambda noun: -(missing_counts[noun] + wrong_counts[noun]) / noun_counts[noun])
    return categories, [
        NounScore(noun, noun_counts[noun], missing_counts[noun], wrong_counts[noun]) for noun in worst_nouns
    ]


def mean_with_interval(categories: Sequence[CategoryScore]) -> tuple[float, float, float]:
    """The mean of GenEval's six categories and the ends of its 95 % interval, from theirs (Zou & Donner 2008)."""
    scores = [category for category in categories if category.name in GENEVAL_CATEGORIES]
    count = max(1, len(scores))
    mean = sum(score.accuracy for score in scores) / count
    low = math.sqrt(sum((score.accuracy - score.low) ** 2 for score in scores)) / count
    high = math.sqrt(sum((score.high - score.accuracy) ** 2 for score in scores)) / count
    return mean, mean - low, mean + high
