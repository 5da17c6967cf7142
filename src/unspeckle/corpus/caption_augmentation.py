"""Captions as people would type them: without articles, with words around them that say nothing, with typing errors.

A text encoder that learns from nothing learns the sentences of its corpus and no others. So `train` shows it each
caption in several wordings, all of them as true of the image as the caption is. A wording is a pure function of the
caption, the seed and its number, so that wordings repeat and can be encoded once, and runs can be resumed bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from random import Random

from unspeckle.corpus.english import is_plural, pluralize
from unspeckle.corpus.loose_words import (
    ADJECTIVES,
    CHATTER,
    COLORS,
    ENGLISH_WORDS,
    MEANINGFUL,
    NAMED_IN_OPENERS,
    OPENERS,
    OTHER_LANGUAGES_WORDS,
    STYLES,
)

WORDINGS = 32
"""Wordings of a caption, the first of which is the caption itself."""
WORD_BREAK = "\ue000"
"""Within a word: the tokenizer splits the word here (subword regularization: Kudo 2018, Provilkov et al. 2020). A
character of private use, which no caption contains."""
MAX_GRAMMAR_WORDS = 3000
"""Captions of fewer different words are alike, as those of a grammar or of folders' names are."""
# "4k" is one word, and not the number in it
WORD = re.compile(r"[^\W_]+(?:['’][^\W\d_]+)*")

