"""What a model is asked to draw: prompts of combinations kept out of training, and what their pictures must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from unspeckle.corpus.emoji.scenes import Palette, Scene, choose_scene
from unspeckle.corpus.emoji.sprites import Library, open_library
from unspeckle.errors import InputError

CATEGORIES: dict[str, tuple[str, str]] = {  # the kind of its rows in held-out.jsonl, the kind of its scenes
    "one object": ("background", "single"),
    "two objects": ("pair", "two"),
    "counting": ("count", "count"),
    "colours": ("tint", "single"),
    "position": ("place", "two"),
    "colour binding": ("colours", "two"),
    "on stilts": ("stilts", "stilts"),
    "wearing": ("wearing", "wearing"),
    "hybrids": ("hybrid", "hybrid"),
}
PROTOCOL = 100  # prompts of each category, where nobody has to wait for them
SIX = tuple(CATEGORIES)[:6]
"""GenEval's six (Ghosh et al. 2023); their mean is the words score."""


@dataclass(frozen=True)
class Question:
    """A prompt, and what of it can be true or false. `turn` counts the prompt's repetitions: each has its own seeds."""

    category: str
    prompt: str
    nouns: tuple[str, ...]
    tints: tuple[str, ...] = ()  # of the nouns
    count: int = 0
    relation: str = ""  # "left of" or "above": the first noun to the second
    wearing: str = ""
    background: str = ""
    turn: int = 0


@dataclass(frozen=True)
class Exam:
    """What a corpus lets a model be asked, and what the judge learns from: all that its folder and its sprites tell,
    opened before anything is drawn."""

    asked: list[Question]
    pairs: list[tuple[str, str]]  # of faces whose hybrid training never showed
    library: Library
    size: int  # of the corpus's pictures, pixels a side


def exam_of(corpus: Path, each: int = PROTOCOL) -> Exam:
    """`each` questions of every category. InputError where the folder is no emoji corpus or its sprites are gone."""
    crossed = {q.nouns for q in questions(corpus, 10_000) if q.category == "hybrids"}
    return Exam(questions(corpus, each), sorted((one, other) for one, other in crossed), *library_of(corpus))


