"""Captions in other wordings: pure functions of the caption, as true as it is, and readable to the end."""

import re
from collections import Counter
from random import Random

import pytest

from unspeckle.corpus import caption_augmentation, loose_words
from unspeckle.corpus.caption_augmentation import WORD, WORD_BREAK, WORDINGS, CaptionAugmenter, should_reword, words_of
from unspeckle.text import tokenizer

SCENES = (
    "three red cats left of a dog on a blue background",
    "two frogs on stilts",
    "a cat-bear hybrid",
    "half a fox and half an owl",
    "a photo of a robot wearing sunglasses",
    "a small green tree below a house",
)
CLASSES = tuple(f"a photo of a {name}" for name in ("red skirt", "dress", "ankle boot", "t-shirt"))
TAGS = ("1girl, red hair, smile, two swords", "landscape, mountain, blue sky, river")


def wordings(captions: tuple[str, ...], seed: int = 0) -> dict[str, list[str]]:
    """All wordings of each caption."""
    augmenter = CaptionAugmenter(words_of(captions), seed)
    return {caption: [augmenter.reword(caption, i) for i in range(WORDINGS)] for caption in captions}


def words(text: str) -> list[str]:
    return WORD.findall(text.replace(WORD_BREAK, "").lower())


def test_words_and_the_mark_in_them_are_the_tokenizers() -> None:
    """corpus/ and text/ do not know each other, so each says what it means by a word."""
    assert caption_augmentation.WORD_BREAK == tokenizer.WORD_BREAK
    assert caption_augmentation.WORD.pattern == tokenizer.WORD_PATTERN.pattern


@pytest.mark.parametrize("captions", [SCENES, CLASSES, TAGS])
def test_wordings_depend_on_caption_seed_and_number_alone(captions: tuple[str, ...]) -> None:
    assert wordings(captions) == wordings(captions)
    one = CaptionAugmenter(words_of(captions), 0)
    for caption, texts in reversed(wordings(captions).items()):  # in another order
        assert [one.reword(caption, i) for i in reversed(range(WORDINGS))] == texts[::-1]
        assert texts[0] == caption and len(set(texts)) > WORDINGS / 3
    assert wordings(captions) != wordings(captions, seed=1)


@pytest.mark.parametrize("captions", [SCENES, CLASSES])
def test_what_says_something_is_never_left_out(captions: tuple[str, ...]) -> None:
    """Every word of the caption but articles and what a picture is made with is there, in its order, or mistyped."""
    unsaid = {"a", "an", "the", "of", "photo"}
    mistyped = 0
    for caption, texts in wordings(captions).items():
        counts = Counter(words(caption))
        meant = [word for word in counts if word not in unsaid and counts[word] == 1]
        for text in texts:
            said = words(text)
            missing = [word for word in meant if word not in said and f"{word}s" not in said]
            mistyped += len(missing)
            assert len(missing) <= 1, (caption, text)
            found = [word for word in said if word in meant]
            if not missing and len(meant) > 2 and "," not in text:
                assert found == meant or f"{meant[-1]}s" in said, (caption, text)
    assert 0 < mistyped < 0.15 * len(captions) * WORDINGS


def test_nothing_that_means_something_is_added() -> None:
    added = Counter[str]()
    for caption, texts in wordings(SCENES).items():
        for text in texts:
            added.update(set(words(text)) - set(words(caption)))
    meaning = words_of(SCENES) - {"a", "an", "the", "of", "on"}
    assert len(added) > 100 and not meaning & set(added)
    assert not (loose_words.MEANINGFUL - {"in", "on", "with", "and", "or"}) & set(added)


def test_words_of_the_corpus_are_not_used_as_meaningless_ones() -> None:
    captions = ("a cute cat, digital art", "an ugly cat, oil painting")
    augmenter = CaptionAugmenter(words_of(captions), 0)
    texts = [augmenter.reword("an ugly cat, oil painting", i) for i in range(WORDINGS)]
    assert not any(re.search(r"\b(?:cute|digital)\b", text) for text in texts)
    assert not {"cute", "digital", "art", "oil", "painting"} & augmenter.meaningless_words


def test_one_is_called_several_only_where_captions_do_not_tell_them_apart() -> None:
    classes = [text for texts in wordings(CLASSES).values() for text in texts]
    assert any("skirts" in text for text in classes) and any("dresses" in text for text in classes)
    scenes = [text for texts in wordings(SCENES).values() for text in texts]
    assert not any(re.search(r"\b(?:dogs|hybrids|trees|houses)\b", text) for text in scenes)


