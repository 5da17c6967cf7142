"""Captions in other wordings: pure functions of the caption, as true as it is, and readable to the end."""

import re
from collections import Counter

import pytest

from unspeckle.corpus import caption_augmentation, loose_words
from unspeckle.corpus.caption_augmentation import WORD, WORD_BREAK, WORDINGS, CaptionAugmenter, are_alike, words_of
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


def test_the_mark_in_a_word_is_the_tokenizers() -> None:
    assert caption_augmentation.WORD_BREAK == tokenizer.WORD_BREAK


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
    captions = ("a boat", "a coat", "a goat")
    augmenter = CaptionAugmenter(words_of(captions), 0)
    for seed_word in captions:
        for i in range(WORDINGS):
            assert not {"boat", "coat", "goat"} - set(words(seed_word)) & set(words(augmenter.reword(seed_word, i)))


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


def test_captions_of_few_words_are_alike() -> None:
    assert are_alike(words_of(SCENES + CLASSES))
    assert not are_alike({str(i) for i in range(caption_augmentation.MAX_GRAMMAR_WORDS + 1)})
