"""The words score: how often the pictures of prompts that training never met hold what the prompts say.

Six categories after GenEval (Ghosh et al. 2023) and three of our own, judged by a detector whose own accuracy on real
renders of the same prompts (the ceiling), and whose assent to real renders of other prompts (the floor), stand beside.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unspeckle.corpus.emoji.make_corpus import build_vocabulary
from unspeckle.corpus.emoji.painter import ScenePainter
from unspeckle.corpus.emoji.scenes import SceneVocabulary
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.pipeline import steps
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.model import Model
from unspeckle.scoring.composition.detector import Detector
from unspeckle.scoring.composition.questions import (
    CATEGORIES,
    GENEVAL_CATEGORIES,
    CompositionPrompt,
    CompositionTest,
    make_hard_negative,
    sample_matching_scene,
)
from unspeckle.scoring.composition.train_detector import load_or_train_detector
from unspeckle.scoring.composition.verdicts import Verdict, judge_images

Z_95 = 1.959964  # the normal quantile of 95 %
ProgressCallback = Callable[[int, int], None]


class JudgedImages(NamedTuple):
    """A question's pictures (seeds, 3, H, W) uint8, and the verdict on each."""

    prompt: CompositionPrompt
    images: Tensor
    verdicts: list[Verdict]


class DetectorLimits(NamedTuple):
    """Of `renders` real ones each, the share judged right: for their own question, for another one of the
    category, and, of renders of the lure (`questions.lure`), for the question it nearly is."""

    ceiling: float
    floor: float
    hard_negative_rate: float
    render_count: int


@dataclass(frozen=True)
class CategoryScore:
    """share = right / pictures, with its 95 % interval; spare = the share of pictures with things unnamed. Of `prompts`
    asked, one that came again had other seeds."""

    name: str
    prompt_count: int
    image_count: int
    correct_count: int
    accuracy: float
    low: float
    high: float
    ceiling: float
    floor: float
    hard_negative_rate: float
    render_count: int
    extra_object_rate: float


@dataclass(frozen=True)
class NounScore:
    """In how many pictures a noun was asked for, was not found, and was found in a picture wrong for other reasons."""

    noun: str
    image_count: int
    missing_count: int
    wrong_count: int


@dataclass(frozen=True)
class CompositionScore:
    """mean, its 95 % interval, ceiling, floor and lured are over the six of GenEval; steps, sampler, scale as drawn."""

    model: str
    hash: str
    steps: int
    sampler: str
    guidance_scale: float
    mean: float
    low: float
    high: float
    ceiling: float
    floor: float
    hard_negative_rate: float
    categories: tuple[CategoryScore, ...]
    nouns: tuple[NounScore, ...]


def score_composition(
    model: Model, test: CompositionTest, *, seed_count: int = 4, request: Request | None = None, detector: Detector | None = None,
    progress: ProgressCallback | None = None,
) -> CompositionScore:  # fmt: skip
    """Draw, detect and judge every question of the exam with `seeds` seeds each.

    `ask` gives steps, sampler, grid, scale, size and the first seed; its prompt is not used. Without a detector, the
    cached one of the exam's nouns is taken, or trained. `progress` hears (done, of) questions.
    """
    request = request or Request()
    if detector is None:
        detector = load_or_train_detector(test.library, test.image_size)
    judged = generate_and_judge(model, test.prompts, detector, request, seed_count)
    if progress is not None:
        judged = _with_progress(judged, len(test.prompts), progress)
    return combine_scores(model, request, judged, measure_detector_limits(test, detector, seed_count))


def combine_scores(
    model: Model, request: Request, judged: Iterable[JudgedImages], limits_by_category: Mapping[str, DetectorLimits]
) -> CompositionScore:
    """All answers as one score."""
    resolved = resolve(model, request)
    categories, nouns = tally_scores(judged, limits_by_category)
    mean, low, high = mean_with_interval(categories)
    geneval_scores = [c for c in categories if c.name in GENEVAL_CATEGORIES]
    return CompositionScore(
        model=model.card.name,
        hash=model.hash,
        steps=resolved.steps,
        sampler=resolved.sampler,
        guidance_scale=resolved.guidance_scale,
        mean=mean,
        low=low,
        high=high,
        ceiling=sum(c.ceiling for c in geneval_scores) / max(1, len(geneval_scores)),
        floor=sum(c.floor for c in geneval_scores) / max(1, len(geneval_scores)),
        hard_negative_rate=sum(c.hard_negative_rate for c in geneval_scores) / max(1, len(geneval_scores)),
        categories=tuple(categories),
        nouns=tuple(nouns),
    )


def _with_progress(judged: Iterator[JudgedImages], count: int, progress: ProgressCallback) -> Iterator[JudgedImages]:
    for completed, item in enumerate(judged, 1):
        progress(completed, count)
        yield item


