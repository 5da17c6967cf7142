"""Several captions of a scene, all true; the first says the most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from random import Random

from unspeckle.corpus.emoji.random_choices import choose_one
from unspeckle.corpus.emoji.scenes import Scene, SceneObject, SceneVocabulary
from unspeckle.corpus.english import is_plural, pluralize, with_article

NUMBERS = {2: "two", 3: "three", 4: "four"}
SYNONYM_PROBABILITY = 0.3
"""Of a synonym in place of a noun that has one."""
RELATION_PHRASES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath", "underneath"),
    "next to": ("next to", "beside", "near"),
}
INVERSE_RELATIONS = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "next to": "next to",
}
CAPTION_PREFIXES = ("a picture of ", "an emoji of ", "a drawing of ", "a photo of ")
WEARING_WORDS = ("wearing", "with", "in", "that wears")
BACKGROUND_PROBABILITY = {"white": 0.4, "colored": 1.0}
"""Of mentioning the background. A caption without one means white."""
PREFIX_PROBABILITY = 0.12
"""Of a prefix such as "a picture of"."""
DIGIT_PROBABILITY = 0.15
"""Of "3" in place of "three"."""
NO_NUMBER_PROBABILITY = 0.15
"""Of a plural without a number."""
ONE_PROBABILITY = 0.04
"""Of "one" in place of an article."""
TINT_BEHIND_PROBABILITY = 0.12
"""Of a color behind the noun: "a frog that is blue"."""
STILTS_PHRASES = (
    "on stilts",
    "standing on stilts",
    "walking on stilts",
    "on tall stilts",
    "on wooden stilts",
    "balancing on stilts",
)
HYBRID_PHRASES = (
    "{hybrid}",
    "a hybrid of {one} and {other}",
    "{one} crossed with {other}",
    "a cross between {one} and {other}",
    "a mix of {one} and {other}",
    "{one} mixed with {other}",
    "{mix}",
    "a fusion of {one} and {other}",
    "{one} and {other} in one animal",
)
SIZE_ADJECTIVES = {"big": ("big", "large"), "small": ("small", "little")}


def make_captions(rng: Random, scene: Scene, vocabulary: SceneVocabulary) -> list[str]:
    """Three to six different captions. The first names every object by its noun, and any background but white."""
    canonical_writer = CaptionWriter(rng, vocabulary, canonical=True)
    caption = canonical_writer.describe_scene(scene)
    captions = [caption if scene.background == "white" else canonical_writer.add_background(caption, scene.background)]
    caption_count = 3 + int(rng.random() * 4)
    background_probability = BACKGROUND_PROBABILITY["white" if scene.background == "white" else "colored"]
    for _ in range(50):
        if len(captions) >= caption_count:
            break
        writer = CaptionWriter(rng, vocabulary, canonical=False)
        caption = writer.describe_scene(scene)
        if rng.random() < background_probability:
            caption = writer.add_background(caption, scene.background)
        if rng.random() < PREFIX_PROBABILITY:
            caption = choose_one(rng, CAPTION_PREFIXES) + caption
        if caption not in captions:
            captions.append(caption)
    return captions


class CaptionWriter:
    """Describes scenes in words chosen at random; a canonical writer takes each first choice and no synonyms."""

    def __init__(self, rng: Random, vocabulary: SceneVocabulary, canonical: bool) -> None:
        self._rng, self._vocabulary, self._canonical = rng, vocabulary, canonical

    def choose(self, *options: str) -> str:
        """One of the options."""
        return options[0] if self._canonical else choose_one(self._rng, options)

    def add_background(self, caption: str, color: str) -> str:
        """The caption with the background's color."""
        background = with_article(f"{color} background")
        return self.choose(
            f"{caption} on {background}",
            f"{caption} against {background}",
            f"{caption}, {color} background",
            f"{caption} with {background}",
            f"{caption} on {color}",
        )

    def describe_scene(self, scene: Scene) -> str:
        """The scene without its background."""
        groups = [list(group) for _, group in groupby(scene.objects, key=lambda obj: obj.noun)]
        if scene.kind == "trio":
            return self._describe_trio(scene)
        if scene.kind == "stilts" and len(groups) == 2:
            return self._describe_two_on_stilts(groups)
        if len(groups) == 2:
            return self._describe_pair([self.describe_group(group) for group in groups], scene.relation)
        phrases = [self.describe_group(group) for group in groups]
        return ", ".join(phrases[:-1]) + " and " + phrases[-1] if phrases[1:] else phrases[0]

    def choose_noun(self, name: str) -> str:
        """The noun or one of its synonyms."""
        synonyms = self._vocabulary.synonyms.get(name, ())
        if synonyms and not self._canonical and self._rng.random() < SYNONYM_PROBABILITY:
            return self.choose(*synonyms)
        return name

    def describe_group(self, objects: Sequence[SceneObject]) -> str:
        """All objects of a noun, with their number, tint and accessories, which are the same for all of them."""
        return self._describe_several(objects) if len(objects) > 1 else self.describe_object(objects[0])

    def describe_object(self, obj: SceneObject) -> str:
        """An object with its article, size, tint and accessories."""
        if obj.hybrid_of:
            return self._describe_hybrid(*obj.hybrid_of, obj.splice)
        noun = self.choose_noun(obj.noun)
        size = self.choose(*SIZE_ADJECTIVES[obj.size_word]) if obj.size_word else ""
        is_tint_behind = bool(obj.tint) and self._happens(TINT_BEHIND_PROBABILITY)
        words = (size, "" if is_tint_behind else obj.tint, noun)
        phrase = self._with_article_or_one(" ".join(word for word in words if word))
        if is_tint_behind:
            phrase += self.choose(" in ", " that is ", " painted ") + obj.tint
        return phrase + self._accessories(obj, with_article(obj.wearing) if obj.wearing else "")

    def _describe_several(self, objects: Sequence[SceneObject]) -> str:
        obj = objects[0]
        name = self.choose_noun(obj.noun)
        # Synonyms have no plural in the vocabulary.
        plural_noun = self._vocabulary.plurals.get(name) or pluralize(name)
        number = NUMBERS[len(objects)] + " "
        if self._happens(DIGIT_PROBABILITY):
            number = f"{len(objects)} "
        elif self._happens(NO_NUMBER_PROBABILITY):
            number = self.choose("", "some ")
        phrase = f"{number}{obj.tint} {plural_noun}" if obj.tint else f"{number}{plural_noun}"
        return phrase + self._accessories(obj, pluralize_garment(obj.wearing) if obj.wearing else "")

    def _accessories(self, obj: SceneObject, garment: str) -> str:
        wearing = f" {self.choose(*WEARING_WORDS)} {garment}" if obj.wearing else ""
        return wearing + (f" {self.choose(*STILTS_PHRASES)}" if obj.on_stilts else "")

    def _with_article_or_one(self, phrase: str) -> str:
        return f"one {phrase}" if self._happens(ONE_PROBABILITY) else with_article(phrase)

    def _happens(self, probability: float) -> bool:
        return not self._canonical and self._rng.random() < probability

    def _describe_two_on_stilts(self, groups: Sequence[Sequence[SceneObject]]) -> str:
        """Each is said to be on stilts, or both at once."""
        if self._canonical or self._happens(0.3):
            return self._describe_pair([self.describe_group(group) for group in groups], "")
        lifted = [self.describe_group([replace(obj, on_stilts=False) for obj in group]) for group in groups]
        pair = self._describe_pair(lifted, "")
        stilts = self.choose(*STILTS_PHRASES)
        return self.choose(f"{pair}, both {stilts}", f"{pair} {stilts}")

    def _describe_pair(self, phrases: Sequence[str], relation: str) -> str:
        """Two nouns, and the relation of the first to the second, if there is one."""
        first, second = phrases
        if not relation or (not self._canonical and self._rng.random() < 0.15):
            return f"{second} and {first}" if relation in {"right of", "below"} else f"{first} and {second}"
        phrase = f"{first} {self.choose(*RELATION_PHRASES[relation])} {second}"
        if relation == "next to":
            return phrase
        inverse_phrase = f"{second} {self.choose(*RELATION_PHRASES[INVERSE_RELATIONS[relation]])} {first}"
        if relation not in {"left of", "right of"}:
            upper, lower = (first, second) if relation == "above" else (second, first)
            return self.choose(phrase, phrase, inverse_phrase, f"{upper} at the top and {lower} at the bottom")
        left, right = (first, second) if relation == "left of" else (second, first)
        return self.choose(phrase, phrase, inverse_phrase, f"{left} on the left and {right} on the right")

    def _describe_trio(self, scene: Scene) -> str:
        """The third object above or below the first two, which are side by side."""
        left, right, third = (self.describe_object(obj) for obj in scene.objects)
        inverse = self.choose(*RELATION_PHRASES[INVERSE_RELATIONS[scene.relation]])
        return self.choose(
            f"{third} {self.choose(*RELATION_PHRASES[scene.relation])} {left} and {right}",
            f"{left} and {right} {inverse} {third}",
            f"{left} {self.choose(*RELATION_PHRASES['left of'])} {right}, both {inverse} {third}",
            f"{left} on the left and {right} on the right, {inverse} {third}",
        )

    def _describe_hybrid(self, upper: str, lower: str, splice: str) -> str:
        """The upper or left part is named first. Only parts side by side are called halves."""
        first, second = self.choose_noun(upper), self.choose_noun(lower)
        if splice == "side":
            return self.choose(
                f"half {first} half {second}",
                f"half {with_article(first)} and half {with_article(second)}",
                f"half {first}, half {second}",
            )
        return self.choose(*HYBRID_PHRASES).format(
            one=with_article(first),
            other=with_article(second),
            hybrid=with_article(f"{first}-{second} hybrid"),
            mix=with_article(f"{first} {second} mix"),
        )


def pluralize_garment(garment: str) -> str:
    """What several wear: "crowns", but "sunglasses"."""
    return garment if is_plural(garment) else pluralize(garment)
