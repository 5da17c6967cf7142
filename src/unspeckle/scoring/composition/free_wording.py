"""Prompts as people write them, for the composition test: from a list written by hand, and from a grammar.

The list (free_wording.jsonl) was written before any model was trained for it, by somebody who had seen only the nouns.
The grammar asks for the combinations that training never saw, in sentences that the corpus does not use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from random import Random
from typing import Any

from unspeckle.corpus.emoji.scene_captions import NUMBERS
from unspeckle.corpus.emoji.sprites import SpriteLibrary
from unspeckle.corpus.english import with_article
from unspeckle.scoring.composition.prompts import CompositionPrompt, WantedObject, row_kind

HAND_CATEGORY, GRAMMAR_CATEGORY = "free wording, by hand", "free wording, grammar"
FREE_CATEGORIES = (GRAMMAR_CATEGORY, HAND_CATEGORY)
HAND_FILE = "free_wording.jsonl"

_BACKGROUNDS = (
    "background {background}: {noun}", "{noun} in front of {a_background} wall", "{background} backdrop, {noun}",
    "{a_noun}, everything behind it {background}", "put {a_noun} in front of something {background}",
    "{noun} / {background} backdrop",
)  # fmt: skip
_PAIRS = (
    "{first} & {second}", "{first} plus {second}", "{first} together with {second}", "{first} meets {second}",
    "first {a_first}, then {a_second}", "{a_first} has {a_second} for company", "{first} / {second}",
    "both of them: {first}, {second}",
)  # fmt: skip
_COUNTS = (
    "{digit}x {noun}", "exactly {number} {plural}", "{plural}: {number}", "{plural} ({digit})",
    "a group of {number} {plural}", "there should be {number} {plural}", "{noun}, {number} times",
    "{number} of those {plural} everybody likes",
)  # fmt: skip
_TINTS = (
    "{noun} but {tint}", "{noun}, {tint} all over", "make the {noun} {tint}", "{tint} version of {a_noun}",
    "{noun} dyed {tint}", "{a_noun} as {tint} as can be", "{noun} ({tint})", "color the {noun} {tint}",
)  # fmt: skip
_PLACES = {
    "left of": (
        "left: {first}. right: {second}", "{first} stands left, {second} stands right", "left {first} right {second}",
        "{a_second} with {a_first} at its left side", "from left to right: {first}, {second}",
        "{second} right, {first} left",
    ),
    "above": (
        "top: {first}, bottom: {second}", "up {first}, down {second}", "{second} with {first} above it",
        "{a_first} floats above {a_second}", "{second} is at the bottom while {first} is at the top",
        "from top to bottom: {first}, {second}",
    ),
}  # fmt: skip
_COLORS = (
    "{first} ({first_tint}) & {second} ({second_tint})", "{first} is {first_tint}, {second} is {second_tint}",
    "the {first_tint} one is {a_first}, the {second_tint} one {a_second}",
    "{first_tint} {first} / {second_tint} {second}", "{first} all {first_tint}, {second} all {second_tint}",
    "{first_tint} {first} meets {second_tint} {second}",
)  # fmt: skip
_STILTS = (
    "{noun} up on its stilts", "put the {noun} on stilts", "stilts under {a_noun}", "{noun} + stilts",
    "{noun} who has stilts for legs", "so tall because of stilts: {noun}", "stilts carry {a_noun}",
)  # fmt: skip
_WEARING = (
    "{noun} + {garment}", "{a_noun}, and it wears {a_garment}", "{noun} who put on {a_garment}",
    "dress the {noun}: {garment}", "{noun} having {a_garment} on", "put {a_garment} on the {noun}",
)  # fmt: skip
_HYBRIDS = (
    "hybrid: {first}, {second}", "{first} x {second} hybrid", "mix {first} with {second}", "{first}/{second} mix",
    "if {a_first} and {a_second} were one animal", "{first} and {second} hybrid", "fusion {first} + {second}",
    "cross {a_first} with {a_second}",
)  # fmt: skip


def read_hand_prompts(library: SpriteLibrary) -> list[CompositionPrompt]:
    """The prompts of the list that ask for nouns, garments and hybrids of this library only."""
    text = resources.files("unspeckle.scoring.composition").joinpath(HAND_FILE).read_text("utf-8")
    prompts = (prompt_from_facts(json.loads(line)) for line in text.splitlines())
    return [prompt for prompt in prompts if _can_be_painted(prompt, library)]


def _can_be_painted(prompt: CompositionPrompt, library: SpriteLibrary) -> bool:
    if not set(library.nouns).issuperset(prompt.nouns):
        return False
    faces = [library.sprites[noun].noun.face for noun in prompt.nouns]
    if prompt.is_hybrid:
        return all(face is not None and face.seam_y is not None for face in faces)
    return all(
        not wanted.wearing or (face is not None and wanted.wearing in library.garments)
        for wanted, face in zip(prompt.objects, faces, strict=True)
    )


def prompt_from_facts(facts: Mapping[str, Any]) -> CompositionPrompt:
    """The prompt of a line of the list, {"prompt": …, "objects": [{"noun": …, "count": …, "color": …, "on_stilts": …,
    "wearing": …}], "relation": [name, first index, second index], "background": …, "hybrid_of": …}, in which what the
    prompt leaves open is left out."""
    background = facts.get("background", "")
    if pair := facts.get("hybrid_of"):
        return CompositionPrompt(HAND_CATEGORY, facts["prompt"], tuple(pair), background=background, is_hybrid=True)
    objects = [
        WantedObject(
            noun=one["noun"],
            count=one.get("count", 0),
            tint=one.get("color", ""),
            wearing=one.get("wearing", ""),
            on_stilts=one.get("on_stilts", False),
        )
        for one in facts["objects"]
    ]
    relation = ""
    if facts.get("relation"):
        relation, first, _ = facts["relation"]
        if first == 1:  # in terms of the first object
            relation = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[relation]
    nouns = tuple(one.noun for one in objects)
    return CompositionPrompt(
        HAND_CATEGORY, facts["prompt"], nouns, background=background, relation=relation, objects=tuple(objects)
    )


def grammar_prompts(
    rows: Sequence[Mapping[str, Any]], plurals: Mapping[str, str], count: int
) -> list[CompositionPrompt]:
    """Prompts for held-out combinations, rows of held-out.jsonl: evenly many of each kind, count in all."""
    rng = Random("unspeckle free wording")
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        kind = row_kind(row)
        if kind in _WRITERS and row.get("relation") != "next to":
            by_kind.setdefault(kind, []).append(dict(row) | {"kind": kind})
    prompts: list[CompositionPrompt] = []
    for place, (kind, kind_rows) in enumerate(by_kind.items()):
        kind_count = count * (place + 1) // len(by_kind) - count * place // len(by_kind)
        for i in range(kind_count):
            row = kind_rows[i * len(kind_rows) // kind_count if kind_count <= len(kind_rows) else i % len(kind_rows)]
            prompts.append(_WRITERS[kind](rng, row, plurals))
    return prompts


Writer = Callable[[Random, Mapping[str, Any], Mapping[str, str]], CompositionPrompt]


def _write(rng: Random, templates: Sequence[str], **words: str) -> str:
    words |= {f"a_{name}": with_article(word) for name, word in words.items()}
    return rng.choice(templates).format(**words)


def _one(rng: Random, row: Mapping[str, Any], plurals: Mapping[str, str]) -> CompositionPrompt:
    (noun,), kind = row["nouns"], row["kind"]
    if kind == "count":
        count = int(row["count"])
        words = {"noun": noun, "plural": plurals[noun], "number": NUMBERS[count], "digit": str(count)}
        return _prompt(_write(rng, _COUNTS, **words), WantedObject(noun, count))
    if kind == "background":
        background = row["background"]
        text = _write(rng, _BACKGROUNDS, noun=noun, background=background)
        return _prompt(text, WantedObject(noun, 1), background=background)
    if kind == "tint":
        return _prompt(_write(rng, _TINTS, noun=noun, tint=row["tint"]), WantedObject(noun, 1, tint=row["tint"]))
    if kind == "stilts":
        return _prompt(_write(rng, _STILTS, noun=noun), WantedObject(noun, 1, on_stilts=True))
    garment = row["wearing"]
    return _prompt(_write(rng, _WEARING, noun=noun, garment=garment), WantedObject(noun, 1, wearing=garment))


def _two(rng: Random, row: Mapping[str, Any], plurals: Mapping[str, str]) -> CompositionPrompt:
    first, second = row["nouns"]
    objects = WantedObject(first, 1), WantedObject(second, 1)
    if row["kind"] == "pair":
        return _prompt(_write(rng, _PAIRS, first=first, second=second), *objects)
    if row["kind"] == "place":
        relation = row["relation"]
        return _prompt(_write(rng, _PLACES[relation], first=first, second=second), *objects, relation=relation)
    tints = row["tints"]
    words = {"first": first, "second": second, "first_tint": tints[0], "second_tint": tints[1]}
    tinted = (WantedObject(noun, 1, tint=tint) for noun, tint in zip((first, second), tints, strict=True))
    return _prompt(_write(rng, _COLORS, **words), *tinted)


def _hybrid(rng: Random, row: Mapping[str, Any], plurals: Mapping[str, str]) -> CompositionPrompt:
    first, second = row["nouns"]
    text = _write(rng, _HYBRIDS, first=first, second=second)
    return CompositionPrompt(GRAMMAR_CATEGORY, text, (first, second), is_hybrid=True)


def _prompt(text: str, *objects: WantedObject, background: str = "", relation: str = "") -> CompositionPrompt:
    nouns = tuple(one.noun for one in objects)
    return CompositionPrompt(GRAMMAR_CATEGORY, text, nouns, background=background, relation=relation, objects=objects)


_WRITERS: dict[str, Writer] = {
    "background": _one, "pair": _two, "count": _one, "tint": _one, "place": _two, "colors": _two, "stilts": _one,
    "wearing": _one, "hybrid": _hybrid,
}  # fmt: skip


def templates() -> Iterator[str]:
    """All sentences of the grammar, for tests: none of them is one of the corpus's."""
    for group in (_BACKGROUNDS, _PAIRS, _COUNTS, _TINTS, *_PLACES.values(), _COLORS, _STILTS, _WEARING, _HYBRIDS):
        yield from group
