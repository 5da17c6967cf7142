"""True scenes for composition prompts, and hard negatives: scenes that are almost what a prompt says, but not quite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import torch
from torch import Tensor

from unspeckle.corpus.emoji.painter import ScenePainter
from unspeckle.corpus.emoji.scene_kinds import arrange_groups, arrange_on_stilts, hybrid_scene, single_scene
from unspeckle.corpus.emoji.scene_sampling import choose_background, sample_scene
from unspeckle.corpus.emoji.scenes import Scene, SceneObject, SceneVocabulary
from unspeckle.corpus.emoji.tints import BACKGROUNDS
from unspeckle.errors import InputError
from unspeckle.scoring.composition.prompts import CATEGORIES, CompositionPrompt, WantedObject

MAX_ATTEMPTS = 20_000  # scenes that are sampled until one matches
PLURAL_COUNT = 2  # objects of a plural without a number
MAX_COUNT = 4  # objects in a scene
_OLD_CATEGORIES = {"colors": "colours", "color binding": "colour binding"}  # their names in version 0.1


def render_prompt(prompt: CompositionPrompt, count: int, vocabulary: SceneVocabulary, painter: ScenePainter) -> Tensor:
    """uint8 (count, 3, H, W): true scenes for a prompt, painted as the corpus would paint them if they were allowed.

    They depend on the prompt alone. InputError if the corpus has no such scene.
    """
    rng = Random(_render_seed(prompt))
    sample = compose_scene if prompt.objects or prompt.is_hybrid else sample_matching_scene
    pixels = [painter.paint(sample(prompt, rng, vocabulary))[0] for _ in range(count)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def _render_seed(prompt: CompositionPrompt) -> str:
    """The seed of a prompt's scenes: the text that version 0.1 used, so that scores can be compared with its own."""
    if prompt.objects or prompt.is_hybrid:
        return f"unspeckle render {prompt.text!r} {prompt.repetition}"
    return (
        f"unspeckle render Question(category={_OLD_CATEGORIES.get(prompt.category, prompt.category)!r}, "
        f"prompt={prompt.text!r}, nouns={prompt.nouns!r}, tints={prompt.tints!r}, count={prompt.object_count!r}, "
        f"relation={prompt.relation!r}, wearing={prompt.wearing!r}, background={prompt.background!r}, "
        f"turn={prompt.repetition!r})"
    )