def generate_and_judge(
    model: Model, prompts: Iterable[CompositionPrompt], detector: Detector, request: Request, seed_count: int = 4
) -> Iterator[JudgedImages]:
    """Each question drawn with `seeds` seeds, as one batch, and judged."""
    for prompt in prompts:
        prompt_request = replace(
            request, prompt=prompt.text, seed=request.seed + prompt.repetition * seed_count, count=seed_count
        )
        for step in steps(model, prompt_request):
            last_step = step
        pixels = np.stack([np.asarray(image) for image in decode_to_images(model, last_step.x)])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        yield JudgedImages(prompt, images, judge_images(images, prompt, detector))


def measure_detector_limits(
    test: CompositionTest, detector: Detector, renders_per_prompt: int = 4
) -> dict[str, DetectorLimits]:
    """What the judge itself is worth in each category, by `count` fresh renders of each question and of its lure."""
    palette, painter = build_vocabulary(test.library), ScenePainter(test.library, test.image_size)
    limits_by_category = {}
    for category in CATEGORIES:
        category_prompts = [prompt for prompt in test.prompts if prompt.category == category]
        correct_count = false_positive_count = fooled_count = 0
        for index, prompt in enumerate(category_prompts):
            images = render_prompt(prompt, renders_per_prompt, palette, painter)
            correct_count += sum(verdict.is_correct for verdict in judge_images(images, prompt, detector))
            other_prompts = (
                other_prompt
                for other_prompt in category_prompts[index + 1 :] + category_prompts[:index]
                if _without_text(other_prompt) != _without_text(prompt)
            )
            for other in islice(other_prompts, 1):
                false_positive_count += sum(verdict.is_correct for verdict in judge_images(images, other, detector))
            hard_negatives = render_prompt(make_hard_negative(prompt, palette), renders_per_prompt, palette, painter)
            fooled_count += sum(verdict.is_correct for verdict in judge_images(hard_negatives, prompt, detector))
        if category_prompts:
            render_count = len(category_prompts) * renders_per_prompt
            limits_by_category[category] = DetectorLimits(
                correct_count / render_count,
                false_positive_count / render_count,
                fooled_count / render_count,
                render_count,
            )
    return limits_by_category


def render_prompt(prompt: CompositionPrompt, count: int, palette: SceneVocabulary, painter: ScenePainter) -> Tensor:
    """(count, 3, H, W) uint8: true scenes of a question, painted by the corpus's code with nothing kept out."""
    rng = Random(f"unspeckle render {prompt}")
    pixels = [painter.paint(sample_matching_scene(prompt, rng, palette))[0] for _ in range(count)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def _without_text(prompt: CompositionPrompt) -> CompositionPrompt:
    return replace(prompt, text="", repetition=0)


def tally_scores(
    judged: Iterable[JudgedImages], limits_by_category: Mapping[str, DetectorLimits]
) -> tuple[list[CategoryScore], list[NounScore]]:
    """The scores of every category and noun that was asked for."""
    prompt_counts, image_counts, correct_counts, extra_counts = (
        Counter[str](),
        Counter[str](),
        Counter[str](),
        Counter[str](),
    )
    noun_counts, missing_counts, wrong_counts = Counter[str](), Counter[str](), Counter[str]()
    for prompt, _, verdicts in judged:
        prompt_counts[prompt.category] += 1
        for verdict in verdicts:
            image_counts[prompt.category] += 1
            correct_counts[prompt.category] += verdict.is_correct
            extra_counts[prompt.category] += verdict.extra_count > 0
            noun_counts.update(prompt.nouns)
            missing_counts.update(verdict.missing_nouns)
            wrong_counts.update(
                noun for noun in prompt.nouns if not verdict.is_correct and noun not in verdict.missing_nouns
            )
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
            )
        )
    worst_nouns = sorted(noun_counts, key=lambda noun: -(missing_counts[noun] + wrong_counts[noun]) / noun_counts[noun])
    return categories, [
        NounScore(noun, noun_counts[noun], missing_counts[noun], wrong_counts[noun]) for noun in worst_nouns
    ]


def mean_with_interval(categories: Sequence[CategoryScore]) -> tuple[float, float, float]:
    """The mean of the six and its 95 % interval, from theirs (Zou & Donner 2008)."""
    geneval_scores = [category for category in categories if category.name in GENEVAL_CATEGORIES]
    mean = sum(score.accuracy for score in geneval_scores) / max(1, len(geneval_scores))
    low = math.sqrt(sum((score.accuracy - score.low) ** 2 for score in geneval_scores)) / max(1, len(geneval_scores))
    high = math.sqrt(sum((score.high - score.accuracy) ** 2 for score in geneval_scores)) / max(1, len(geneval_scores))
    return mean, mean - low, mean + high


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), as if pictures were independent; those of one prompt are a little
    less so."""
    if count == 0:
        return 0.0, 1.0
    proportion, z = successes / count, Z_95 * Z_95 / count
    center = (proportion + z / 2) / (1 + z)
    half_width = math.sqrt(proportion * (1 - proportion) * z + z * z / 4) / (1 + z)
    return max(0.0, center - half_width), min(1.0, center + half_width)
