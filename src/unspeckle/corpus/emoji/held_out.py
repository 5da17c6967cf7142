"""Combinations that never occur in training, so that drawing them proves composition."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import combinations, permutations

from unspeckle.corpus.emoji.captions import NUMBERS
from unspeckle.corpus.emoji.nouns import with_article
from unspeckle.corpus.emoji.scenes import Palette, Scene

Combination = tuple[str, ...]

RATES = {  # the share of each kind that is kept out
    "pair": 0.06,  # two nouns in one picture
    "tint": 0.12,  # a noun in a colour
    "background": 0.08,  # a noun on a background
    "place": 0.05,  # a noun, a relation, a noun
    "count": 0.12,  # so many of a noun
    "stilts": 0.15,
    "wearing": 0.18,
    "hybrid": 0.15,
}
CERTAIN: frozenset[Combination] = frozenset({("hybrid", "frog", "rabbit"), ("stilts", "frog")})
LISTED = 2000  # rows of each kind in held-out.jsonl


@cache
def is_held_out(combination: Combination) -> bool:
    """Whether a combination is kept out of training: a hash of its words alone decides, whatever the seed."""
    if combination in CERTAIN:
        return True
    return _rank(combination) < RATES[combination[0]] and combination[-1] != "white"


def _rank(combination: Combination) -> float:
    digest = hashlib.blake2b("|".join(combination).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def combinations_of(scene: Scene) -> Iterator[Combination]:
    """All that a scene combines, in canonical words ("right of" is "left of" turned round)."""
    nouns = [thing.noun for thing in scene.things if thing.hybrid_of is None]
    for first, second in combinations(sorted(set(nouns)), 2):
        yield ("pair", first, second)
    if len(nouns) > 1 and len(set(nouns)) == 1:
        yield ("count", nouns[0], str(len(nouns)))
    for thing in scene.things:
        if thing.hybrid_of is not None:
            yield ("hybrid", *sorted(thing.hybrid_of))
            continue
        yield ("background", thing.noun, scene.background)
        if thing.tint:
            yield ("tint", thing.noun, thing.tint)
        if thing.stilts:
            yield ("stilts", thing.noun)
        if thing.wearing:
            yield ("wearing", thing.noun, thing.wearing)
    if scene.relation:
        yield from _places(scene)


def _places(scene: Scene) -> Iterator[Combination]:
    first, second = scene.things[:2]
    if scene.relation == "next to":
        yield ("place", *sorted((first.noun, second.noun)), "next to")
    if scene.relation in {"left of", "right of", "next to"}:
        left, right = (first, second) if first.x < second.x else (second, first)
        yield ("place", left.noun, right.noun, "left of")
    else:
        upper, lower = (first, second) if first.y < second.y else (second, first)
        yield ("place", upper.noun, lower.noun, "above")


def allowed(scene: Scene) -> bool:
    """Whether a scene may be trained on."""
    return not any(is_held_out(combination) for combination in combinations_of(scene))


def held_out_rows(palette: Palette) -> Iterator[dict[str, object]]:
    """The rows of held-out.jsonl: kind, nouns, what is combined, prompts; at most `LISTED` of a kind, by hash.

    Rows of kind "colours" give each noun of a pair that is kept out a tint that it does take in training.
    """
    for kind in RATES:
        kept = sorted((c for c in _every(kind, palette) if is_held_out(c)), key=_rank)[:LISTED]
        for combination in sorted(kept):
            yield _row(combination, palette)
            if kind == "pair":
                yield from _colours(combination, palette)


def _colours(pair: Combination, palette: Palette) -> Iterator[dict[str, object]]:
    nouns, tints = pair[1:], list[str]()
    for noun in nouns:
        options = [t for t in palette.tints[noun] if t not in tints and not is_held_out(("tint", noun, t))]
        if not options:
            return
        tints.append(min(options, key=lambda tint: _rank((*pair, noun, tint))))
    first, second = (with_article(f"{tint} {noun}") for tint, noun in zip(tints, nouns, strict=True))
    prompts = [f"{first} and {second}", f"{second} and {first}"]
    yield {"kind": "colours", "nouns": list(nouns), "tints": tints, "prompts": prompts}


def _every(kind: str, palette: Palette) -> Iterator[Combination]:
    nouns = palette.nouns
    if kind == "pair":
        yield from (("pair", *pair) for pair in combinations(sorted(nouns), 2))
    elif kind == "tint":
        yield from (("tint", noun, tint) for noun in nouns for tint in palette.tints[noun])
    elif kind == "background":
        yield from (("background", noun, name) for noun in nouns for name in palette.backgrounds[noun])
    elif kind == "place":
        yield from (("place", *pair, way) for pair in permutations(nouns, 2) for way in ("left of", "above"))
        yield from (("place", *pair, "next to") for pair in combinations(sorted(nouns), 2))
    elif kind == "count":
        yield from (("count", noun, str(count)) for noun in nouns for count in (2, 3, 4))
    elif kind == "stilts":
        yield from (("stilts", noun) for noun in nouns)
    elif kind == "wearing":
        yield from (("wearing", noun, garment) for noun in palette.wearers for garment in palette.garments)
    else:
        yield from (("hybrid", *pair) for pair in combinations(sorted(palette.hybrids), 2))


def _row(combination: Combination, palette: Palette) -> dict[str, object]:
    kind, *words = combination
    a = with_article(words[0])
    if kind == "stilts":
        return {"kind": kind, "nouns": words, "prompts": [f"{a} on stilts", f"{a} standing on stilts"]}
    if kind == "tint":
        noun, tint = words
        return {"kind": kind, "nouns": [noun], "tint": tint, "prompts": [with_article(f"{tint} {noun}")]}
    if kind == "background":
        noun, name = words
        return {
            "kind": kind,
            "nouns": [noun],
            "background": name,
            "prompts": [f"{a} on {with_article(name)} background"],
        }
    if kind == "count":
        noun, number = words
        prompts = [f"{NUMBERS[int(number)]} {palette.plurals[noun]}"]
        return {"kind": kind, "nouns": [noun], "count": int(number), "prompts": prompts}
    if kind == "wearing":
        noun, garment = words
        return {"kind": kind, "nouns": [noun], "wearing": garment, "prompts": [f"{a} wearing {with_article(garment)}"]}
    b = with_article(words[1])
    if kind == "hybrid":
        prompts = [with_article(f"{words[0]}-{words[1]} hybrid"), f"half {words[0]} half {words[1]}"]
        return {"kind": kind, "nouns": words, "prompts": [*prompts, f"a cross between {a} and {b}"]}
    if kind == "place":
        turned = {"left of": "right of", "above": "below", "next to": "next to"}[words[2]]
        prompts = [f"{a} {words[2]} {b}", f"{b} {turned} {a}"]
        return {"kind": kind, "nouns": words[:2], "relation": words[2], "prompts": prompts}
    return {"kind": kind, "nouns": words, "prompts": [f"{a} and {b}", f"{b} and {a}"]}
