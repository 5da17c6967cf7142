"""The little English grammar that captions need: "a" or "an", and plurals.

The library `inflect` would serve too, and knows more words; but 47 of the 671 plurals of the emoji corpus would change,
and with them the corpora that people have made, and its import takes 1.7 s, which every caption from a folder's name
would pay.
"""

import re

_VOWEL_SOUND = re.compile(r"(?:hour|heir|honest|honou?r)")
_CONSONANT_SOUND = re.compile(r"(?:uni(?!n|m)|us[aeiu]|ut[ei]|eu|ewe|one|once|ukulele|ura)")
_PLURAL_ONLY = frozenset(["sunglasses", "glasses"])
_SINGULAR_S = frozenset(["lens", "gas", "atlas", "canvas", "pancreas", "christmas", "texas", "series", "species"])

_UNCHANGED_PLURALS = frozenset(
    ["bison", "dice", "fried shrimp", "moose", "sheep", "shrimp", "squid", "thumbs down", "thumbs up", "tropical fish"]
)
_IRREGULAR_PLURALS = {
    "die": "dice",
    "foot": "feet",
    "goose": "geese",
    "ox": "oxen",
    "t-rex": "t-rexes",
    "tooth": "teeth",
}


def indefinite_article(phrase: str) -> str:
    """ "a" or "an", by the sound of the first word; `phrase` is not empty."""
    first_word = re.split(r"[\s\-]", phrase)[0]
    # Spelled out: an x-ray, an SUV, a UFO.
    if len(first_word) == 1 or (first_word.isupper() and len(first_word) <= 4):
        return "an" if first_word[0].lower() in "aefhilmnorsx" else "a"
    lower_word = first_word.lower()
    if _VOWEL_SOUND.match(lower_word):
        return "an"
    if _CONSONANT_SOUND.match(lower_word):
        return "a"
    return "an" if lower_word[0] in "aeiou" else "a"


def with_article(phrase: str) -> str:
    """The phrase with "a" or "an" in front; "sunglasses" takes none."""
    return phrase if phrase.split()[0] in _PLURAL_ONLY else f"{indefinite_article(phrase)} {phrase}"


def is_plural(phrase: str) -> bool:
    """Whether the last word looks like a plural: `running shoes`, but not `bus`, `dress` or `lens`."""
    last_word = phrase.split()[-1].lower()
    return last_word.endswith("s") and not last_word.endswith(("ss", "us", "is")) and last_word not in _SINGULAR_S


def pluralize(word: str) -> str:
    """The English plural; for `slice of pizza` the plural of its head, `slices of pizza`."""
    head, of, rest = word.partition(" of ")
    if of:
        return pluralize(head) + of + rest
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith(("lf", "fe")):
        return word.rstrip("e")[:-1] + "ves"
    if word.endswith("man"):
        return word[:-3] + "men"
    if word in _UNCHANGED_PLURALS:
        return word
    if word in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[word]
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"
