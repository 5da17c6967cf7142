"""What scenes hold and how they are said: combinations kept out, colours, words."""

import re
from collections import Counter

import pytest
from unspeckle.corpus.emoji.captions import NUMBERS

from unspeckle.corpus.emoji.held_out import (
    ALWAYS_HELD_OUT,
    HELD_OUT_FRACTIONS,
    held_out_rows,
    is_held_out,
    scene_combinations,
)
from unspeckle.corpus.emoji.make_corpus import generate_scene
from unspeckle.corpus.emoji.nouns import CURATED_NOUNS, plural_name, pluralize, with_article
from unspeckle.corpus.emoji.scenes import RELATIONS, SCENE_KIND_WEIGHTS, SceneVocabulary
from unspeckle.corpus.emoji.tints import BACKGROUNDS, TINTS

WORDS = {"frog", "rabbit", "panda", "cat", "dog", "bear", "fox", "pig"}
WORDS |= {"car", "rocket", "pizza", "apple", "star", "tree", "house", "robot"}
NOUNS = [noun for noun in CURATED_NOUNS if noun.name in WORDS]
PALETTE = SceneVocabulary(
    nouns=[noun.name for noun in NOUNS],
    tints={noun.name: list(TINTS)[index % 3 :] for index, noun in enumerate(NOUNS)},
    backgrounds={"": list(BACKGROUNDS)}
    | {noun.name: list(BACKGROUNDS)[index % 4 :] for index, noun in enumerate(NOUNS)},
    plurals={noun.name: plural_name(noun) for noun in NOUNS},
    synonyms={noun.name: noun.synonyms for noun in NOUNS},
    wearer_nouns=[noun.name for noun in NOUNS if noun.face],
    garments=["top hat", "crown", "sunglasses", "bow"],
    hybrid_nouns=[noun.name for noun in NOUNS if noun.face and noun.face.seam_y],
)
SCENES = [generate_scene(11, index, PALETTE) for index in range(6000)]


def canonical(caption: str) -> str:
    """A caption with every synonym replaced by its noun."""
    for noun in NOUNS:
        for synonym in noun.synonyms:
            caption = re.sub(rf"\b{pluralize(synonym)}\b", plural_name(noun), caption)
            caption = re.sub(rf"\b{synonym}\b", noun.name, caption)
    return caption.replace("large", "big").replace("little", "small")


def test_combinations_kept_out_never_occur_in_any_wording() -> None:
    captions = [canonical(caption) for _, said in SCENES for caption in said]
    joined = "\n".join(captions)
    plain = [caption for caption in captions if not re.search("hybrid|half|cross", caption)]
    listed = list(held_out_rows(PALETTE))
    assert {row["kind"] for row in listed} == {*HELD_OUT_FRACTIONS, "colours"}
    for row in listed:
        for prompt in row["prompts"]:
            where = joined if row["kind"] == "hybrid" else "\n".join(plain)
            assert not re.search(rf"\b{prompt}\b", where), prompt
    for row in listed:
        nouns = row["nouns"]
        if row["kind"] == "hybrid":
            both = [c for c in captions if all(re.search(rf"\b{noun}\b", c) for noun in nouns)]
            assert not [c for c in both if re.search("hybrid|half|cross", c)], nouns
        if row["kind"] == "stilts":
            assert not [c for c in captions if re.search(rf"\b{nouns[0]}\b.*stilts", c)], nouns
        if row["kind"] == "wearing":
            assert not [c for c in captions if re.search(rf"\b{nouns[0]} (wearing|with|in) .*\b{row['wearing']}\b", c)]
        if row["kind"] == "pair":
            assert not [c for c in plain if all(re.search(rf"\b{noun}\b", c) for noun in nouns)], nouns
    assert ("hybrid", "frog", "rabbit") in ALWAYS_HELD_OUT and ("stilts", "frog") in ALWAYS_HELD_OUT


def test_combinations_kept_out_never_occur_in_the_truth() -> None:
    kept = set()
    for row in held_out_rows(PALETTE):
        extra = [row[key] for key in ("tint", "background", "relation", "count", "wearing") if key in row]
        if row["kind"] != "colours":
            kept.add((row["kind"], *row["nouns"], *map(str, extra)))
    found = {combination for scene, _ in SCENES for combination in scene_combinations(scene)}
    assert not found & kept and len(kept) > 60
    assert all(is_held_out(combination) for combination in kept)


