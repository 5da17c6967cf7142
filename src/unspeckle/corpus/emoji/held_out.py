"""Combinations that never occur in training, so that drawing them proves composition."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import combinations, permutations

from unspeckle.corpus.emoji.captions import NUMBERS
from unspeckle.corpus.emoji.nouns import with_article
from unspeckle.corpus.emoji.scenes import Scene, SceneVocabulary

Combination = tuple[str, ...]

HELD_OUT_FRACTIONS = {  # the share of each kind that is kept out
    "pair": 0.06,  # two nouns in one picture
    "tint": 0.12,  # a noun in a colour
    "background": 0.08,  # a noun on a background
    "place": 0.05,  # a noun, a relation, a noun
    "count": 0.12,  # so many of a noun
    "stilts": 0.15,
    "wearing": 0.18,
    "hybrid": 0.15,
}
ALWAYS_HELD_OUT: frozenset[Combination] = frozenset({("hybrid", "frog", "rabbit"), ("stilts", "frog")})
MAX_ROWS_PER_KIND = 2000  # rows of each kind in held-out.jsonl


@cache
def is_held_out(combination: Combination) -> bool:
    """Whether a combination is kept out of training: a hash of its words alone decides, whatever the seed."""
    if combination in ALWAYS_HELD_OUT:
        return True
    return _hash_fraction(combination) < HELD_OUT_FRACTIONS[combination[0]] and combination[-1] != "white"


def _hash_fraction(combination: Combination) -> float:
    digest = hashlib.blake2b("|".join(combination).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def scene_combinations(scene: Scene) -> Iterator[Combination]:
    """All that a scene combines, in canonical words ("right of" is "left of" turned round)."""
    nouns = [obj.noun for obj in scene.objects if obj.hybrid_of is None]
    for first, second in combinations(sorted(set(nouns)), 2):
        yield ("pair", first, second)
    if len(nouns) > 1 and len(set(nouns)) == 1:
        yield ("count", nouns[0], str(len(nouns)))
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
    if scene.relation:
        yield from _relation_combinations(scene)


def _relation_combinations(scene: Scene) -> Iterator[Combination]:
    first, second = scene.objects[:2]
    if scene.relation == "next to":
        yield ("place", *sorted((first.noun, second.noun)), "next to")
    if scene.relation in {"left of", "right of", "next to"}:
        left, right = (first, second) if first.x < second.x else (second, first)
        yield ("place", left.noun, right.noun, "left of")
    else:
        upper, lower = (first, second) if first.y < second.y else (second, first)
        yield ("place", upper.noun, lower.noun, "above")


def is_allowed_in_training(scene: Scene) -> bool:
    """Whether a scene may be trained on."""
    return not any(is_held_out(combination) for combination in scene_combinations(scene))


def held_out_rows(vocabulary: SceneVocabulary) -> Iterator[dict[str, object]]:
    """The rows of held-out.jsonl: kind, nouns, what is combined, prompts; at most `LISTED` of a kind, by hash.

    Rows of kind "colours" give each noun of a pair that is kept out a tint that it does take in training.
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


def _color_rows(pair: Combination, vocabulary: SceneVocabulary) -> Iterator[dict[str, object]]:
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
    yield {"kind": "colours", "nouns": list(nouns), "tints": tints, "prompts": prompts}


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


def _prompt_row(combination: Combination, vocabulary: SceneVocabulary) -> dict[str, object]:
    kind, *words = combination
    first = with_article(words[0])
    if kind == "stilts":
        return {"kind": kind, "nouns": words, "prompts": [f"{first} on stilts", f"{first} standing on stilts"]}
    if kind == "tint":
        noun, tint = words
        return {"kind": kind, "nouns": [noun], "tint": tint, "prompts": [with_article(f"{tint} {noun}")]}
    if kind == "background":
        noun, background = words
        return {
            "kind": kind,
            "nouns": [noun],
            "background": background,
            "prompts": [f"{first} on {with_article(background)} background"],
        }
    if kind == "count":
        noun, number = words
        prompts = [f"{NUMBERS[int(number)]} {vocabulary.plurals[noun]}"]
        return {"kind": kind, "nouns": [noun], "count": int(number), "prompts": prompts}
    if kind == "wearing":
        noun, garment = words
        return {
            "kind": kind,
            "nouns": [noun],
            "wearing": garment,
            "prompts": [f"{first} wearing {with_article(garment)}"],
        }
    second = with_article(words[1])
    if kind == "hybrid":
        prompts = [with_article(f"{words[0]}-{words[1]} hybrid"), f"half {words[0]} half {words[1]}"]
        return {"kind": kind, "nouns": words, "prompts": [*prompts, f"a cross between {first} and {second}"]}
    if kind == "place":
        inverse = {"left of": "right of", "above": "below", "next to": "next to"}[words[2]]
        prompts = [f"{first} {words[2]} {second}", f"{second} {inverse} {first}"]
        return {"kind": kind, "nouns": words[:2], "relation": words[2], "prompts": prompts}
    return {"kind": kind, "nouns": words, "prompts": [f"{first} and {second}", f"{second} and {first}"]}