def sample_matching_scene(prompt: CompositionPrompt, rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """A scene that shows what the prompt says and nothing else that a prompt could say.

    InputError if the corpus has no such scene.
    """
    nouns = list(prompt.nouns)
    restricted_vocabulary = replace(
        vocabulary,
        nouns=nouns,
        tints={noun: [tint] for noun, tint in zip(nouns, prompt.tints, strict=False)},
        backgrounds={**vocabulary.backgrounds, **({"": [prompt.background]} if prompt.background else {})},
        wearer_nouns=nouns if prompt.wearing else [],
        garments=[prompt.wearing] if prompt.wearing else [],
        hybrid_nouns=nouns if prompt.category == "hybrids" else [],
    )
    for _ in range(MAX_ATTEMPTS):
        scene = sample_scene(rng, restricted_vocabulary, lambda _: True)
        if scene_matches(scene, prompt):
            return scene
    raise InputError(f"{prompt.text!r}: the corpus has no such scene; make it again with this version of unspeckle")


def compose_scene(prompt: CompositionPrompt, rng: Random, vocabulary: SceneVocabulary) -> Scene:
    """A scene that shows what a prompt of free wording says; what it leaves open is as plain as can be."""
    restricted = replace(vocabulary, nouns=list(prompt.nouns), hybrid_nouns=list(prompt.nouns))
    names = [wanted.noun for wanted in prompt.objects for _ in range(wanted.count or PLURAL_COUNT)]
    for _ in range(MAX_ATTEMPTS):
        if prompt.is_hybrid:
            scene = hybrid_scene(rng, restricted)
        elif any(wanted.on_stilts for wanted in prompt.objects):
            scene = Scene("free", arrange_on_stilts(rng, names))
        elif len(names) == 1:
            scene = single_scene(rng, restricted)
        else:
            groups = [(wanted.noun, wanted.count or PLURAL_COUNT) for wanted in prompt.objects]
            scene = Scene("free", arrange_groups(rng, groups, prompt.relation))
        wanted_by_noun = {wanted.noun: wanted for wanted in prompt.objects}
        objects = tuple(_as_wanted(one, wanted_by_noun.get(one.noun)) for one in scene.objects)
        scene = choose_background(rng, vocabulary, replace(scene, objects=objects))
        if prompt.background:  # even one that the corpus would not put behind these nouns
            scene = replace(scene, background=prompt.background)
        if not any(one.size_word for one in objects):
            return scene
    raise InputError(f"{prompt.text!r}: no such scene can be painted")


def _as_wanted(one: SceneObject, wanted: WantedObject | None) -> SceneObject:
    if wanted is None:
        return one
    return replace(one, tint=wanted.tint, wearing=wanted.wearing, on_stilts=wanted.on_stilts)


def make_hard_negative(prompt: CompositionPrompt, vocabulary: SceneVocabulary) -> CompositionPrompt:
    """What is most similar to a prompt but contradicts it.

    Another count, exchanged positions or colors, another garment, no stilts, or both animals side by side instead of
    their hybrid.
    """

    def pick_other(options: Sequence[str], excluded: str) -> str:
        return next((option for option in options if option != excluded), "")

    first = prompt.nouns[0]
    if prompt.is_hybrid:
        return replace(prompt, is_hybrid=False, objects=tuple(WantedObject(noun, 1) for noun in prompt.nouns))
    if prompt.objects:
        return _contradict(prompt, vocabulary)
    match prompt.category:
        case "counting":
            return replace(prompt, object_count=prompt.object_count + 1 if prompt.object_count < 4 else 3)
        case "position":
            return replace(prompt, nouns=prompt.nouns[::-1])
        case "color binding":
            return replace(prompt, tints=prompt.tints[::-1])
        case "colors":
            return replace(prompt, tints=(pick_other(vocabulary.tints[first], prompt.tints[0]),))
        case "one object":
            return replace(prompt, background=pick_other(vocabulary.backgrounds[first], prompt.background))
        case "two objects":
            return replace(prompt, category="counting", nouns=(first,), object_count=2)
        case "wearing":
            return replace(prompt, wearing=pick_other(vocabulary.garments, prompt.wearing))
        case "hybrids":
            return replace(prompt, category="two objects")
        case _:
            return CompositionPrompt("one object", "", (first,))


def _contradict(prompt: CompositionPrompt, vocabulary: SceneVocabulary) -> CompositionPrompt:
    """A prompt of free wording with one thing otherwise: the relation, or of the first object that has one the stilts,
    the garment, the color or the number; else another background, or another noun."""
    if prompt.relation:
        opposites = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        return replace(prompt, relation=opposites[prompt.relation])
    total = sum(one.count or PLURAL_COUNT for one in prompt.objects)
    for index, wanted in enumerate(prompt.objects):
        changed = _change_object(wanted, vocabulary, can_grow=total < MAX_COUNT)
        if changed != wanted:
            return replace(prompt, objects=(*prompt.objects[:index], changed, *prompt.objects[index + 1 :]))
    if prompt.background:
        return replace(prompt, background=next(name for name in BACKGROUNDS if name != prompt.background))
    first = prompt.objects[0]
    other = next(noun for noun in vocabulary.nouns if noun not in prompt.nouns)
    return replace(prompt, nouns=(other, *prompt.nouns[1:]), objects=(replace(first, noun=other), *prompt.objects[1:]))


def _change_object(wanted: WantedObject, vocabulary: SceneVocabulary, can_grow: bool) -> WantedObject:
    """The object with one thing otherwise; itself if a prompt says nothing of it that can be."""
    if wanted.on_stilts:
        return replace(wanted, on_stilts=False)
    if wanted.wearing:
        return replace(wanted, wearing=next(name for name in vocabulary.garments if name != wanted.wearing))
    if wanted.tint:
        return replace(wanted, tint=next((t for t in vocabulary.tints[wanted.noun] if t != wanted.tint), ""))
    if wanted.count and can_grow:
        return replace(wanted, count=wanted.count + 1)
    return replace(wanted, count=wanted.count - 1) if wanted.count > 1 else wanted


def scene_matches(scene: Scene, prompt: CompositionPrompt) -> bool:
    """Whether the scene shows what the prompt says and nothing else that a prompt could say."""
    objects, tints = scene.objects, prompt.tints or ("",) * len(prompt.nouns)
    if scene.kind != CATEGORIES[prompt.category][1] or any(one.size_word for one in objects):
        return False
    if prompt.category == "hybrids":
        return sorted(objects[0].hybrid_of or ()) == sorted(prompt.nouns)
    if sorted({(one.noun, one.tint) for one in objects}) != sorted(zip(prompt.nouns, tints, strict=True)):
        return False
    if prompt.object_count and len(objects) != prompt.object_count:
        return False
    if objects[0].wearing != prompt.wearing or scene.background != (prompt.background or scene.background):
        return False
    return not prompt.relation or _relation_matches(scene, prompt)


def _relation_matches(scene: Scene, prompt: CompositionPrompt) -> bool:
    """Whether the scene has the prompt's relation, or the opposite one with its nouns exchanged."""
    first, second = (one.noun for one in scene.objects)
    opposite = {"left of": "right of", "above": "below"}[prompt.relation]
    noun_a, noun_b = prompt.nouns
    return (first, scene.relation, second) in {(noun_a, prompt.relation, noun_b), (noun_b, opposite, noun_a)}
