"""Random scenes: a kind, objects, their tints and a background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from unspeckle.corpus.emoji.random_choices import choose_one, choose_weighted, uniform
from unspeckle.corpus.emoji.scene_kinds import SCENE_MAKERS
from unspeckle.corpus.emoji.scenes import Scene, SceneObject, SceneVocabulary

SCENE_KIND_WEIGHTS = {
    "single": 0.21,
    "two": 0.27,
    "group": 0.02,
    "count": 0.11,
    "counts": 0.08,
    "trio": 0.02,
    "stilts": 0.09,
    "wearing": 0.08,
    "hybrid": 0.12,
}
"""The share of each kind of scene."""
TINT_PROBABILITIES = {
    "single": 0.45,
    "two": 0.45,
    "group": 0.1,
    "count": 0.3,
    "counts": 0.25,
    "trio": 0.2,
    "stilts": 0.3,
    "wearing": 0.3,
    "hybrid": 0.0,
}
"""The probability that an object of a scene of each kind is tinted."""
WHITE_BACKGROUND_PROBABILITY = 0.4
GARMENT_COLORS = {"top hat": "black", "sunglasses": "black", "bow": "red", "crown": "yellow"}
"""The color of each garment, which the background must not have."""
STILTS_COLOR = "brown"


def sample_scene(rng: Random, vocabulary: SceneVocabulary, is_allowed: Callable[[Scene], bool]) -> Scene:
    """A scene that is allowed; scenes that are not are drawn again."""
    kind = choose_weighted(rng, SCENE_KIND_WEIGHTS)
    for attempt in range(200):
        scene = SCENE_MAKERS[kind if attempt < 100 else "single"](rng, vocabulary)
        scene = choose_background(rng, vocabulary, _assign_tints(rng, vocabulary, scene))
        if _fits_in_image(scene) and is_allowed(scene):
            return scene
    return Scene("single", (SceneObject(choose_one(rng, vocabulary.nouns)),))


def _assign_tints(rng: Random, vocabulary: SceneVocabulary, scene: Scene) -> Scene:
    """The scene with some objects tinted; several of one noun all get the same tint."""
    objects: list[SceneObject] = []
    for obj in scene.objects:
        same = next((other for other in objects if other.noun == obj.noun), None)
        if same is not None:
            tint = same.tint
        else:
            options = vocabulary.tints.get(obj.noun, [])
            tint = choose_one(rng, options) if options and rng.random() < TINT_PROBABILITIES[scene.kind] else ""
        objects.append(replace(obj, tint=tint))
    return replace(scene, objects=tuple(objects))


def choose_background(rng: Random, vocabulary: SceneVocabulary, scene: Scene) -> Scene:
    """The scene with a background that has the color of none of its objects."""
    used_tints = {obj.tint for obj in scene.objects}
    allowed_backgrounds = [
        set(vocabulary.backgrounds[noun]) for obj in scene.objects if not obj.tint for noun in _component_nouns(obj)
    ]
    accessory_colors = {GARMENT_COLORS[obj.wearing] for obj in scene.objects if obj.wearing in GARMENT_COLORS}
    accessory_colors |= {STILTS_COLOR for obj in scene.objects if obj.on_stilts}
    options = [
        name
        for name in vocabulary.backgrounds[""]
        if name not in used_tints | accessory_colors and all(name in names for names in allowed_backgrounds)
    ]
    variation = (uniform(rng, -1, 1), uniform(rng, -1, 1))
    if "white" in options and rng.random() < WHITE_BACKGROUND_PROBABILITY:
        return replace(scene, background="white", background_variation=variation)
    colored = [name for name in options if name != "white"] or ["white"]
    return replace(scene, background=choose_one(rng, colored), background_variation=variation)


def _component_nouns(obj: SceneObject) -> tuple[str, ...]:
    return obj.hybrid_of or (obj.noun,)


def _fits_in_image(scene: Scene) -> bool:
    """Objects on stilts are about half as wide as they are high."""
    half_widths = [obj.side / (4 if obj.on_stilts else 2) for obj in scene.objects]
    return all(
        obj.x - half_width >= -0.01 and obj.x + half_width <= 1.01
        for obj, half_width in zip(scene.objects, half_widths, strict=True)
    )
