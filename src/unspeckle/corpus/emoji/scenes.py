"""What stands in a scene and where: chosen at random, all lengths as fractions of the picture's side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

SCENE_KIND_WEIGHTS = {  # how often each kind of scene is chosen
    "single": 0.23,  # one object, plain or tinted, big or small
    "two": 0.38,  # two nouns, with or without a place
    "group": 0.02,  # three or four nouns
    "count": 0.12,  # two to four of a noun
    "stilts": 0.06,
    "wearing": 0.06,
    "hybrid": 0.13,
}
TINT_PROBABILITIES = {
    "single": 0.45,
    "two": 0.45,
    "group": 0.1,
    "count": 0.3,
    "stilts": 0.3,
    "wearing": 0.2,
    "hybrid": 0.0,
}
WHITE_BACKGROUND_PROBABILITY = 0.4  # the share of white backgrounds
TOP_SPLICE_PROBABILITY = 0.65  # the share of hybrids that are cut across, not down the middle
GARMENT_COLORS = {"top hat": "black", "sunglasses": "black", "bow": "red", "crown": "yellow"}
RELATIONS = ("left of", "right of", "above", "below", "next to", "")


@dataclass(frozen=True)
class SceneVocabulary:
    """What scenes are made of. The colours allowed for a noun leave out its own."""

    nouns: Sequence[str]
    tints: dict[str, list[str]]
    backgrounds: dict[str, list[str]]
    plurals: dict[str, str]
    synonyms: dict[str, tuple[str, ...]]
    wearer_nouns: Sequence[str]
    garments: Sequence[str]
    hybrid_nouns: Sequence[str]


@dataclass(frozen=True)
class SceneObject:
    """An object: its middle (x, y) and the side of the square that holds it."""

    noun: str
    x: float = 0.5
    y: float = 0.5
    side: float = 0.62
    size_word: str = ""  # "big", "small" or unsaid
    tint: str = ""
    wearing: str = ""
    on_stilts: bool = False
    hybrid_of: tuple[str, str] | None = None
    splice: str = ""  # "top": the first's upper part on the second's lower part; "side": left and right halves


@dataclass(frozen=True)
class Scene:
    """Things on a background; `relation` is the first thing's to the second."""

    kind: str
    objects: tuple[SceneObject, ...]
    background: str = "white"
    relation: str = ""
    background_variation: tuple[float, float] = (
        0.0,
        0.0,
    )  # the background's brightness, and how it changes from top to bottom


def sample_scene(rng: Random, vocabulary: SceneVocabulary, is_allowed: Callable[[Scene], bool]) -> Scene:
    """A scene that is allowed; a combination that is not is drawn again."""
    kind = _sample_weighted(rng, SCENE_KIND_WEIGHTS)
    for attempt in range(200):
        scene = _SCENE_MAKERS[kind if attempt < 100 else "single"](rng, vocabulary)
        scene = _choose_background(rng, vocabulary, _assign_tints(rng, vocabulary, scene))
        if _fits_in_image(scene) and is_allowed(scene):
            return scene
    return Scene("single", (SceneObject(vocabulary.nouns[int(rng.random() * len(vocabulary.nouns))]),))


def _sample_weighted(rng: Random, weights: dict[str, float]) -> str:
    remainder = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        remainder -= weight
        if remainder < 0:
            return name
    return next(iter(weights))


def _choose_one(rng: Random, options: Sequence[str]) -> str:
    return options[int(rng.random() * len(options))]


def _choose_distinct(rng: Random, options: Sequence[str], count: int) -> list[str]:
    remaining = list(options)
    return [remaining.pop(int(rng.random() * len(remaining))) for _ in range(min(count, len(remaining)))]


