"""The kinds of scenes: one object, two, a group, several of a kind, on stilts, wearing something, a hybrid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple

from unspeckle.corpus.emoji.random_choices import choose_distinct, choose_one, choose_weighted, uniform
from unspeckle.corpus.emoji.scenes import RELATIONS, Scene, SceneObject, SceneVocabulary

TOP_SPLICE_PROBABILITY = 0.65
"""Of hybrids that are cut between eyes and mouth, not down the middle."""


def _place_near_center(rng: Random, obj: SceneObject) -> SceneObject:
    """The object moved to a random position near the center, completely inside the image."""
    margin = 0.5 - obj.side / 2 - 0.02
    max_offset = min(margin, 0.12 if obj.size_word != "small" else 0.25)
    return replace(obj, x=0.5 + uniform(rng, -max_offset, max_offset), y=0.5 + uniform(rng, -max_offset, max_offset))


def single_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """One object, big, small or neither."""
    size_word = choose_weighted(rng, {"": 0.76, "big": 0.12, "small": 0.12})
    low, high = {"": (0.56, 0.74), "big": (0.84, 0.94), "small": (0.30, 0.40)}[size_word]
    obj = SceneObject(choose_one(rng, vocabulary.nouns), side=uniform(rng, low, high), size_word=size_word)
    return Scene("single", (_place_near_center(rng, obj),))


def two_noun_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """Two objects with or without a relation, a quarter of them one big and one small."""
    nouns = choose_distinct(rng, vocabulary.nouns, 2)
    if len(nouns) < 2:
        return single_scene(rng, vocabulary)
    relation = choose_one(rng, RELATIONS)
    size_words = ("", "")
    sides = (uniform(rng, 0.40, 0.47), uniform(rng, 0.40, 0.47))
    if rng.random() < 0.25:
        size_words, sides = ("big", "small"), (uniform(rng, 0.54, 0.58), uniform(rng, 0.27, 0.32))
        if rng.random() < 0.5:
            size_words, sides = (size_words[1], size_words[0]), (sides[1], sides[0])
    is_vertical = relation in {"above", "below"} or (not relation and rng.random() < 0.25)
    # Without a relation, objects are named in reading order: from left to right or from top to bottom.
    is_reversed = relation in {"right of", "below"}
    first, second = (
        SceneObject(noun, side=side, size_word=size_word)
        for noun, side, size_word in zip(nouns, sides, size_words, strict=True)
    )
    leading, trailing = _arrange_pair(rng, (second, first) if is_reversed else (first, second), is_vertical)
    return Scene("two", (trailing, leading) if is_reversed else (leading, trailing), relation=relation)


def _arrange_pair(
    rng: Random, objects: tuple[SceneObject, SceneObject], is_vertical: bool
) -> tuple[SceneObject, SceneObject]:
    """Two objects side by side, or one above the other, with a gap between them and jitter across."""
    first, second = objects
    free_length = 1 - first.side - second.side
    gap = free_length * uniform(rng, 0.15, 0.6)
    start = (free_length - gap) * uniform(rng, 0.2, 0.8)
    main_axis = (start + first.side / 2, start + first.side + gap + second.side / 2)
    jitter = 0.04 if is_vertical else 0.07
    cross_axis = tuple(0.5 + uniform(rng, -jitter, jitter) for _ in objects)
    if is_vertical:
        return replace(first, x=cross_axis[0], y=main_axis[0]), replace(second, x=cross_axis[1], y=main_axis[1])
    return replace(first, x=main_axis[0], y=cross_axis[0]), replace(second, x=main_axis[1], y=cross_axis[1])


class _Layout(NamedTuple):
    """Where several objects of one size are placed."""

    weight: float
    max_side: float
    centers: tuple[tuple[float, float], ...]  # in reading order


_LAYOUTS: dict[int, tuple[_Layout, ...]] = {
    2: (
        _Layout(0.6, 0.46, ((0.26, 0.5), (0.74, 0.5))),
        _Layout(0.2, 0.46, ((0.5, 0.26), (0.5, 0.74))),
        _Layout(0.1, 0.46, ((0.27, 0.27), (0.73, 0.73))),
        _Layout(0.1, 0.46, ((0.73, 0.27), (0.27, 0.73))),
    ),
    3: (
        _Layout(0.6, 0.44, ((0.5, 0.26), (0.26, 0.73), (0.74, 0.73))),
        _Layout(0.2, 0.44, ((0.26, 0.27), (0.74, 0.27), (0.5, 0.74))),
        _Layout(0.2, 0.31, ((0.175, 0.5), (0.5, 0.5), (0.825, 0.5))),
    ),
    4: (_Layout(1.0, 0.44, ((0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74))),),
}


def _arrange_in_layout(rng: Random, nouns: Sequence[str]) -> tuple[SceneObject, ...]:
    """Two to four objects of one size in a random layout."""
    layouts = _LAYOUTS[len(nouns)]
    layout = rng.choices(layouts, [layout.weight for layout in layouts])[0]
    side = layout.max_side * uniform(rng, 0.86, 1.0)
    max_offset = (layout.max_side - side) / 2 + 0.01
    return tuple(
        SceneObject(noun, x + uniform(rng, -max_offset, max_offset), y + uniform(rng, -max_offset, max_offset), side)
        for noun, (x, y) in zip(nouns, layout.centers, strict=True)
    )


def count_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """Two to four of one noun."""
    count = int(choose_weighted(rng, {"2": 0.36, "3": 0.34, "4": 0.30}))
    return Scene("count", _arrange_in_layout(rng, [choose_one(rng, vocabulary.nouns)] * count))


def group_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """Three or four different nouns."""
    nouns = choose_distinct(rng, vocabulary.nouns, 3 if rng.random() < 0.7 else 4)
    return Scene("group", _arrange_in_layout(rng, nouns)) if len(nouns) > 2 else single_scene(rng, vocabulary)


def stilts_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """An object on stilts that reach the lower edge."""
    side = uniform(rng, 0.86, 0.96)
    x = 0.5 + uniform(rng, -0.1, 0.1)
    noun = choose_one(rng, vocabulary.nouns)
    y = 0.98 - side / 2 - uniform(rng, 0, 0.02)
    return Scene("stilts", (SceneObject(noun, x, y, side, on_stilts=True),))


def wearing_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """A face that wears a garment."""
    if not vocabulary.wearer_nouns or not vocabulary.garments:
        return single_scene(rng, vocabulary)
    noun = choose_one(rng, vocabulary.wearer_nouns)
    side = uniform(rng, 0.72, 0.88)
    obj = SceneObject(noun, side=side, wearing=choose_one(rng, vocabulary.garments))
    return Scene("wearing", (_place_near_center(rng, obj),))


def hybrid_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """Two faces joined into one."""
    if len(vocabulary.hybrid_nouns) < 2:
        return single_scene(rng, vocabulary)
    first, second = choose_distinct(rng, vocabulary.hybrid_nouns, 2)
    obj = SceneObject(f"{first}-{second} hybrid", side=uniform(rng, 0.68, 0.86), hybrid_of=(first, second))
    obj = replace(obj, splice="top" if rng.random() < TOP_SPLICE_PROBABILITY else "side")
    return Scene("hybrid", (_place_near_center(rng, obj),))


SceneMaker = Callable[[Random, SceneVocabulary], Scene]

SCENE_MAKERS: dict[str, SceneMaker] = {
    "single": single_scene,
    "two": two_noun_scene,
    "group": group_scene,
    "count": count_scene,
    "stilts": stilts_scene,
    "wearing": wearing_scene,
    "hybrid": hybrid_scene,
}
"""By kind, a function that places objects; colors and the background are chosen later."""
