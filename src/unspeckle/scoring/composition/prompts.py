"""The composition test: prompts of combinations that are held out of training, and what their images must show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unspeckle.corpus.emoji.sprites import SpriteLibrary, open_sprite_library
from unspeckle.errors import InputError

# Each category's kind of rows in held-out.jsonl, and its kind of scenes
CATEGORIES: dict[str, tuple[str, str]] = {
    "one object": ("background", "single"),
    "two objects": ("pair", "two"),
    "counting": ("count", "count"),
    "colors": ("tint", "single"),
    "position": ("place", "two"),
    "color binding": ("colors", "two"),
    "on stilts": ("stilts", "stilts"),
    "wearing": ("wearing", "wearing"),
    "hybrids": ("hybrid", "hybrid"),
}
GENEVAL_CATEGORIES = tuple(CATEGORIES)[:6]  # those of Ghosh et al. 2023; their mean is the composition score
OLD_ROW_KINDS = {"colours": "colors"}  # kinds of rows that version 0.1 wrote
PROTOCOL_PROMPTS = 100  # prompts of each category for a published score
HELD_OUT_FILE, CORPUS_FILE = "held-out.jsonl", "about.json"  # what `unspeckle make-corpus emoji` writes


@dataclass(frozen=True)
class WantedObject:
    """One or more objects of a noun, and what a prompt says of them."""

    noun: str
    count: int = 0  # exactly so many; 0 means at least one
    tint: str = ""  # of each of them, and so are the next two
    wearing: str = ""
    on_stilts: bool = False


@dataclass(frozen=True)
class CompositionPrompt:
    """A prompt, and everything it says that can be true or false of an image."""

    category: str  # a key of CATEGORIES, or one of FREE_CATEGORIES
    text: str  # the prompt itself
    nouns: tuple[str, ...]
    tints: tuple[str, ...] = ()  # one for each noun, or none
    object_count: int = 0  # how many objects of the first noun; 0 if the prompt does not say
    relation: str = ""  # where the first noun is as seen from the second: "left of", "right of", "above" or "below"
    wearing: str = ""  # a garment
    background: str = ""  # the name of a color
    repetition: int = 0  # a prompt that is repeated gets other seeds each time
    objects: tuple[WantedObject, ...] = ()  # of free wording: all that is wanted, in place of tints, count and garment
    is_hybrid: bool = False  # of free wording: one object that is both nouns

    @property
    def wants_hybrid(self) -> bool:
        """Whether it asks for one object that is both nouns."""
        return self.is_hybrid or self.category == "hybrids"


def read_composition_prompts(corpus: Path, prompts_per_category: int = PROTOCOL_PROMPTS) -> list[CompositionPrompt]:
    """The prompts of every category that the corpus's held-out.jsonl has.

    A category with more prompts than needed gives evenly spaced ones; one with fewer repeats them. InputError if the
    folder is not an emoji corpus, or prompts_per_category is below 1.
    """
    if prompts_per_category < 1:
        raise InputError(f" {prompts_per_category}: must be at least 1", "prompts_per_category")
    rows = read_held_out_rows(corpus)
    prompts: list[CompositionPrompt] = []
    for category, (kind, _) in CATEGORIES.items():
        candidates = [prompt for row in rows if row_kind(row) == kind for prompt in _row_prompts(category, row, corpus)]
        count = len(candidates)
        for i in range(prompts_per_category if candidates else 0):
            if count >= prompts_per_category:
                repetition, index = 0, i * count // prompts_per_category
            else:
                repetition, index = divmod(i, count)
            prompts.append(replace(candidates[index], repetition=repetition))
    return prompts


def read_held_out_rows(corpus: Path) -> list[dict[str, Any]]:
    """The rows of the corpus's held-out.jsonl. InputError if the folder has none."""
    return [_parse_object(line) for line in _read_text(corpus, HELD_OUT_FILE).splitlines()]


def row_kind(row: Mapping[str, Any]) -> str:
    """The kind of a row of held-out.jsonl, by its name of today."""
    kind = str(row.get("kind"))
    return OLD_ROW_KINDS.get(kind, kind)


def _row_prompts(category: str, row: Mapping[str, Any], corpus: Path) -> list[CompositionPrompt]:
    """The prompts of a row; none for "next to", which no image could contradict."""
    if row.get("relation") == "next to":
        return []
    try:
        prompt = CompositionPrompt(
            category,
            text="",
            nouns=tuple(row["nouns"]),
            tints=tuple(row.get("tints", [row["tint"]] if "tint" in row else [])),
            object_count=int(row.get("count", 0)),
            relation=row.get("relation", ""),
            wearing=row.get("wearing", ""),
            background=row.get("background", ""),
        )
        return [replace(prompt, text=text) for text in row["prompts"]]
    except KeyError as e:
        raise InputError(f"{corpus / HELD_OUT_FILE}: a row has no {e}; make the corpus again") from e
    except (TypeError, ValueError) as e:
        raise InputError(f"{corpus / HELD_OUT_FILE}: a row has a wrong value ({e}); make the corpus again") from e


def open_corpus_sprites(corpus: Path) -> tuple[SpriteLibrary, int]:
    """The sprites that a corpus was made of, and the side of its images in pixels.

    InputError if the corpus does not name them, or they are no longer there.
    """
    about = _parse_object(_read_text(corpus, CORPUS_FILE))
    try:
        nouns, size, source = list(about["nouns"]), int(about["size"]), Path(about["sprites"])
    except KeyError as e:
        raise InputError(f"{corpus / CORPUS_FILE}: has no {e}; make the corpus again") from e
    except (TypeError, ValueError) as e:
        raise InputError(f"{corpus / CORPUS_FILE}: has a wrong value ({e}); make the corpus again") from e
    folder = None if source.name == str(source) else source
    try:
        return open_sprite_library(nouns, folder), size
    except InputError as e:
        hint = "" if folder is None else f"; put them back where its {CORPUS_FILE} says, or make the corpus again"
        raise InputError(f"the sprites that the corpus was made of cannot be opened: {e}{hint}") from e


def _read_text(corpus: Path, name: str) -> str:
    try:
        return (corpus / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
        raise InputError(
            f"{corpus / name}: cannot be read ({reason}); give a folder that `unspeckle make-corpus emoji` made"
        ) from e


def _parse_object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{line[:60]!r} is not JSON; make the corpus again") from e
    if not isinstance(value, dict):
        raise InputError(f"{line[:60]!r} is not a JSON object; make the corpus again")
    return value