def test_every_word_still_occurs_in_training() -> None:
    things = [(scene, thing) for scene, _ in SCENES for thing in scene.objects]
    for kind in ("single", "two", "count"):
        assert {thing.noun for scene, thing in things if scene.kind == kind} == set(PALETTE.nouns)
    assert {thing.tint for _, thing in things} == {"", *TINTS}
    assert {thing.wearing for _, thing in things} == {"", *PALETTE.garments}
    assert {scene.background for scene, _ in things} == set(BACKGROUNDS)
    assert {scene.relation for scene, _ in things} == set(RELATIONS)
    assert {noun for _, thing in things for noun in thing.hybrid_of or ()} == set(PALETTE.hybrid_nouns)
    assert {len(scene.objects) for scene, _ in things if scene.kind == "count"} == {2, 3, 4}


def test_scenes_keep_the_shares_of_the_table() -> None:
    counted = Counter(scene.kind for scene, _ in SCENES)
    for kind, share in SCENE_KIND_WEIGHTS.items():
        margin = 4 * (share * (1 - share) / len(SCENES)) ** 0.5
        assert abs(counted[kind] / len(SCENES) - share) < margin, kind


def test_no_thing_has_its_own_colour_or_the_backgrounds() -> None:
    for scene, _ in SCENES:
        for thing in scene.objects:
            assert not thing.tint or thing.tint in PALETTE.tints[thing.noun]
            assert thing.tint != scene.background
            if not thing.tint and not thing.hybrid_of:
                assert scene.background in PALETTE.backgrounds[thing.noun]


def test_each_wording_names_every_object_and_what_is_special_about_it() -> None:
    names = {noun.name: {noun.name, *noun.synonyms} for noun in NOUNS}
    for scene, captions in SCENES:
        assert 3 <= len(captions) == len(set(captions)) <= 6
        for caption in captions:
            for thing in scene.objects:
                for noun in thing.hybrid_of or (thing.noun,):
                    options = {pluralize(n) for n in names[noun]} | {PALETTE.plurals[noun]} | names[noun]
                    assert any(re.search(rf"\b{option}\b", caption) for option in options), caption
                assert thing.tint in caption and thing.wearing in caption
                assert ("stilts" in caption) == any(t.on_stilts for t in scene.objects)
            if scene.kind == "count":
                assert NUMBERS[len(scene.objects)] in caption
        if scene.background != "white":
            assert f"{scene.background} background" in captions[0]


def test_places_are_said_as_they_are() -> None:
    """A caption read back: the noun said to be left is the one whose middle lies further left."""
    ways = {"left of": "x", "right of": "x", "above|over": "y", "below|under|beneath": "y"}
    checked = 0
    for scene, captions in SCENES:
        if scene.kind != "two":
            continue
        middle = {thing.noun: thing for thing in scene.objects}
        for caption in map(canonical, captions):
            for way, axis in ways.items():
                parts = re.split(rf"\b(?:{way})\b", caption)
                if len(parts) != 2:
                    continue
                first, second = (next(n for n in middle if re.search(rf"\b{n}\b", part)) for part in parts)
                before = getattr(middle[first], axis) < getattr(middle[second], axis)
                assert before == (way in {"left of", "above|over"}), caption
                checked += 1
    assert checked > 1000


def test_a_hybrid_is_named_from_its_upper_or_left_part_and_only_halves_are_called_halves() -> None:
    counted: Counter[str] = Counter()
    for scene, captions in SCENES:
        if scene.kind != "hybrid":
            continue
        (thing,) = scene.objects
        counted[thing.splice] += 1
        first, second = thing.hybrid_of or ("", "")
        for caption in map(canonical, captions):
            assert re.search(rf"\b{first}\b.*\b{second}\b", caption), (caption, thing)
            assert ("half" in caption) == (thing.splice == "side"), (caption, thing)
    assert min(counted["top"], counted["side"]) > 100


@pytest.mark.parametrize(
    ("one", "many"),
    [("frog", "frogs"), ("bus", "buses"), ("fox", "foxes"), ("puppy", "puppies"), ("monkey", "monkeys"),
     ("slice of pizza", "slices of pizza"), ("wolf", "wolves"), ("snowman", "snowmen"), ("goose", "geese")],
)  # fmt: skip
def test_plurals(one: str, many: str) -> None:
    assert pluralize(one) == many


@pytest.mark.parametrize(
    ("phrase", "said"),
    [("frog", "a frog"), ("owl", "an owl"), ("unicorn", "a unicorn"), ("orange frog", "an orange frog"),
     ("hourglass", "an hourglass"), ("house", "a house"), ("sunglasses", "sunglasses"), ("x-ray", "an x-ray")],
)  # fmt: skip
def test_articles(phrase: str, said: str) -> None:
    assert with_article(phrase) == said