def questions(corpus: Path, each: int = PROTOCOL) -> list[Question]:
    """`each` questions of every category that the corpus has, from its held-out.jsonl alone.

    Where a category has more prompts, they are taken at even distances; where fewer, they come again and again.
    InputError where the folder is no emoji corpus.
    """
    if each < 1:
        raise InputError(f"--each {each}: it takes 1 or more")
    rows = [_parsed(line) for line in _read(corpus, "held-out.jsonl").splitlines()]
    asked: list[Question] = []
    for category, (kind, _) in CATEGORIES.items():
        known = [q for row in rows if row.get("kind") == kind for q in _of_row(category, row, corpus)]
        count = len(known)
        for i in range(each if known else 0):
            turn, place = (0, i * count // each) if count >= each else divmod(i, count)
            asked.append(replace(known[place], turn=turn))
    return asked


def _of_row(category: str, row: Mapping[str, Any], corpus: Path) -> list[Question]:
    """The row's prompts as questions; none where nearness is all they say."""
    if row.get("relation") == "next to":
        return []
    try:
        question = Question(
            category,
            "",
            nouns=tuple(row["nouns"]),
            tints=tuple(row.get("tints", [row["tint"]] if "tint" in row else [])),
            count=int(row.get("count", 0)),
            relation=row.get("relation", ""),
            wearing=row.get("wearing", ""),
            background=row.get("background", ""),
        )
        return [replace(question, prompt=prompt) for prompt in row["prompts"]]
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{corpus / 'held-out.jsonl'}: a row lacks or garbles {e}; make the corpus again") from e


def library_of(corpus: Path) -> tuple[Library, int]:
    """The sprites that a corpus was made of, opened again, and its pictures' side in pixels."""
    about = _parsed(_read(corpus, "about.json"))
    try:
        nouns, size, source = list(about["nouns"]), int(about["size"]), Path(about["sprites"])
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{corpus / 'about.json'}: lacks or garbles {e}; make the corpus again") from e
    folder = None if source.name == str(source) else source
    try:
        return open_library(nouns, folder), size
    except InputError as e:
        mend = "" if folder is None else "; put them back where its about.json says, or make the corpus again"
        raise InputError(f"the sprites that the corpus was made of cannot be opened: {e}{mend}") from e


def scene_for(question: Question, rng: Random, palette: Palette) -> Scene:
    """A true scene for a question, as the corpus would paint it if it were not kept out; else it says no more."""
    nouns = question.nouns
    grounds = {**palette.backgrounds, **({"": [question.background]} if question.background else {})}
    only = replace(
        palette,
        nouns=list(nouns),
        tints={noun: [tint] for noun, tint in zip(nouns, question.tints, strict=False)},
        backgrounds=grounds,
        wearers=list(nouns) if question.wearing else [],
        garments=[question.wearing] if question.wearing else [],
        hybrids=list(nouns) if question.category == "hybrids" else [],
    )
    for _ in range(20_000):
        scene = choose_scene(rng, only, lambda _: True)
        if holds(scene, question):
            return scene
    raise InputError(f"{question.prompt!r}: the corpus has no such scene; make it again with this unspeckle")


def lure(question: Question, palette: Palette) -> Question:
    """What comes nearest to a question and is not it: one more of them, colours or places exchanged, both animals side
    by side instead of crossed, another garment, no stilts."""

    def other(options: Sequence[str], taken: str) -> str:
        return next((option for option in options if option != taken), "")

    first = question.nouns[0]
    match question.category:
        case "counting":
            return replace(question, count=question.count + 1 if question.count < 4 else 3)
        case "position":
            return replace(question, nouns=question.nouns[::-1])
        case "colour binding":
            return replace(question, tints=question.tints[::-1])
        case "colours":
            return replace(question, tints=(other(palette.tints[first], question.tints[0]),))
        case "one object":
            return replace(question, background=other(palette.backgrounds[first], question.background))
        case "two objects":
            return replace(question, category="counting", nouns=(first,), count=2)
        case "wearing":
            return replace(question, wearing=other(palette.garments, question.wearing))
        case "hybrids":
            return replace(question, category="two objects")
        case _:
            return Question("one object", "", (first,))


def holds(scene: Scene, question: Question) -> bool:
    """Whether the scene is what the question says and nothing else that could be said."""
    things, wanted = scene.things, question.tints or ("",) * len(question.nouns)
    if scene.kind != CATEGORIES[question.category][1] or any(thing.size for thing in things):
        return False
    if question.category == "hybrids":
        return sorted(things[0].hybrid_of or ()) == sorted(question.nouns)
    if sorted({(thing.noun, thing.tint) for thing in things}) != sorted(zip(question.nouns, wanted, strict=True)):
        return False
    if question.count and len(things) != question.count:
        return False
    if things[0].wearing != question.wearing or scene.background != (question.background or scene.background):
        return False
    return not question.relation or _placed(scene, question)


def _placed(scene: Scene, question: Question) -> bool:
    """Whether the scene has that relation, or the turned one of its nouns turned round."""
    first, second = (thing.noun for thing in scene.things)
    turned = {"left of": "right of", "above": "below"}[question.relation]
    said = (first, scene.relation, second)
    one, other = question.nouns
    return said in {(one, question.relation, other), (other, turned, one)}


def _read(corpus: Path, name: str) -> str:
    try:
        return (corpus / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise InputError(
            f"{corpus / name}: cannot be read ({why}); give a folder that `unspeckle make-corpus emoji` made"
        ) from e


def _parsed(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as e:
        raise InputError(f"not JSON: {line[:60]!r}; make the corpus again") from e
    if not isinstance(row, dict):
        raise InputError(f"not an object: {line[:60]!r}; make the corpus again")
    return row