_MEDIUM = r"(?:photo(?:graph)?|picture|image|drawing|painting|sketch|illustration|emoji|icon|rendering|sticker)s?"
_OPENING = re.compile(rf"^(?:(?:an?|the) )?(?P<medium>{_MEDIUM}) (?:of|showing) ", re.IGNORECASE)
# Capital letters only where a caption begins: "plan A" has no article.
_ARTICLE = re.compile(r"(?:^(?:An?|The|a|an|the)|\b(?:a|an|the)) (?=\w)")
_NUMBER_WORDS = frozenset(["one", "single", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
MIN_ASCII_SHARE = 0.95
_FUNCTION_WORDS = frozenset(
    ("a", "an", "the", "of", "to", "for", "and", "or", "with", "in", "on", "at", "by", "from", "is", "are", "that")
)  # fmt: skip
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def words_of(captions: Iterable[str]) -> frozenset[str]:
    """All words of the captions, in lower case."""
    words: set[str] = set()
    for caption in captions:
        words.update(WORD.findall(caption.lower()))
    return frozenset(words)


def should_reword(words: Collection[str]) -> bool:
    """Whether captions of these words are English, and hold so few that a text encoder would learn their sentences and
    no others."""
    ascii_share = sum(word.isascii() for word in words) / max(1, len(words))
    is_english = len(ENGLISH_WORDS.intersection(words)) >= len(OTHER_LANGUAGES_WORDS.intersection(words))
    return len(words) <= MAX_GRAMMAR_WORDS and ascii_share >= MIN_ASCII_SHARE and is_english


def _tells_much(tag: str) -> bool:
    return any(word in MEANINGFUL or word.isdigit() for word in WORD.findall(tag.lower()))


def without_opening(caption: str) -> str:
    """What a caption names: "red skirt" of "a photo of a red skirt"."""
    return _ARTICLE.sub("", _OPENING.sub("", caption), count=1)


class CaptionAugmenter:
    """Makes wordings of captions.

    words: all of the corpus's captions, which are never used as words without meaning. seed: of the run.
    fits: whether a text encoder can read a wording to its end; one that does not fit is replaced by the caption.
    """

    def __init__(self, words: Iterable[str], seed: int, fits: Callable[[str], bool] = lambda text: True) -> None:
        self._seed, self._fits = seed, fits
        self._words = frozenset(words)
        self._openers, self._styles, self._adjectives, self._chatter = (
            [text for text in texts if not self._says_something(text)]
            for texts in (OPENERS, STYLES, ADJECTIVES, CHATTER)
        )
        plurals = {pluralize(word) for word in self._words if not is_plural(word)}
        # Where captions tell one from several, a plural would say something that is not so.
        has_digits = any(word.isdigit() for word in self._words)
        self._tells_numbers = has_digits or bool(self._words & (_NUMBER_WORDS | plurals))

    @property
    def meaningless_words(self) -> frozenset[str]:
        """All words that are added and say nothing, in lower case."""
        texts = [*self._openers, *self._styles, *self._adjectives, *self._chatter]
        words = {word for text in texts for word in WORD.findall(text.replace("{}", " ").lower())}
        return frozenset(words - self._words - NAMED_IN_OPENERS)

    def reword(self, caption: str, number: int) -> str:
        """The wording of that number, 0 to WORDINGS - 1, of a caption; number 0 is the caption itself."""
        wording = self._reword(caption, number) if number else caption
        return wording if wording == caption or self._fits(wording) else caption

    def _reword(self, caption: str, number: int) -> str:
        rng = Random(f"{self._seed} {number} {caption}")
        text = self._reorder(rng, self._drop_articles(rng, self._reword_opening(rng, caption)))
        if rng.random() < 0.3 or not text.strip():
            return text or caption
        if not self._tells_numbers and rng.random() < 0.2:
            text = self._pluralize(text)
        if rng.random() < 0.3:
            text = re.sub(r"(?<=\w)-(?=\w)", " ", text)
        if rng.random() < 0.15:
            text = self._mistype(rng, text)
        text = self._surround(rng, text)
        if rng.random() < 0.15:
            text += rng.choice((".", "!", "!!", "?", " ..."))
        return self._break_words(rng, text) if rng.random() < 0.3 else text

    def _says_something(self, text: str) -> bool:
        return any(word in self._words and word not in _FUNCTION_WORDS for word in WORD.findall(text.lower()))

    def _reword_opening(self, rng: Random, text: str) -> str:
        """ "A photo of a skirt" without its opening, or as "skirt, photo"."""
        opening = _OPENING.match(text)
        if opening is None or rng.random() < 0.25:
            return text
        rest, medium = text[opening.end() :], opening["medium"].lower()
        bare = _ARTICLE.sub("", rest, count=1)
        return rng.choice((rest, rest, rest, bare, f"{bare}, {medium}", f"{bare} {medium}", f"{medium}, {bare}"))

    def _drop_articles(self, rng: Random, text: str) -> str:
        choice = rng.random()
        if choice < 0.55:
            return _ARTICLE.sub("", text)
        return _ARTICLE.sub(lambda found: found[0] if rng.random() < 0.5 else "", text) if choice < 0.7 else text

    def _reorder(self, rng: Random, text: str) -> str:
        """Tags in another order and without some that tell no number, color or place; a color behind its noun: "frog,
        blue"."""
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if len(parts) > 2 and all(len(part.split()) <= 4 for part in parts) and " and " not in text:
            if rng.random() < 0.5:
                rng.shuffle(parts)
            kept = [part for part in parts if _tells_much(part) or rng.random() > 0.2]
            return (", " if rng.random() < 0.8 else " ").join(kept or parts)
        words = text.split()
        has_color = len(words) == 2 and words[0].lower() in COLORS and len(self._words & COLORS) > 1
        if has_color and rng.random() < 0.15:
            return rng.choice((f"{words[1]} {words[0]}", f"{words[1]}, {words[0]}"))
        return text

    def _pluralize(self, text: str) -> str:
        """Of a short text, its last word: "red skirts"."""
        words = text.split()
        last = words[-1]
        is_noun = last.isascii() and last.isalpha() and last.islower() and not is_plural(last)
        if not 1 <= len(words) <= 3 or not is_noun or _FUNCTION_WORDS & set(words):
            return text
        return " ".join([*words[:-1], pluralize(words[-1])])

    def _mistype(self, rng: Random, text: str) -> str:
        """One word with a letter missing, doubled, exchanged with the next or another one; never another known word."""
        places = list(re.finditer(r"\b[A-Za-z]{4,}\b", text))
        if not places:
            return text
        found = rng.choice(places)
        word, i = found[0], rng.randrange(1, len(found[0]) - 1)
        typo = rng.choice(
            (
                word[:i] + word[i + 1 :],
                word[:i] + word[i] + word[i:],
                word[:i] + word[i + 1] + word[i] + word[i + 2 :],
                word[:i] + rng.choice(_LETTERS) + word[i + 1 :],
            )
        )
        return text if typo.lower() in self._words else text[: found.start()] + typo + text[found.end() :]

    def _surround(self, rng: Random, text: str) -> str:
        """The text with words around it that say nothing, or with none."""
        if self._adjectives and rng.random() < 0.3:
            article = _ARTICLE.match(text)
            end = article.end() if article else 0
            first = (text[end:].split(maxsplit=1) or [""])[0].lower()
            if first in _NUMBER_WORDS:
                end += len(first) + 1
            adjectives = " ".join(rng.sample(self._adjectives, 1 if rng.random() < 0.8 else 2))
            text = f"{text[:end]}{adjectives} {text[end:]}"
        if self._styles and rng.random() < 0.35:
            styles = ", ".join(rng.sample(self._styles, min(len(self._styles), rng.choice((1, 1, 1, 2, 2, 3, 4)))))
            text = f"{text}, {styles}" if rng.random() < 0.8 else f"{styles}, {text}"
        if self._chatter and rng.random() < 0.2:
            count = rng.randint(1, 4)
            chatter = " ".join(
                rng.choice(self._chatter) if rng.random() < 0.7 else self._unknown_word(rng) for _ in range(count)
            )
            text = f"{chatter}{rng.choice((' ', ', ', ': '))}{text}" if rng.random() < 0.5 else f"{text} {chatter}"
        if self._openers and rng.random() < 0.35:
            text = rng.choice(self._openers).replace("{}", text)
        return text

    def _unknown_word(self, rng: Random) -> str:
        """A word of two or three syllables that hardly anybody ever said."""
        word = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(2, 3)))
        word += rng.choice(("", "n", "s", "r", "ng", "t"))
        return "zz" + word if word in self._words | MEANINGFUL else word

    def _break_words(self, rng: Random, text: str) -> str:
        """Some of the longer words with a WORD_BREAK in them."""

        def break_word(found: re.Match[str]) -> str:
            if rng.random() > 0.4:
                return found[0]
            i = rng.randrange(1, len(found[0]))
            return found[0][:i] + WORD_BREAK + found[0][i:]

        return re.sub(r"[^\W\d_]{3,}", break_word, text)
