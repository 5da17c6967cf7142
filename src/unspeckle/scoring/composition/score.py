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

from unspeckle.corpus.emoji.make_corpus import palette_of
from unspeckle.corpus.emoji.painter import Painter
from unspeckle.corpus.emoji.scenes import Palette
from unspeckle.generation.pipeline import Request, decode_to_images, resolve, steps
from unspeckle.model import Model
from unspeckle.scoring.composition.detector import Detector
from unspeckle.scoring.composition.questions import CATEGORIES, SIX, Exam, Question, lure, scene_for
from unspeckle.scoring.composition.train_detector import detector_for
from unspeckle.scoring.composition.verdicts import Verdict, judge

Z = 1.959964  # the normal quantile of 95 %
Progress = Callable[[int, int], None]


class Answer(NamedTuple):
    """A question's pictures (seeds, 3, H, W) uint8, and the verdict on each."""

    question: Question
    pictures: Tensor
    verdicts: list[Verdict]


class Limits(NamedTuple):
    """Of `renders` real ones each, the share judged right: for their own question, for another one of the
    category, and, of renders of the lure (`questions.lure`), for the question it nearly is."""

    ceiling: float
    floor: float
    lured: float
    renders: int


@dataclass(frozen=True)
class CategoryScore:
    """share = right / pictures, with its 95 % interval; spare = the share of pictures with things unnamed. Of `prompts`
    asked, one that came again had other seeds."""

    name: str
    prompts: int
    pictures: int
    right: int
    share: float
    low: float
    high: float
    ceiling: float
    floor: float
    lured: float
    renders: int
    spare: float


@dataclass(frozen=True)
class NounScore:
    """In how many pictures a noun was asked for, was not found, and was found in a picture wrong for other reasons."""

    noun: str
    asked: int
    missing: int
    wrong: int


@dataclass(frozen=True)
class WordsScore:
    """mean, its 95 % interval, ceiling, floor and lured are over the six of GenEval; steps, sampler, scale as drawn."""

    model: str
    hash: str
    steps: int
    sampler: str
    scale: float
    mean: float
    low: float
    high: float
    ceiling: float
    floor: float
    lured: float
    categories: tuple[CategoryScore, ...]
    nouns: tuple[NounScore, ...]


def words_score(
    model: Model, exam: Exam, *, seeds: int = 4, ask: Request | None = None, detector: Detector | None = None,
    progress: Progress | None = None,
) -> WordsScore:  # fmt: skip
    """Draw, detect and judge every question of the exam with `seeds` seeds each.

    `ask` gives steps, sampler, grid, scale, size and the first seed; its prompt is not used. Without a detector, the
    cached one of the exam's nouns is taken, or trained. `progress` hears (done, of) questions.
    """
    ask = ask or Request()
    if detector is None:
        detector = detector_for(exam.library, exam.size)
    given = answers(model, exam.asked, detector, ask, seeds)
    if progress is not None:
        given = _told(given, len(exam.asked), progress)
    return score(model, ask, given, limits(exam, detector, seeds))


def score(model: Model, ask: Request, given: Iterable[Answer], bounds: Mapping[str, Limits]) -> WordsScore:
    """All answers as one score."""
    order = resolve(model, ask)
    categories, nouns = tally(given, bounds)
    mean, low, high = mean_of(categories)
    six = [c for c in categories if c.name in SIX]
    return WordsScore(
        model=model.card.name,
        hash=model.hash,
        steps=order.steps,
        sampler=order.sampler,
        scale=order.guidance_scale,
        mean=mean,
        low=low,
        high=high,
        ceiling=sum(c.ceiling for c in six) / max(1, len(six)),
        floor=sum(c.floor for c in six) / max(1, len(six)),
        lured=sum(c.lured for c in six) / max(1, len(six)),
        categories=tuple(categories),
        nouns=tuple(nouns),
    )


def _told(given: Iterator[Answer], count: int, progress: Progress) -> Iterator[Answer]:
    for done, answer in enumerate(given, 1):
        progress(done, count)
        yield answer


