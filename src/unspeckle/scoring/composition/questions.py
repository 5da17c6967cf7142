"""What a model is asked to draw: prompts of combinations kept out of training, and what their pictures must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from unspeckle.corpus.emoji.scene_sampling import sample_scene
from unspeckle.corpus.emoji.scenes import Scene, SceneVocabulary
from unspeckle.corpus.emoji.sprites import SpriteLibrary, open_sprite_library
from unspeckle.errors import InputError

CATEGORIES: dict[str, tuple[str, str]] = {  # the kind of its rows in held-out.jsonl, the kind of its scenes
    "one object": ("background", "single"),
    "two objects": ("pair", "two"),
    "counting": ("count", "count"),
    "colours": ("tint", "single"),
    "position": ("place", "two"),
    "colour binding": ("colors", "two"),
    "on stilts": ("stilts", "stilts"),
    "wearing": ("wearing", "wearing"),
    "hybrids": ("hybrid", "hybrid"),
}
OLD_ROW_KINDS = {"colours": "colors"}
"""Kinds of rows as version 0.1 wrote them, with their names of today."""
PROTOCOL_PROMPTS = 100  # prompts of each category, where nobody has to wait for them
GENEVAL_CATEGORIES = tuple(CATEGORIES)[:6]
"""GenEval's six (Ghosh et al. 2023); their mean is the words score."""


@dataclass(frozen=True)
class CompositionPrompt:
    """A prompt, and what of it can be true or false. `turn` counts the prompt's repetitions: each has its own seeds."""

    category: str
    text: str
    nouns: tuple[str, ...]
    tints: tuple[str, ...] = ()  # of the nouns
    object_count: int = 0
    relation: str = ""  # "left of" or "above": the first noun to the second
    wearing: str = ""
    background: str = ""
    repetition: int = 0


@dataclass(frozen=True)
class CompositionTest:
    """What a corpus lets a model be asked, and what the judge learns from: all that its folder and its sprites tell,
    opened before anything is drawn."""

    prompts: list[CompositionPrompt]
    hybrid_pairs: list[tuple[str, str]]  # of faces whose hybrid training never showed
    library: SpriteLibrary
    image_size: int  # of the corpus's pictures, pixels a side


def read_composition_test(corpus: Path, prompts_per_category: int = PROTOCOL_PROMPTS) -> CompositionTest:
    """`each` questions of every category. InputError where the folder is no emoji corpus or its sprites are gone."""
    hybrid_nouns = {prompt.nouns for prompt in read_composition_prompts(corpus, 10_000) if prompt.category == "hybrids"}
    return CompositionTest(
        read_composition_prompts(corpus, prompts_per_category),
        sorted((first, second) for first, second in hybrid_nouns),
        *open_corpus_sprites(corpus),
    )