def test_a_typing_error_is_never_another_known_word() -> None:
    captions = tuple(f"a {word}" for word in ("boat", "boot", "bolt", "beat", "bat", "boats"))
    augmenter = CaptionAugmenter(words_of(captions), 0)
    mistyped = [augmenter._mistype(Random(i), "boat") for i in range(2000)]
    assert len(set(mistyped)) > 40 and not set(mistyped) & {"boot", "bolt", "beat", "bat"}


def test_tags_are_shuffled_and_some_left_out_but_no_colors_and_numbers() -> None:
    texts = [text.replace(WORD_BREAK, "") for text in wordings(TAGS)[TAGS[0]]]
    assert any(not text.startswith("1girl") for text in texts)
    plain = [text for text in texts if not set(words(text)) - set(words(TAGS[0]))]
    assert plain and all("red hair" in text and "two swords" in text for text in plain)
    landscapes = [text.replace(WORD_BREAK, "") for text in wordings(TAGS)[TAGS[1]]]
    assert any("river" not in text for text in landscapes) and any("mountain" not in text for text in landscapes)


def test_a_wording_that_does_not_fit_is_the_caption() -> None:
    augmenter = CaptionAugmenter(words_of(SCENES), 0, fits=lambda text: len(text) <= len(SCENES[1]))
    texts = {augmenter.reword(SCENES[1], i) for i in range(WORDINGS)}
    assert SCENES[1] in texts and all(len(text) <= len(SCENES[1]) for text in texts)


def test_english_captions_of_few_words_are_reworded() -> None:
    assert should_reword(words_of(SCENES + CLASSES)) and should_reword(words_of(TAGS))
    assert not should_reword({str(i) for i in range(caption_augmentation.MAX_GRAMMAR_WORDS + 1)})
    for captions in (
        ("ein Frosch auf einer Wiese", "das Haus und der Baum"),
        ("un chat sur le lit",),
        ("大きな赤い犬",),
    ):
        assert not should_reword(words_of(captions)), captions


@pytest.mark.parametrize("caption", ["plan A beside plan B", "no smoking", "top hat", "orange juice", "Barack Obama"])
def test_names_and_compounds_stay_whole(caption: str) -> None:
    """In their order, without an article that is none, but perhaps mistyped or in the plural."""
    augmenter = CaptionAugmenter(words_of([caption]), 0)
    for i in range(WORDINGS):
        text = " ".join(words(augmenter.reword(caption, i)))
        typed = [word for word in words(caption) if re.search(rf"\b{word}s?\b", text)]
        assert len(typed) >= len(set(words(caption))) - 1 and "obamas" not in text, text
        if len(typed) == len(words(caption)) and text.count("plan") != 1:
            assert re.search(" ".join(f"{word}s?" for word in words(caption)), text), text


@pytest.mark.parametrize("caption", ["", "the", "a photo of ", "...", "{}", "1 dog", "one dog", "a" * 5000])
def test_odd_captions_have_wordings(caption: str) -> None:
    augmenter = CaptionAugmenter(words_of([caption]), 0)
    texts = [augmenter.reword(caption, i) for i in range(WORDINGS)]
    assert texts[0] == caption and not any("dogs" in text for text in texts)


def test_a_quality_with_a_number_in_it_is_no_number() -> None:
    """A model that has never read "4k" takes it for four of a thing."""
    captions = ["4 red foxes", "a fox on blue", "four foxes"]
    augmenter = CaptionAugmenter(words_of(captions), seed=0)
    assert {"4k", "8k"} <= augmenter.meaningless_words and not {"4", "four"} & augmenter.meaningless_words
    wordings = {augmenter.reword("a fox on blue", number) for number in range(400)}
    assert any(re.search(r"\b4k\b", wording, re.IGNORECASE) for wording in wordings)
    assert not any(re.search(r"\b4\b", wording) for wording in wordings)


def test_words_that_say_something_are_on_no_list_of_meaningless_ones() -> None:
    lists = (loose_words.STYLES, loose_words.ADJECTIVES, loose_words.CHATTER)
    added = {word for texts in lists for text in texts for word in words(text)}
    joining = {"on", "in", "with", "and", "or"}
    assert not (loose_words.MEANINGFUL - joining) & added and not loose_words.NAMED_IN_OPENERS & set(
        loose_words.CHATTER
    )
    silent = CaptionAugmenter([], 0).meaningless_words
    assert "please" in silent and not {"gift", "daughter", "wall", "person", "school"} & silent