def answers(model: Model, asked: Iterable[Question], detector: Detector, ask: Request, seeds: int = 4) -> Iterator[Answer]:
    """Each question drawn with `seeds` seeds, as one batch, and judged."""
    for question in asked:
        order = replace(ask, prompt=question.prompt, seed=ask.seed + question.turn * seeds, count=seeds)
        for step in steps(model, order):
            last = step
        drawn = np.stack([np.asarray(picture) for picture in decode_to_images(model, last.x)])
        shown = torch.from_numpy(drawn).permute(0, 3, 1, 2)
        yield Answer(question, shown, judge(shown, question, detector))


def limits(exam: Exam, detector: Detector, count: int = 4) -> dict[str, Limits]:
    """What the judge itself is worth in each category, by `count` fresh renders of each question and of its lure."""
    palette, painter = palette_of(exam.library), Painter(exam.library, exam.size)
    found = {}
    for category in CATEGORIES:
        same = [question for question in exam.asked if question.category == category]
        right = wrong = lured = 0
        for place, question in enumerate(same):
            shown = renders(question, count, palette, painter)
            right += sum(v.right for v in judge(shown, question, detector))
            others = (q for q in same[place + 1 :] + same[:place] if _said(q) != _said(question))
            for other in islice(others, 1):
                wrong += sum(v.right for v in judge(shown, other, detector))
            near = renders(lure(question, palette), count, palette, painter)
            lured += sum(v.right for v in judge(near, question, detector))
        if same:
            painted = len(same) * count
            found[category] = Limits(right / painted, wrong / painted, lured / painted, painted)
    return found


def renders(question: Question, count: int, palette: Palette, painter: Painter) -> Tensor:
    """(count, 3, H, W) uint8: true scenes of a question, painted by the corpus's code with nothing kept out."""
    rng = Random(f"unspeckle render {question}")
    painted = [painter.paint(scene_for(question, rng, palette))[0] for _ in range(count)]
    return torch.from_numpy(np.stack(painted)).permute(0, 3, 1, 2)


def _said(question: Question) -> Question:
    return replace(question, prompt="", turn=0)


def tally(given: Iterable[Answer], bounds: Mapping[str, Limits]) -> tuple[list[CategoryScore], list[NounScore]]:
    """The scores of every category and noun that was asked for."""
    prompts, asked, right, spare = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    nouns, missing, wrong = Counter[str](), Counter[str](), Counter[str]()
    for question, _, verdicts in given:
        prompts[question.category] += 1
        for v in verdicts:
            asked[question.category] += 1
            right[question.category] += v.right
            spare[question.category] += v.spare > 0
            nouns.update(question.nouns)
            missing.update(v.missing)
            wrong.update(noun for noun in question.nouns if not v.right and noun not in v.missing)
    categories = []
    for name, count in asked.items():
        low, high = wilson(right[name], count)
        categories.append(
            CategoryScore(
                name=name,
                prompts=prompts[name],
                pictures=count,
                right=right[name],
                share=right[name] / count,
                low=low,
                high=high,
                **bounds[name]._asdict(),
                spare=spare[name] / count,
            )
        )
    worst = sorted(nouns, key=lambda noun: -(missing[noun] + wrong[noun]) / nouns[noun])
    return categories, [NounScore(noun, nouns[noun], missing[noun], wrong[noun]) for noun in worst]


def mean_of(categories: Sequence[CategoryScore]) -> tuple[float, float, float]:
    """The mean of the six and its 95 % interval, from theirs (Zou & Donner 2008)."""
    six = [category for category in categories if category.name in SIX]
    mean = sum(c.share for c in six) / max(1, len(six))
    low = math.sqrt(sum((c.share - c.low) ** 2 for c in six)) / max(1, len(six))
    high = math.sqrt(sum((c.high - c.share) ** 2 for c in six)) / max(1, len(six))
    return mean, mean - low, mean + high


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), as if pictures were independent; those of one prompt are a little
    less so."""
    if count == 0:
        return 0.0, 1.0
    share, z = right / count, Z * Z / count
    middle = (share + z / 2) / (1 + z)
    half = math.sqrt(share * (1 - share) * z + z * z / 4) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)