def _uniform(rng: Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _place_near_center(rng: Random, obj: SceneObject) -> SceneObject:
    """The thing moved to a place near the middle, wholly inside."""
    margin = 0.5 - obj.side / 2 - 0.02
    max_offset = min(margin, 0.12 if obj.size_word != "small" else 0.25)
    return replace(obj, x=0.5 + _uniform(rng, -max_offset, max_offset), y=0.5 + _uniform(rng, -max_offset, max_offset))


def _single_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    size_word = _sample_weighted(rng, {"": 0.76, "big": 0.12, "small": 0.12})
    low, high = {"": (0.56, 0.74), "big": (0.84, 0.94), "small": (0.30, 0.40)}[size_word]
    obj = SceneObject(_choose_one(rng, vocabulary.nouns), side=_uniform(rng, low, high), size_word=size_word)
    return Scene("single", (_place_near_center(rng, obj),))


def _two_noun_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    nouns = _choose_distinct(rng, vocabulary.nouns, 2)
    if len(nouns) < 2:
        return _single_scene(rng, vocabulary)
    relation = _choose_one(rng, RELATIONS)
    size_words = ("", "")
    sides = (_uniform(rng, 0.40, 0.47), _uniform(rng, 0.40, 0.47))
    if rng.random() < 0.25:
        size_words, sides = ("big", "small"), (_uniform(rng, 0.54, 0.58), _uniform(rng, 0.27, 0.32))
        if rng.random() < 0.5:
            size_words, sides = (size_words[1], size_words[0]), (sides[1], sides[0])
    is_vertical = relation in {"above", "below"} or (not relation and rng.random() < 0.25)
    is_reversed = relation in {"right of", "below"}  # where no place is said, things are named in the order of reading
    first, second = (
        SceneObject(noun, side=side, size_word=size_word)
        for noun, side, size_word in zip(nouns, sides, size_words, strict=True)
    )
    leading, trailing = _arrange_pair(rng, (second, first) if is_reversed else (first, second), is_vertical)
    return Scene("two", (trailing, leading) if is_reversed else (leading, trailing), relation=relation)


def _arrange_pair(
    rng: Random, objects: tuple[SceneObject, SceneObject], is_vertical: bool
) -> tuple[SceneObject, SceneObject]:
    """Two things side by side, or one above the other, with a gap between and jitter across."""
    first, second = objects
    free_length = 1 - first.side - second.side
    gap = free_length * _uniform(rng, 0.15, 0.6)
    start = (free_length - gap) * _uniform(rng, 0.2, 0.8)
    main_axis = (start + first.side / 2, start + first.side + gap + second.side / 2)
    jitter = 0.04 if is_vertical else 0.07
    cross_axis = tuple(0.5 + _uniform(rng, -jitter, jitter) for _ in objects)
    if is_vertical:
        return replace(first, x=cross_axis[0], y=main_axis[0]), replace(second, x=cross_axis[1], y=main_axis[1])
    return replace(first, x=main_axis[0], y=cross_axis[0]), replace(second, x=main_axis[1], y=cross_axis[1])


# The commonest first: how often, the greatest side, middles in the order of reading.
_LAYOUTS: dict[int, tuple[tuple[float, float, tuple[tuple[float, float], ...]], ...]] = {
    2: (
        (0.6, 0.46, ((0.26, 0.5), (0.74, 0.5))),
        (0.2, 0.46, ((0.5, 0.26), (0.5, 0.74))),
        (0.1, 0.46, ((0.27, 0.27), (0.73, 0.73))),
        (0.1, 0.46, ((0.73, 0.27), (0.27, 0.73))),
    ),
    3: (
        (0.6, 0.44, ((0.5, 0.26), (0.26, 0.73), (0.74, 0.73))),
        (0.2, 0.44, ((0.26, 0.27), (0.74, 0.27), (0.5, 0.74))),
        (0.2, 0.31, ((0.175, 0.5), (0.5, 0.5), (0.825, 0.5))),
    ),
    4: ((1.0, 0.44, ((0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74))),),
}


def _arrange_in_layout(rng: Random, nouns: Sequence[str]) -> tuple[SceneObject, ...]:
    layouts = _LAYOUTS[len(nouns)]
    max_side, centers = rng.choices([layout[1:] for layout in layouts], [layout[0] for layout in layouts])[0]
    side = max_side * _uniform(rng, 0.86, 1.0)
    max_offset = (max_side - side) / 2 + 0.01
    return tuple(
        SceneObject(noun, x + _uniform(rng, -max_offset, max_offset), y + _uniform(rng, -max_offset, max_offset), side)
        for noun, (x, y) in zip(nouns, centers, strict=True)
    )


def _count_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    count = int(_sample_weighted(rng, {"2": 0.36, "3": 0.34, "4": 0.30}))
    return Scene("count", _arrange_in_layout(rng, [_choose_one(rng, vocabulary.nouns)] * count))


def _group_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    nouns = _choose_distinct(rng, vocabulary.nouns, 3 if rng.random() < 0.7 else 4)
    return Scene("group", _arrange_in_layout(rng, nouns)) if len(nouns) > 2 else _single_scene(rng, vocabulary)


def _stilts_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    side = _uniform(rng, 0.86, 0.96)
    x = 0.5 + _uniform(rng, -0.1, 0.1)
    obj = SceneObject(
        _choose_one(rng, vocabulary.nouns), x, 0.98 - side / 2 - _uniform(rng, 0, 0.02), side, on_stilts=True
    )
    return Scene("stilts", (obj,))


def _wearing_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    if not vocabulary.wearer_nouns or not vocabulary.garments:
        return _single_scene(rng, vocabulary)
    obj = SceneObject(
        _choose_one(rng, vocabulary.wearer_nouns),
        side=_uniform(rng, 0.72, 0.88),
        wearing=_choose_one(rng, vocabulary.garments),
    )
    return Scene("wearing", (_place_near_center(rng, obj),))


def _hybrid_scene(rng: Random, vocabulary: SceneVocabulary) -> Scene:
    if len(vocabulary.hybrid_nouns) < 2:
        return _single_scene(rng, vocabulary)
    first, second = _choose_distinct(rng, vocabulary.hybrid_nouns, 2)
    obj = SceneObject(f"{first}-{second} hybrid", side=_uniform(rng, 0.68, 0.86), hybrid_of=(first, second))
    obj = replace(obj, splice="top" if rng.random() < TOP_SPLICE_PROBABILITY else "side")
    return Scene("hybrid", (_place_near_center(rng, obj),))


_SCENE_MAKERS: dict[str, Callable[[Random, SceneVocabulary], Scene]] = {
    "single": _single_scene,
    "two": _two_noun_scene,
    "group": _group_scene,
    "count": _count_scene,
    "stilts": _stilts_scene,
    "wearing": _wearing_scene,
    "hybrid": _hybrid_scene,
}


def _assign_tints(rng: Random, vocabulary: SceneVocabulary, scene: Scene) -> Scene:
    """Some things tinted; several of one noun all alike."""
    objects: list[SceneObject] = []
    for obj in scene.objects:
        if scene.kind == "count" and objects:
            tint = objects[0].tint
        else:
            options = vocabulary.tints.get(obj.noun, [])
            tint = _choose_one(rng, options) if options and rng.random() < TINT_PROBABILITIES[scene.kind] else ""
        objects.append(replace(obj, tint=tint))
    return replace(scene, objects=tuple(objects))


def _choose_background(rng: Random, vocabulary: SceneVocabulary, scene: Scene) -> Scene:
    """A background that is the colour of none of the things."""
    used_tints = {obj.tint for obj in scene.objects}
    allowed_backgrounds = [
        set(vocabulary.backgrounds[noun]) for obj in scene.objects if not obj.tint for noun in _component_nouns(obj)
    ]
    options = [
        name
        for name in vocabulary.backgrounds[""]
        if name not in used_tints and all(name in names for names in allowed_backgrounds)
    ]
    accessory_colors = [GARMENT_COLORS.get(obj.wearing, "brown" if obj.on_stilts else "") for obj in scene.objects]
    options = [name for name in options if name not in accessory_colors]
    glow = (_uniform(rng, -1, 1), _uniform(rng, -1, 1))
    if "white" in options and rng.random() < WHITE_BACKGROUND_PROBABILITY:
        return replace(scene, background="white", background_variation=glow)
    colored = [name for name in options if name != "white"] or ["white"]
    return replace(scene, background=_choose_one(rng, colored), background_variation=glow)


def _component_nouns(obj: SceneObject) -> tuple[str, ...]:
    return obj.hybrid_of or (obj.noun,)


def _fits_in_image(scene: Scene) -> bool:
    return all(obj.x - obj.side / 2 >= 0 and obj.x + obj.side / 2 <= 1 for obj in scene.objects)
