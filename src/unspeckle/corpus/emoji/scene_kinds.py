"""The kinds of scenes: one object, two, three, a group, several of one or two kinds, on stilts, wearing something, a
hybrid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple

from unspeckle.corpus.emoji.random_choices import choose_distinct, choose_one, choose_weighted, uniform
from unspeckle.corpus.emoji.scenes import RELATIONS, Scene, SceneObject, SceneVocabulary

TOP_SPLICE_PROBABILITY = 0.65
"""Of hybrids that are cut between eyes and mouth, not down the middle."""
GROUPED_SHARE = 0.5
"""Of scenes of two nouns with counts, without a relation, in which those of a noun are next to each other."""
RELATED_GROUPS_SHARE = 0.35
"""Of scenes of two nouns with counts, in which one noun's objects are left of, right of, above or below the other's."""


def _place_near_center(rng: Random, obj: SceneObject) -> SceneObject:
    """The object moved to a random position near the center, completely inside the image."""
    margin = 0.5 - obj.side / 2 - 0.02
    max_offset = min(margin, 0.16 if obj.size_word != "small" else 0.25)
    return replace(obj, x=0.5 + uniform(rng, -max_offset, max_offset), y=0.5 + uniform(rng, -max_offset, max_offset))


def single_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """One object, big, small or neither."""
    size_word = choose_weighted(rng, {"": 0.76, "big": 0.12, "small": 0.12})
    low, high = {"": (0.52, 0.76), "big": (0.84, 0.94), "small": (0.30, 0.40)}[size_word]
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


def counts_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """Two nouns, at least one of them more than once; four objects at most."""
    nouns = choose_distinct(rng, vocabulary.nouns, 2)
    if len(nouns) < 2:
        return count_scene(rng, vocabulary)
    counts = choose_one(rng, ((1, 2), (2, 1), (1, 3), (3, 1), (2, 2)))
    relation = choose_one(rng, ("left of", "right of", "above", "below")) if rng.random() < RELATED_GROUPS_SHARE else ""
    return Scene("counts", arrange_groups(rng, tuple(zip(nouns, counts, strict=True)), relation), relation=relation)


def arrange_groups(rng: Random, groups: Sequence[tuple[str, int]], relation: str = "") -> tuple[SceneObject, ...]:
    """Several nouns, each so many times, at most four objects in all, in the order of the groups. With a relation, that
    of the first group to the second, each group has half of the image to itself."""
    names = [noun for noun, count in groups for _ in range(count)]
    if not relation:
        objects = _arrange_in_layout(rng, names)
        if rng.random() < GROUPED_SHARE:
            return objects
        places = choose_distinct(rng, [(obj.x, obj.y) for obj in objects], len(objects))
        return tuple(replace(obj, x=x, y=y) for obj, (x, y) in zip(objects, places, strict=True))
    is_first_before = relation in {"left of", "above"}
    objects = tuple(
        obj
        for index, (noun, count) in enumerate(groups)
        for obj in _arrange_in_half(rng, noun, count, is_vertical=relation in {"above", "below"}, half=index)
    )
    if is_first_before:
        return objects
    flip = {"right of": lambda obj: replace(obj, x=1 - obj.x), "below": lambda obj: replace(obj, y=1 - obj.y)}[relation]
    return tuple(map(flip, objects))


def _arrange_in_half(rng: Random, noun: str, count: int, *, is_vertical: bool, half: int) -> Iterator[SceneObject]:
    """One to three objects in the left or right (upper or lower) half, the first or the second, in a row across it."""
    side = min(0.46, 0.94 / count) * uniform(rng, 0.86, 1.0)
    jitter = 0.015
    along = (0.26, 0.74)[half] + uniform(rng, -jitter, jitter)
    for i in range(count):
        across = (i + 0.5) / count if count > 1 else 0.5 + uniform(rng, -0.1, 0.1)
        across = min(max(across, side / 2 + 0.01), 0.99 - side / 2) + uniform(rng, -0.01, 0.01)
        x, y = (across, along) if is_vertical else (along, across)
        yield SceneObject(noun, x, y, side)


def trio_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """Two objects side by side, and a third one above or below them: the relation is that of the third to both."""
    nouns = choose_distinct(rng, vocabulary.nouns, 3)
    if len(nouns) < 3:
        return single_scene(rng, vocabulary)
    relation, jitter = choose_one(rng, ("above", "below")), 0.015
    side = uniform(rng, 0.40, 0.46)
    y = 0.73 if relation == "above" else 0.27
    centers = ((0.26, y), (0.74, y), (0.5 + uniform(rng, -0.15, 0.15), 1 - y))
    objects = tuple(
        SceneObject(noun, x + uniform(rng, -jitter, jitter), y + uniform(rng, -jitter, jitter), side)
        for noun, (x, y) in zip(nouns, centers, strict=True)
    )
    return Scene("trio", objects, relation=relation)


def stilts_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """Objects on stilts that reach the lower edge: one, several of a kind, or two kinds. Some faces wear something."""
    kind = choose_weighted(rng, {"one": 0.50, "several": 0.32, "two": 0.18})
    if kind == "several":
        nouns = [choose_one(rng, vocabulary.nouns)] * int(choose_weighted(rng, {"2": 0.5, "3": 0.3, "4": 0.2}))
    else:
        nouns = choose_distinct(rng, vocabulary.nouns, 1 if kind == "one" else 2)
    objects = arrange_on_stilts(rng, nouns)
    if vocabulary.garments and rng.random() < 0.12 and all(noun in vocabulary.wearer_nouns for noun in nouns):
        objects = _dress(rng, vocabulary, objects)
    return Scene("stilts", objects)


def arrange_on_stilts(rng: Random, nouns: Sequence[str]) -> tuple[SceneObject, ...]:
    """One to four objects on stilts in a row."""
    count = len(nouns)
    side = {1: 0.96, 2: 0.90, 3: 0.70, 4: 0.54}[count] * uniform(rng, 0.89, 1.0)
    bottom = 0.98 - uniform(rng, 0, 0.02)
    jitter = 0.1 if count == 1 else 0.02
    return tuple(
        SceneObject(noun, (i + 0.5) / count + uniform(rng, -jitter, jitter), bottom - side / 2, side, on_stilts=True)
        for i, noun in enumerate(nouns)
    )


def wearing_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """A face that wears a garment, two of a kind, or two kinds of which one or both do."""
    if not vocabulary.wearer_nouns or not vocabulary.garments:
        return single_scene(rng, vocabulary)
    kind = choose_weighted(rng, {"one": 0.7, "several": 0.12, "two": 0.18})
    nouns = choose_distinct(rng, vocabulary.wearer_nouns, 2 if kind == "two" else 1)
    if kind == "one" or (kind == "two" and len(nouns) < 2):
        obj = SceneObject(nouns[0], side=uniform(rng, 0.72, 0.88), wearing=choose_one(rng, vocabulary.garments))
        return Scene("wearing", (_place_near_center(rng, obj),))
    objects = _dress(rng, vocabulary, _arrange_in_layout(rng, nouns if kind == "two" else nouns * 2))
    if kind == "two" and rng.random() < 0.35:
        bare = int(rng.random() * 2)
        objects = tuple(replace(obj, wearing="") if i == bare else obj for i, obj in enumerate(objects))
    return Scene("wearing", objects)


def _dress(rng: Random, vocabulary: SceneVocabulary, objects: tuple[SceneObject, ...]) -> tuple[SceneObject, ...]:
    """Each noun's objects in a garment chosen for it."""
    garments = {obj.noun: choose_one(rng, vocabulary.garments) for obj in objects}
    return tuple(replace(obj, wearing=garments[obj.noun]) for obj in objects)


def hybrid_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """Two faces joined into one."""
    if len(vocabulary.hybrid_nouns) < 2:
        return single_scene(rng, vocabulary)
    first, second = choose_distinct(rng, vocabulary.hybrid_nouns, 2)
    obj = SceneObject(f"{first}-{second} hybrid", side=uniform(rng, 0.56, 0.88), hybrid_of=(first, second))
    obj = replace(obj, splice="top" if rng.random() < TOP_SPLICE_PROBABILITY else "side")
    return Scene("hybrid", (_place_near_center(rng, obj),))


SceneMaker = Callable[[Random, SceneVocabulary], Scene]

SCENE_MAKERS: dict[str, SceneMaker] = {
    "single": single_scene,
    "two": two_noun_scene,
    "group": group_scene,
    "count": count_scene,
    "counts": counts_scene,
    "trio": trio_scene,
    "stilts": stilts_scene,
    "wearing": wearing_scene,
    "hybrid": hybrid_scene,
}
"""By kind, a function that places objects; colors and the background are chosen later."""