def read_composition_prompts(corpus: Path, prompts_per_category: int = PROTOCOL_PROMPTS) -> list[CompositionPrompt]:
    """`each` questions of every category that the corpus has, from its held-out.jsonl alone.

    Where a category has more prompts, they are taken at even distances; where fewer, they come again and again.
    InputError where the folder is no emoji corpus.
    """
    if prompts_per_category < 1:
        raise InputError(f"--each {prompts_per_category}: it takes 1 or more")
    rows = [_parse_object(line) for line in _read_text(corpus, "held-out.jsonl").splitlines()]
    prompts: list[CompositionPrompt] = []
    for category, (kind, _) in CATEGORIES.items():
        candidates = [
            prompt
            for row in rows
            if OLD_ROW_KINDS.get(str(row.get("kind")), row.get("kind")) == kind
            for prompt in _row_prompts(category, row, corpus)
        ]
        count = len(candidates)
        for i in range(prompts_per_category if candidates else 0):
            repetition, index = (
                (0, i * count // prompts_per_category) if count >= prompts_per_category else divmod(i, count)
            )
            prompts.append(replace(candidates[index], repetition=repetition))
    return prompts


def _row_prompts(category: str, row: Mapping[str, Any], corpus: Path) -> list[CompositionPrompt]:
    """The row's prompts as questions; none where nearness is all they say."""
    if row.get("relation") == "next to":
        return []
    try:
        text = CompositionPrompt(
            category,
            "",
            nouns=tuple(row["nouns"]),
            tints=tuple(row.get("tints", [row["tint"]] if "tint" in row else [])),
            object_count=int(row.get("count", 0)),
            relation=row.get("relation", ""),
            wearing=row.get("wearing", ""),
            background=row.get("background", ""),
        )
        return [replace(prompt, prompt=prompt) for prompt in row["prompts"]]
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{corpus / 'held-out.jsonl'}: a row lacks or garbles {e}; make the corpus again") from e


def open_corpus_sprites(corpus: Path) -> tuple[SpriteLibrary, int]:
    """The sprites that a corpus was made of, opened again, and its pictures' side in pixels."""
    metadata = _parse_object(_read_text(corpus, "about.json"))
    try:
        nouns, size, source = list(metadata["nouns"]), int(metadata["size"]), Path(metadata["sprites"])
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{corpus / 'about.json'}: lacks or garbles {e}; make the corpus again") from e
    folder = None if source.name == str(source) else source
    try:
        return open_sprite_library(nouns, folder), size
    except InputError as e:
        hint = "" if folder is None else "; put them back where its about.json says, or make the corpus again"
        raise InputError(f"the sprites that the corpus was made of cannot be opened: {e}{hint}") from e


def sample_matching_scene(prompt: CompositionPrompt, rng: Random, palette: SceneVocabulary) -> Scene:
    """A true scene for a question, as the corpus would paint it if it were not kept out; else it says no more."""
    nouns = prompt.nouns
    backgrounds = {**palette.backgrounds, **({"": [prompt.background]} if prompt.background else {})}
    restricted_palette = replace(
        palette,
        nouns=list(nouns),
        tints={noun: [tint] for noun, tint in zip(nouns, prompt.tints, strict=False)},
        backgrounds=backgrounds,
        wearer_nouns=list(nouns) if prompt.wearing else [],
        garments=[prompt.wearing] if prompt.wearing else [],
        hybrid_nouns=list(nouns) if prompt.category == "hybrids" else [],
    )
    for _ in range(20_000):
        scene = sample_scene(rng, restricted_palette, lambda _: True)
        if scene_matches(scene, prompt):
            return scene
    raise InputError(f"{prompt.text!r}: the corpus has no such scene; make it again with this unspeckle")


def make_hard_negative(prompt: CompositionPrompt, palette: SceneVocabulary) -> CompositionPrompt:
    """What comes nearest to a question and is not it: one more of them, colours or places exchanged, both animals side
    by side instead of crossed, another garment, no stilts."""

    def pick_other(options: Sequence[str], excluded: str) -> str:
        return next((option for option in options if option != excluded), "")

    first = prompt.nouns[0]
    match prompt.category:
        case "counting":
            return replace(prompt, object_count=prompt.object_count + 1 if prompt.object_count < 4 else 3)
        case "position":
            return replace(prompt, nouns=prompt.nouns[::-1])
        case "colour binding":
            return replace(prompt, tints=prompt.tints[::-1])
        case "colours":
            return replace(prompt, tints=(pick_other(palette.tints[first], prompt.tints[0]),))
        case "one object":
            return replace(prompt, background=pick_other(palette.backgrounds[first], prompt.background))
        case "two objects":
            return replace(prompt, category="counting", nouns=(first,), object_count=2)
        case "wearing":
            return replace(prompt, wearing=pick_other(palette.garments, prompt.wearing))
        case "hybrids":
            return replace(prompt, category="two objects")
        case _:
            return CompositionPrompt("one object", "", (first,))


def scene_matches(scene: Scene, prompt: CompositionPrompt) -> bool:
    """Whether the scene is what the question says and nothing else that could be said."""
    things, wanted_tints = scene.objects, prompt.tints or ("",) * len(prompt.nouns)
    if scene.kind != CATEGORIES[prompt.category][1] or any(thing.size_word for thing in things):
        return False
    if prompt.category == "hybrids":
        return sorted(things[0].hybrid_of or ()) == sorted(prompt.nouns)
    if sorted({(thing.noun, thing.tint) for thing in things}) != sorted(zip(prompt.nouns, wanted_tints, strict=True)):
        return False
    if prompt.object_count and len(things) != prompt.object_count:
        return False
    if things[0].wearing != prompt.wearing or scene.background != (prompt.background or scene.background):
        return False
    return not prompt.relation or _relation_matches(scene, prompt)


def _relation_matches(scene: Scene, prompt: CompositionPrompt) -> bool:
    """Whether the scene has that relation, or the turned one of its nouns turned round."""
    first, second = (thing.noun for thing in scene.objects)
    opposite = {"left of": "right of", "above": "below"}[prompt.relation]
    scene_relation = (first, scene.relation, second)
    noun_a, noun_b = prompt.nouns
    return scene_relation in {(noun_a, prompt.relation, noun_b), (noun_b, opposite, noun_a)}


def _read_text(corpus: Path, name: str) -> str:
    try:
        return (corpus / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise InputError(
            f"{corpus / name}: cannot be read ({reason}); give a folder that `unspeckle make-corpus emoji` made"
        ) from e


def _parse_object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as e:
        raise InputError(f"not JSON: {line[:60]!r}; make the corpus again") from e
    if not isinstance(value, dict):
        raise InputError(f"not an object: {line[:60]!r}; make the corpus again")
    return value
