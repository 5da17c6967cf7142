"""What scenes contain and how captions describe them: held-out combinations, colors, words."""

import re
from collections import Counter
from itertools import pairwise

from unspeckle.corpus.emoji.held_out import (
    ALWAYS_HELD_OUT,
    HELD_OUT_FRACTIONS,
    held_out_rows,
    is_held_out,
    scene_combinations,
)
from unspeckle.corpus.emoji.make_corpus import generate_scene
from unspeckle.corpus.emoji.nouns import CURATED_NOUNS, plural_name
from unspeckle.corpus.emoji.scene_captions import NUMBERS
from unspeckle.corpus.emoji.scene_sampling import SCENE_KIND_WEIGHTS
from unspeckle.corpus.emoji.scenes import RELATIONS, SceneVocabulary
from unspeckle.corpus.emoji.tints import BACKGROUNDS, TINTS
from unspeckle.corpus.english import pluralize

NAMES = {"frog", "rabbit", "panda", "cat", "dog", "bear", "fox", "pig"}
NAMES |= {"car", "rocket", "pizza", "apple", "star", "tree", "house", "robot"}
NOUNS = [noun for noun in CURATED_NOUNS if noun.name in NAMES]
VOCABULARY = SceneVocabulary(
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
IS_HYBRID = re.compile(r"\b(?:hybrid|half|cross|crossed|mix|mixed|fusion|in one animal)\b")
SCENES = [generate_scene(11, index, VOCABULARY) for index in range(6000)]


def replace_synonyms(caption: str) -> str:
    """A caption with every synonym replaced by its noun."""
    for noun in NOUNS:
        for synonym in noun.synonyms:
            caption = re.sub(rf"\b{pluralize(synonym)}\b", plural_name(noun), caption)
            caption = re.sub(rf"\b{synonym}\b", noun.name, caption)
    return caption.replace("large", "big").replace("little", "small")


def test_held_out_combinations_never_occur_in_any_caption() -> None:
    captions = [replace_synonyms(caption) for _, scene_captions in SCENES for caption in scene_captions]
    joined = "\n".join(captions)
    without_hybrids = [caption for caption in captions if not IS_HYBRID.search(caption)]
    rows = list(held_out_rows(VOCABULARY))
    assert {row["kind"] for row in rows} == {*HELD_OUT_FRACTIONS, "colors"}
    for row in rows:
        for prompt in row["prompts"]:
            text = joined if row["kind"] == "hybrid" else "\n".join(without_hybrids)
            assert not re.search(rf"\b{prompt}\b", text), prompt
    for row in rows:
        nouns = row["nouns"]
        if row["kind"] == "hybrid":
            both = [c for c in captions if all(re.search(rf"\b{noun}\b", c) for noun in nouns)]
            assert not [c for c in both if IS_HYBRID.search(c)], nouns
        if row["kind"] == "stilts":
            assert not [c for c in captions if re.search(rf"\b{nouns[0]}\b.*stilts", c)], nouns
        if row["kind"] == "wearing":
            noun, garment = f"(?:{nouns[0]}|{VOCABULARY.plurals[nouns[0]]})", f"(?:an? )?{row['wearing']}s?"
            worn = re.compile(rf"\b{noun}(?: in \w+| that is \w+| painted \w+)? (?:wearing|with|in) {garment}\b")
            assert not list(filter(worn.search, captions)), row
        if row["kind"] == "pair":
            assert not [c for c in without_hybrids if all(re.search(rf"\b{noun}\b", c) for noun in nouns)], nouns
    assert ("hybrid", "frog", "rabbit") in ALWAYS_HELD_OUT and ("stilts", "frog") in ALWAYS_HELD_OUT


def test_held_out_combinations_never_occur_in_scenes() -> None:
    held_out = set()
    for row in held_out_rows(VOCABULARY):
        extra = [row[key] for key in ("tint", "background", "relation", "count", "wearing") if key in row]
        if row["kind"] != "colors":
            held_out.add((row["kind"], *row["nouns"], *map(str, extra)))
    occurring = {combination for scene, _ in SCENES for combination in scene_combinations(scene)}
    assert not occurring & held_out and len(held_out) > 60
    assert all(is_held_out(combination) for combination in held_out)


def test_every_word_still_occurs_in_training() -> None:
    objects = [(scene, obj) for scene, _ in SCENES for obj in scene.objects]
    for kind in ("single", "two", "count"):
        assert {obj.noun for scene, obj in objects if scene.kind == kind} == set(VOCABULARY.nouns)
    assert {obj.tint for _, obj in objects} == {"", *TINTS}
    assert {obj.wearing for _, obj in objects} == {"", *VOCABULARY.garments}
    assert {scene.background for scene, _ in objects} == set(BACKGROUNDS)
    assert {scene.relation for scene, _ in objects} == set(RELATIONS)
    assert {noun for _, obj in objects for noun in obj.hybrid_of or ()} == set(VOCABULARY.hybrid_nouns)
    assert {len(scene.objects) for scene, _ in objects if scene.kind == "count"} == {2, 3, 4}


def test_scene_kinds_have_the_shares_of_the_table() -> None:
    counts = Counter(scene.kind for scene, _ in SCENES)
    for kind, share in SCENE_KIND_WEIGHTS.items():
        margin = 4 * (share * (1 - share) / len(SCENES)) ** 0.5
        assert abs(counts[kind] / len(SCENES) - share) < margin, kind


def test_no_object_is_tinted_in_its_own_color_or_the_background_color() -> None:
    for scene, _ in SCENES:
        for obj in scene.objects:
            assert not obj.tint or obj.tint in VOCABULARY.tints[obj.noun]
            assert obj.tint != scene.background
            if not obj.tint and not obj.hybrid_of:
                assert scene.background in VOCABULARY.backgrounds[obj.noun]


def test_each_caption_names_every_object_and_what_is_special_about_it() -> None:
    names = {noun.name: {noun.name, *noun.synonyms} for noun in NOUNS}
    for scene, captions in SCENES:
        assert 3 <= len(captions) == len(set(captions)) <= 6
        for caption in captions:
            for obj in scene.objects:
                for noun in obj.hybrid_of or (obj.noun,):
                    options = {pluralize(n) for n in names[noun]} | {VOCABULARY.plurals[noun]} | names[noun]
                    assert any(re.search(rf"\b{option}\b", caption) for option in options), caption
                assert obj.tint in caption and obj.wearing in caption
                assert ("stilts" in caption) == any(other.on_stilts for other in scene.objects)
            if scene.kind == "count":
                number = len(scene.objects)
                is_plural = any(re.search(rf"\b{word}\b", caption) for word in plural_words(scene.objects[0].noun))
                assert NUMBERS[number] in caption or str(number) in caption or is_plural, caption
        if scene.background != "white":
            assert f"{scene.background} background" in captions[0]


def plural_words(noun: str) -> set[str]:
    """The plurals of a noun and of its synonyms."""
    synonyms = next(n for n in NOUNS if n.name == noun).synonyms
    return {VOCABULARY.plurals[noun], *map(pluralize, synonyms)}


def test_the_first_caption_says_every_number() -> None:
    for scene, captions in SCENES:
        counts = Counter(obj.noun for obj in scene.objects)
        for noun, count in counts.items():
            if count > 1:
                assert re.search(rf"\b{NUMBERS[count]} (?:\w+ )?{VOCABULARY.plurals[noun]}\b", captions[0]), captions[0]


def test_groups_with_a_relation_are_on_their_sides_entirely() -> None:
    checked = 0
    for scene, _ in SCENES:
        if scene.kind == "counts" and scene.relation:
            axis = "x" if scene.relation in {"left of", "right of"} else "y"
            first, second = (
                [getattr(obj, axis) for obj in scene.objects if obj.noun == noun]
                for noun in dict.fromkeys(obj.noun for obj in scene.objects)
            )
            lower, upper = (first, second) if scene.relation in {"left of", "above"} else (second, first)
            assert max(lower) + 0.2 < min(upper), scene
            checked += 1
    assert checked > 50


def test_several_on_stilts_stand_side_by_side_on_the_ground() -> None:
    groups = [scene.objects for scene, _ in SCENES if scene.kind == "stilts" and len(scene.objects) > 1]
    assert {len(objects) for objects in groups} == {2, 3, 4}
    for objects in groups:
        assert all(obj.on_stilts and obj.y + obj.side / 2 > 0.95 for obj in objects)
        places = sorted(obj.x for obj in objects)
        assert min(b - a for a, b in pairwise(places)) > 0.38 * objects[0].side
    assert any(len({obj.noun for obj in objects}) == 2 for objects in groups)


def test_captions_state_relations_as_they_are() -> None:
    """A caption read back: the noun that is called left is the one whose center is further left."""
    axes = {"left of": "x", "right of": "x", "above|over": "y", "below|under|beneath": "y"}
    checked = 0
    for scene, captions in SCENES:
        if scene.kind != "two":
            continue
        objects = {obj.noun: obj for obj in scene.objects}
        for caption in map(replace_synonyms, captions):
            for relation, axis in axes.items():
                parts = re.split(rf"\b(?:{relation})\b", caption)
                if len(parts) != 2:
                    continue
                first, second = (next(n for n in objects if re.search(rf"\b{n}\b", part)) for part in parts)
                is_before = getattr(objects[first], axis) < getattr(objects[second], axis)
                assert is_before == (relation in {"left of", "above|over"}), caption
                checked += 1
    assert checked > 1000


def test_a_hybrid_is_named_from_its_upper_or_left_part_and_only_halves_are_called_halves() -> None:
    counts: Counter[str] = Counter()
    for scene, captions in SCENES:
        if scene.kind != "hybrid":
            continue
        (obj,) = scene.objects
        counts[obj.splice] += 1
        first, second = obj.hybrid_of or ("", "")
        for caption in map(replace_synonyms, captions):
            assert re.search(rf"\b{first}\b.*\b{second}\b", caption), (caption, obj)
            assert ("half" in caption) == (obj.splice == "side"), (caption, obj)
    assert min(counts["top"], counts["side"]) > 100
