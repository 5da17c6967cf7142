"""How far the detector itself can be trusted: its verdicts on real renders, whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.corpus.emoji.make_corpus import build_vocabulary
from unspeckle.corpus.emoji.painter import ScenePainter
from unspeckle.scoring.composition.composition_test import CompositionTest
from unspeckle.scoring.composition.detector import Detector
from unspeckle.scoring.composition.prompt_scenes import make_hard_negative, render_prompt
from unspeckle.scoring.composition.prompts import CompositionPrompt
from unspeckle.scoring.composition.verdicts import judge_images


class DetectorLimits(NamedTuple):
    """The fractions of real renders that the detector judges correct, in one category."""

    ceiling: float  # renders of the prompt itself
    floor: float  # renders of another prompt of the category
    hard_negative_rate: float  # renders of the prompt's hard negative
    render_count: int  # renders of each kind
    render_spread: float  # how different renders of one prompt are: see seed_spread


def measure_detector_limits(
    test: CompositionTest,
    detector: Detector,
    renders_per_prompt: int = 4,
    progress: Callable[[int], None] = lambda completed: None,
) -> dict[str, DetectorLimits]:
    """The limits in each category that the test has.

    progress is called with the number of prompts that are done.
    """
    vocabulary, painter = build_vocabulary(test.library), ScenePainter(test.library, test.image_size)
    limits_by_category, completed = {}, 0

    def count_correct(images: Tensor, judged_prompts: list[CompositionPrompt]) -> list[int]:
        return [sum(verdict.is_correct for verdict in judge_images(images, p, detector)) for p in judged_prompts]

    def render(prompt: CompositionPrompt) -> Tensor:
        return render_prompt(prompt, renders_per_prompt, vocabulary, painter)

    for category in dict.fromkeys(prompt.category for prompt in test.prompts):
        category_prompts = [prompt for prompt in test.prompts if prompt.category == category]
        correct_count = false_positive_count = fooled_count = 0
        spread = 0.0
        for index, prompt in enumerate(category_prompts):
            other_prompts = category_prompts[index + 1 :] + category_prompts[:index]
            contradicting = [other for other in other_prompts if _without_text(other) != _without_text(prompt)]
            images = render(prompt)
            counts = count_correct(images, [prompt, *contradicting[:1]])
            spread += seed_spread(images)
            correct_count += counts[0]
            false_positive_count += sum(counts[1:])
            fooled_count += sum(count_correct(render(make_hard_negative(prompt, vocabulary)), [prompt]))
            completed += 1
            progress(completed)
        if category_prompts:
            render_count = len(category_prompts) * renders_per_prompt
            limits_by_category[category] = DetectorLimits(
                correct_count / render_count,
                false_positive_count / render_count,
                fooled_count / render_count,
                render_count,
                spread / len(category_prompts),
            )
    return limits_by_category


def seed_spread(images: Tensor) -> float:
    """How different images (N, 3, H, W) uint8 of one prompt are: the mean over all pairs of the root mean square
    difference of their pixels at 1/4 of the size, in 255ths. 0 for fewer than two images."""
    small = F.avg_pool2d(images.float(), min(4, *images.shape[2:])).flatten(1)
    return float(torch.pdist(small).mean() / small.shape[1] ** 0.5) if len(images) > 1 else 0.0


def _without_text(prompt: CompositionPrompt) -> CompositionPrompt:
    """The prompt's meaning: prompts that differ in their text only are equal."""
    return replace(prompt, text="", repetition=0)
