"""Whether a picture holds what a question says, by what a detector found in it. After GenEval, Ghosh et al. 2023."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspeckle.corpus.emoji.tints import BACKGROUNDS
from unspeckle.scoring.composition.detector import Detection, Detector
from unspeckle.scoring.composition.questions import Question

APART = 0.1  # of both boxes' sides: two middles nearer than this lie in no direction


@dataclass(frozen=True)
class Verdict:
    """right, or why not in a few words; the asked nouns that were not found; how many things the words do not name."""

    right: bool
    why: str
    missing: tuple[str, ...]
    spare: int
    found: tuple[Detection, ...]


def judge(pictures: Tensor, question: Question, detector: Detector) -> list[Verdict]:
    """A verdict on each of the pictures (B, 3, H, W), uint8."""
    found = detector.detect(pictures)
    return [verdict(question, things, ground(picture, things)) for picture, things in zip(pictures, found, strict=True)]


def verdict(question: Question, found: Sequence[Detection], background: str) -> Verdict:
    """What the question says against what was found, the hottest first, on a background of that colour."""
    named = {noun: [thing for thing in found if thing.nouns == (noun,)] for noun in question.nouns}
    if question.category == "hybrids":
        crossed = [thing for thing in found if sorted(thing.nouns) == sorted(question.nouns)]
        seen = {noun for thing in found for noun in thing.nouns}
        missing = () if crossed else tuple(noun for noun in question.nouns if noun not in seen)
        why = "" if crossed else "no hybrid of both"
        spare = len(found) - len(crossed)
    else:
        missing = tuple(noun for noun, things in named.items() if not things)
        why = f"no {' and no '.join(missing)}" if missing else _fault(question, named, background)
        spare = len(found) - sum(map(len, named.values()))
    return Verdict(not why, why, missing, spare, tuple(found))


def _fault(question: Question, named: dict[str, list[Detection]], background: str) -> str:
    """What is wrong where every noun was found; of several things of one noun the hottest is meant."""
    things = [named[noun][0] for noun in question.nouns]
    first = things[0]
    if question.count and len(named[question.nouns[0]]) != question.count:
        return f"{len(named[question.nouns[0]])}, not {question.count}"
    if question.background and background != question.background:
        return f"the background is {background or 'of no colour'}"
    for thing, tint in zip(things, question.tints, strict=False):
        if thing.tint != tint:
            return f"the {thing.nouns[0]} is {thing.tint or 'of its own colours'}"
    if question.relation and question.relation not in directions(*things):
        return f"not {question.relation}"
    if question.category == "on stilts" and not first.stilts:
        return "no stilts"
    if question.wearing and first.wearing != question.wearing:
        return f"wears {first.wearing or 'nothing'}"
    return ""


def directions(one: Detection, other: Detection) -> set[str]:
    """How one thing lies to the other, by GenEval's rule: that way, where the distance of the middles along the axis,
    less a tenth of both boxes' sides, is more than half of their whole distance."""
    x, y = (a - b for a, b in zip(one.middle, other.middle, strict=True))
    width, height = (sum(thing.box[2 + axis] - thing.box[axis] for thing in (one, other)) for axis in (0, 1))
    enough = 0.5 * math.hypot(x, y)
    ways = {"left of": -x - APART * width, "right of": x - APART * width}
    ways |= {"above": -y - APART * height, "below": y - APART * height}
    return {way for way, along in ways.items() if along > enough}


def ground(picture: Tensor, things: Sequence[Detection]) -> str:
    """The name of the background's colour: of the median of what lies outside all boxes, or of the outermost pixels
    where that is little."""
    height, width = picture.shape[1:]
    outside = torch.ones(height, width, dtype=torch.bool)
    for thing in things:
        x0, y0, x1, y1 = thing.box
        outside[int(y0 * height) : math.ceil(y1 * height), int(x0 * width) : math.ceil(x1 * width)] = False
    if outside.float().mean() < 0.05:
        outside = torch.ones(height, width, dtype=torch.bool)
        outside[1:-1, 1:-1] = False
    middle = picture[:, outside].float().median(dim=1).values
    return min(BACKGROUNDS, key=lambda name: float((middle - torch.tensor(BACKGROUNDS[name])).square().sum()))
