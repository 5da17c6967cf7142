"""Whether an image shows what a composition prompt says, by what a detector found in it. After Ghosh et al. 2023."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspeckle.corpus.emoji.tints import BACKGROUNDS
from unspeckle.scoring.composition.detector import Detection, Detector
from unspeckle.scoring.composition.prompts import CompositionPrompt

MIN_SEPARATION = 0.1  # in sides of both boxes: centers that are nearer have no direction


@dataclass(frozen=True)
class Verdict:
    """Whether an image is correct, and if not, why."""

    is_correct: bool
    reason: str  # why not, in a few words; empty if it is correct
    missing_nouns: tuple[str, ...]  # nouns of the prompt that were not found
    extra_count: int  # objects that the prompt does not name
    detections: tuple[Detection, ...]


def judge_images(images: Tensor, prompt: CompositionPrompt, detector: Detector) -> list[Verdict]:
    """A verdict on each of the images (B, 3, H, W) uint8."""
    detections_by_image = detector.detect(images)
    return [
        judge_detections(prompt, detections, find_background(image, detections))
        for image, detections in zip(images, detections_by_image, strict=True)
    ]


def judge_detections(prompt: CompositionPrompt, detections: Sequence[Detection], background: str) -> Verdict:
    """Compare the prompt with what was found, the highest score first, and with the name of the background's color."""
    if prompt.wants_hybrid:
        return _judge_hybrid(prompt, detections, background)
    detections_by_noun = {
        noun: [detection for detection in detections if detection.nouns == (noun,)] for noun in prompt.nouns
    }
    missing_nouns = tuple(noun for noun, noun_detections in detections_by_noun.items() if not noun_detections)
    if missing_nouns:
        reason = f"no {' and no '.join(missing_nouns)}"
    elif prompt.objects:
        reason = _find_fault_in_objects(prompt, detections_by_noun, background)
    else:
        reason = _find_fault(prompt, detections_by_noun, background)
    extra_count = len(detections) - sum(map(len, detections_by_noun.values()))
    return Verdict(not reason, reason, missing_nouns, extra_count, tuple(detections))


def _judge_hybrid(prompt: CompositionPrompt, detections: Sequence[Detection], background: str) -> Verdict:
    """Whether there is one object that is both nouns."""
    hybrids = [detection for detection in detections if sorted(detection.nouns) == sorted(prompt.nouns)]
    detected_nouns = {noun for detection in detections for noun in detection.nouns}
    missing_nouns = () if hybrids else tuple(noun for noun in prompt.nouns if noun not in detected_nouns)
    reason = _find_wrong_background(prompt, background) if hybrids else "no hybrid of both"
    return Verdict(not reason, reason, missing_nouns, len(detections) - len(hybrids), tuple(detections))


def _find_wrong_background(prompt: CompositionPrompt, background: str) -> str:
    is_wrong = bool(prompt.background) and background != prompt.background
    return f"the background is {background or 'of no known color'}" if is_wrong else ""


def _find_fault_in_objects(
    prompt: CompositionPrompt, detections_by_noun: dict[str, list[Detection]], background: str
) -> str:
    """What is wrong although every noun was found. Every object of a noun must be as the prompt says."""
    for wanted in prompt.objects:
        detections = detections_by_noun[wanted.noun]
        if wanted.count and len(detections) != wanted.count:
            return f"{len(detections)} of {wanted.noun}, not {wanted.count}"
        for one in detections:
            if wanted.tint and one.tint != wanted.tint:
                return f"a {wanted.noun} is {one.tint or 'not tinted'}"
            if wanted.wearing and one.wearing != wanted.wearing:
                return f"a {wanted.noun} wears {one.wearing or 'nothing'}"
            if wanted.on_stilts and not one.on_stilts:
                return f"a {wanted.noun} is not on stilts"
    if prompt.relation:
        first, second = (detections_by_noun[wanted.noun] for wanted in prompt.objects[:2])
        if not all(prompt.relation in find_directions(one, other) for one in first for other in second):
            return f"not {prompt.relation}"
    return _find_wrong_background(prompt, background)


def _find_fault(prompt: CompositionPrompt, detections_by_noun: dict[str, list[Detection]], background: str) -> str:
    """What is wrong although every noun was found; of several objects of a noun, that of the highest score counts."""
    detections = [detections_by_noun[noun][0] for noun in prompt.nouns]
    first, first_count = detections[0], len(detections_by_noun[prompt.nouns[0]])
    if prompt.object_count and first_count != prompt.object_count:
        return f"{first_count}, not {prompt.object_count}"
    if wrong_background := _find_wrong_background(prompt, background):
        return wrong_background
    for detection, tint in zip(detections, prompt.tints, strict=False):
        if detection.tint != tint:
            return f"the {detection.nouns[0]} is {detection.tint or 'not tinted'}"
    if prompt.relation and prompt.relation not in find_directions(*detections):
        return f"not {prompt.relation}"
    if prompt.category == "on stilts" and not first.on_stilts:
        return "no stilts"
    if prompt.wearing and first.wearing != prompt.wearing:
        return f"wears {first.wearing or 'nothing'}"
    return ""


def find_directions(first: Detection, second: Detection) -> set[str]:
    """Where the first object is as seen from the second: "left of", "right of", "above", "below".

    GenEval's rule: a direction holds if the distance of the centers along its axis, minus MIN_SEPARATION of both boxes'
    sides, is more than half of their Euclidean distance.
    """
    dx, dy = (a - b for a, b in zip(first.center, second.center, strict=True))
    width, height = (
        sum(detection.box[2 + axis] - detection.box[axis] for detection in (first, second)) for axis in (0, 1)
    )
    threshold = 0.5 * math.hypot(dx, dy)
    clearances = {"left of": -dx - MIN_SEPARATION * width, "right of": dx - MIN_SEPARATION * width}
    clearances |= {"above": -dy - MIN_SEPARATION * height, "below": dy - MIN_SEPARATION * height}
    return {direction for direction, clearance in clearances.items() if clearance > threshold}


def find_background(image: Tensor, detections: Sequence[Detection]) -> str:
    """The name of the background's color: that nearest to the median color outside of all boxes.

    If hardly anything is outside, the outermost pixels count.
    """
    height, width = image.shape[1:]
    outside = torch.ones(height, width, dtype=torch.bool)
    for detection in detections:
        x0, y0, x1, y1 = detection.box
        outside[int(y0 * height) : math.ceil(y1 * height), int(x0 * width) : math.ceil(x1 * width)] = False
    if outside.float().mean() < 0.05:
        outside = torch.ones(height, width, dtype=torch.bool)
        outside[1:-1, 1:-1] = False
    median_color = image[:, outside].float().median(dim=1).values
    return min(BACKGROUNDS, key=lambda name: float((median_color - torch.tensor(BACKGROUNDS[name])).square().sum()))
