"""Prompts as people write them: the list by hand, the grammar, and what an image must show."""

import re
from dataclasses import replace
from functools import partial
from random import Random

import pytest
from detections import FROG, LEFT, RIGHT, detect

from unspeckle.corpus.emoji.held_out import held_out_rows
from unspeckle.corpus.emoji.make_corpus import build_vocabulary, generate_scene
from unspeckle.corpus.emoji.sprites import SpriteLibrary, open_sprite_library
from unspeckle.corpus.emoji.tints import BACKGROUNDS, TINTS
from unspeckle.corpus.english import pluralize
from unspeckle.errors import InputError
from unspeckle.scoring.composition.detector import Detection
from unspeckle.scoring.composition.free_wording import (
    GRAMMAR_CATEGORY,
    HAND_CATEGORY,
    grammar_prompts,
    read_hand_prompts,
)
from unspeckle.scoring.composition.prompt_scenes import compose_scene, make_hard_negative
from unspeckle.scoring.composition.prompts import CompositionPrompt, WantedObject
from unspeckle.scoring.composition.verdicts import judge_detections

FREE = partial(CompositionPrompt, HAND_CATEGORY, "")


@pytest.mark.parametrize(
    ("prompt", "correct", "wrong"),
    [
        (
            FREE(("frog", "cat"), objects=(WantedObject("frog", 2, tint="blue"), WantedObject("cat", 1))),
            [[*[detect("frog", tint="blue")] * 2, detect("cat", tint="red")]],
            [
                [detect("frog", tint="blue"), FROG, detect("cat")],
                [*[detect("frog", tint="blue")] * 3, detect("cat")],
                [*[detect("frog", tint="blue")] * 2, *[detect("cat")] * 2],
                [*[detect("frog", tint="blue")] * 2],
            ],
        ),
        (
            FREE(("frog",), objects=(WantedObject("frog", on_stilts=True),)),  # "frogs on stilts"
            [[Detection(("frog",), (0, 0, 1, 1), on_stilts=True)] * n for n in (1, 2, 3)],
            [[FROG], [FROG, Detection(("frog",), (0, 0, 1, 1), on_stilts=True)], []],
        ),
        (
            FREE(("frog",), objects=(WantedObject("frog", 1, wearing="crown"),)),
            [[detect("frog", wearing="crown")]],
            [[FROG], [detect("frog", wearing="crown")] * 2],
        ),
        (
            FREE(("frog", "car"), objects=(WantedObject("frog", 2), WantedObject("car", 1)), relation="right of"),
            [[detect("frog", at=(0.8, 0.2)), detect("frog", at=(0.8, 0.8)), detect("car", at=LEFT)]],
            [[detect("frog", at=RIGHT), detect("frog", at=(0.05, 0.5)), detect("car", at=LEFT)]],
        ),
        (FREE(("frog", "cat"), is_hybrid=True), [[detect("cat", "frog")]], [[FROG, detect("cat")], []]),
    ],
)
def test_verdicts_on_free_wording(
    prompt: CompositionPrompt, correct: list[list[Detection]], wrong: list[list[Detection]]
) -> None:
    for prompt_on_pink in (prompt, replace(prompt, background="pink")):
        for detections in correct:
            assert judge_detections(prompt_on_pink, detections, "pink").is_correct, detections
        for detections in wrong:
            verdict = judge_detections(prompt_on_pink, detections, "pink")
            assert not verdict.is_correct and verdict.reason, detections
    for detections in correct:
        assert judge_detections(replace(prompt, background="pink"), detections, "blue").reason


def test_the_list_by_hand_asks_for_what_can_be_painted() -> None:
    """Each line's facts are well formed, and every prompt has a scene that shows them."""
    library = open_sprite_library_or_skip()
    vocabulary, prompts = build_vocabulary(library), read_hand_prompts(library)
    assert len(prompts) >= 200 and len({prompt.text for prompt in prompts}) == len(prompts)
    assert {noun for prompt in prompts for noun in prompt.nouns} == set(library.nouns)
    for prompt in prompts:
        scene = compose_scene(prompt, Random(prompt.text), vocabulary)
        if prompt.is_hybrid:
            assert sorted(scene.objects[0].hybrid_of or ()) == sorted(prompt.nouns)
        for wanted in prompt.objects:
            shown = [one for one in scene.objects if one.noun == wanted.noun]
            assert len(shown) == (wanted.count or 2), prompt
            assert {(one.tint, one.wearing, one.on_stilts) for one in shown} == {
                (wanted.tint, wanted.wearing, wanted.on_stilts)
            }
        assert scene.background == (prompt.background or scene.background)


def test_no_hard_negative_is_what_its_prompt_says() -> None:
    """Judged by what a perfect detector would find in its scene."""
    library = open_sprite_library_or_skip()
    vocabulary = build_vocabulary(library)
    prompts = read_hand_prompts(library) + grammar_prompts(list(held_out_rows(vocabulary)), vocabulary.plurals, 300)
    for prompt in prompts:
        negative = make_hard_negative(prompt, vocabulary)
        scene = compose_scene(negative, Random(prompt.text), vocabulary)
        found = [
            Detection(
                one.hybrid_of or (one.noun,),
                (one.x - one.side / 4, one.y - one.side / 4, one.x + one.side / 4, one.y + one.side / 4),
                tint=one.tint, wearing=one.wearing, on_stilts=one.on_stilts,
            )
            for one in scene.objects
        ]  # fmt: skip
        assert not judge_detections(prompt, found, scene.background).is_correct, (prompt, negative)


def test_the_grammar_of_free_wording_shares_no_sentence_with_the_corpus() -> None:
    """Nouns, colors, garments and numbers left out, none of its sentences is one of a caption's."""
    library = open_sprite_library_or_skip()
    vocabulary = build_vocabulary(library)
    names = {*vocabulary.nouns, *vocabulary.plurals.values(), *TINTS, *BACKGROUNDS, *vocabulary.garments}
    names |= {synonym for words in vocabulary.synonyms.values() for synonym in words}
    names |= {pluralize(name) for name in names} | {"two", "three", "four", "2", "3", "4"}
    pattern = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, names), key=len, reverse=True))})\b")

    def sentence(text: str) -> str:
        return pattern.sub("X", re.sub(r"\b(?:an?|the|one) ", "", text.lower()))

    said = {sentence(text) for i in range(5000) for text in generate_scene(3, i, vocabulary)[1]}
    rows = list(held_out_rows(vocabulary))
    prompts = grammar_prompts(rows, vocabulary.plurals, 900)
    assert len(prompts) == 900 and {prompt.category for prompt in prompts} == {GRAMMAR_CATEGORY}
    assert not {sentence(prompt.text) for prompt in prompts} & said
    assert len({sentence(prompt.text) for prompt in prompts}) > 50


def open_sprite_library_or_skip() -> SpriteLibrary:
    try:
        return open_sprite_library(None, None)
    except InputError as error:
        pytest.skip(str(error))
