"""Combinations that never occur in training images, so that drawing them shows that a model can compose."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import combinations, permutations

from unspeckle.corpus.emoji.scene_captions import INVERSE_RELATIONS, NUMBERS
from unspeckle.corpus.emoji.scenes import Scene, SceneObject, SceneVocabulary
from unspeckle.corpus.english import with_article

Combination = tuple[str, ...]
"""A key of HELD_OUT_FRACTIONS, then what is combined, such as ("tint", "frog", "blue")."""
PromptRow = dict[str, object]
"""A row of held-out.jsonl."""

HELD_OUT_FRACTIONS = {
    "pair": 0.06,  # two nouns in one image
    "tint": 0.12,  # a noun in a color
    "background": 0.08,  # a noun on a background
    "place": 0.05,  # a noun, a relation, a noun
    "count": 0.12,  # two, three or four of a noun
    "stilts": 0.15,  # a noun on stilts
    "wearing": 0.18,  # a noun and a garment
    "hybrid": 0.15,  # two nouns in one
}
"""The share of each kind of combination that is held out."""
ALWAYS_HELD_OUT: frozenset[Combination] = frozenset({("hybrid", "frog", "rabbit"), ("stilts", "frog")})
MAX_ROWS_PER_KIND = 2000
"""Rows of each kind in held-out.jsonl."""


@cache
def is_held_out(combination: Combination) -> bool:
    """Whether a combination is held out of training. Only a hash of its words decides, whatever the seed."""
    if combination in ALWAYS_HELD_OUT:
        return True
    # A white background is what a caption without one means, so it is always allowed.
    return _hash_fraction(combination) < HELD_OUT_FRACTIONS[combination[0]] and combination[-1] != "white"


def _hash_fraction(combination: Combination) -> float:
    """A number from 0 to 1 that depends only on the words."""
    digest = hashlib.blake2b("|".join(combination).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def scene_combinations(scene: Scene) -> Iterator[Combination]:
    """All combinations in a scene, in canonical form: "right of" is "left of" with the nouns exchanged."""
    nouns = [obj.noun for obj in scene.objects if obj.hybrid_of is None]
    for first, second in combinations(sorted(set(nouns)), 2):
        yield ("pair", first, second)
    for noun, count in Counter(nouns).items():
        if count > 1:
            yield ("count", noun, str(count))
    for obj in scene.objects:
        if obj.hybrid_of is not None:
            yield ("hybrid", *sorted(obj.hybrid_of))
            continue
        yield ("background", obj.noun, scene.background)
        if obj.tint:
            yield ("tint", obj.noun, obj.tint)
        if obj.on_stilts:
            yield ("stilts", obj.noun)
        if obj.wearing:
            yield ("wearing", obj.noun, obj.wearing)
    for first_object, relation, second_object in _relations(scene):
        yield from _relation_combinations(first_object, second_object, relation)


def _relations(scene: Scene) -> Iterator[tuple[SceneObject, str, SceneObject]]:
    """Which object has which relation to which, once for two nouns."""
    objects = scene.objects
    if scene.kind == "trio":
        yield objects[0], "left of", objects[1]
        for other in objects[:2]:
            yield objects[2], scene.relation, other
    elif scene.relation:
        yield objects[0], scene.relation, objects[-1]


def _relation_combinations(first: SceneObject, second: SceneObject, relation: str) -> Iterator[Combination]:
    if relation == "next to":
        yield ("place", *sorted((first.noun, second.noun)), "next to")
    if relation in {"left of", "right of", "next to"}:
        left, right = (first, second) if first.x < second.x else (second, first)
        yield ("place", left.noun, right.noun, "left of")
    else:
        upper, lower = (first, second) if first.y < second.y else (second, first)
        yield ("place", upper.noun, lower.noun, "above")


def is_allowed_in_training(scene: Scene) -> bool:
    """Whether a scene contains no combination that is held out."""
    return not any(is_held_out(combination) for combination in scene_combinations(scene))


def held_out_rows(vocabulary: SceneVocabulary) -> Iterator[PromptRow]:
    """The rows of held-out.jsonl: kind, nouns, what is combined, and prompts; at most MAX_ROWS_PER_KIND of a kind.

    Rows of kind "colors" give each noun of a held-out pair a tint that it does have in training.
    """
    for kind in HELD_OUT_FRACTIONS:
        held_out = sorted(
            (combination for combination in _all_combinations(kind, vocabulary) if is_held_out(combination)),
            key=_hash_fraction,
        )[:MAX_ROWS_PER_KIND]
        for combination in sorted(held_out):
            yield _prompt_row(combination, vocabulary)
            if kind == "pair":
                yield from _color_rows(combination, vocabulary)


def _color_rows(pair: Combination, vocabulary: SceneVocabulary) -> Iterator[PromptRow]:
    nouns, tints = pair[1:], list[str]()
    for noun in nouns:
        tint_options = [
            tint for tint in vocabulary.tints[noun] if tint not in tints and not is_held_out(("tint", noun, tint))
        ]
        if not tint_options:
            return
        tints.append(min(tint_options, key=lambda tint: _hash_fraction((*pair, noun, tint))))
    first, second = (with_article(f"{tint} {noun}") for tint, noun in zip(tints, nouns, strict=True))
    prompts = [f"{first} and {second}", f"{second} and {first}"]
    yield {"kind": "colors", "nouns": list(nouns), "tints": tints, "prompts": prompts}


def _all_combinations(kind: str, vocabulary: SceneVocabulary) -> Iterator[Combination]:
    nouns = vocabulary.nouns
    if kind == "pair":
        yield from (("pair", *pair) for pair in combinations(sorted(nouns), 2))
    elif kind == "tint":
        yield from (("tint", noun, tint) for noun in nouns for tint in vocabulary.tints[noun])
    elif kind == "background":
        yield from (("background", noun, background) for noun in nouns for background in vocabulary.backgrounds[noun])
    elif kind == "place":
        yield from (("place", *pair, relation) for pair in permutations(nouns, 2) for relation in ("left of", "above"))
        yield from (("place", *pair, "next to") for pair in combinations(sorted(nouns), 2))
    elif kind == "count":
        yield from (("count", noun, str(count)) for noun in nouns for count in (2, 3, 4))
    elif kind == "stilts":
        yield from (("stilts", noun) for noun in nouns)
    elif kind == "wearing":
        yield from (("wearing", noun, garment) for noun in vocabulary.wearer_nouns for garment in vocabulary.garments)
    else:
        yield from (("hybrid", *pair) for pair in combinations(sorted(vocabulary.hybrid_nouns), 2))


def _prompt_row(combination: Combination, vocabulary: SceneVocabulary) -> PromptRow:
    """The row of a combination, with the prompts that a model is tested with."""
    kind, *words = combination
    first, last = with_article(words[0]), words[-1]
    row: PromptRow = {"kind": kind, "nouns": words[:1]}
    match kind:
        case "stilts":
            return row | {"prompts": [f"{first} on stilts", f"{first} standing on stilts"]}
        case "tint":
            return row | {"tint": last, "prompts": [with_article(f"{last} {words[0]}")]}
        case "background":
            return row | {"background": last, "prompts": [f"{first} on {with_article(last)} background"]}
        case "count":
            return row | {"count": int(last), "prompts": [f"{NUMBERS[int(last)]} {vocabulary.plurals[words[0]]}"]}
        case "wearing":
            return row | {"wearing": last, "prompts": [f"{first} wearing {with_article(last)}"]}
    second = with_article(words[1])
    row["nouns"] = words[:2]
    match kind:
        case "hybrid":
            prompts = [with_article(f"{words[0]}-{words[1]} hybrid"), f"half {words[0]} half {words[1]}"]
            return row | {"prompts": [*prompts, f"a cross between {first} and {second}"]}
        case "place":
            prompts = [f"{first} {last} {second}", f"{second} {INVERSE_RELATIONS[last]} {first}"]
            return row | {"relation": last, "prompts": prompts}
        case _:
            return row | {"prompts": [f"{first} and {second}", f"{second} and {first}"]}
