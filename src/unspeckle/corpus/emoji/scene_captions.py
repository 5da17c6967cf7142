"""Several captions of a scene, all true; the first says the most."""

from __future__ import annotations

from random import Random

from unspeckle.corpus.emoji.random_choices import choose_one
from unspeckle.corpus.emoji.scenes import Scene, SceneObject, SceneVocabulary
from unspeckle.corpus.english import pluralize, with_article

NUMBERS = {2: "two", 3: "three", 4: "four"}
SYNONYM_PROBABILITY = 0.3
"""Of a synonym in place of a noun that has one."""
RELATION_PHRASES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "next to": ("next to", "beside"),
}
INVERSE_RELATIONS = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "next to": "next to",
}
CAPTION_PREFIXES = ("a picture of ", "an emoji of ", "a drawing of ", "a photo of ")
WEARING_WORDS = ("wearing", "with", "in")
BACKGROUND_PROBABILITY = {"white": 0.4, "colored": 1.0}
"""Of mentioning the background. A caption without one means white."""
PREFIX_PROBABILITY = 0.12
"""Of a prefix such as "a picture of"."""
STILTS_PHRASES = ("on stilts", "standing on stilts", "walking on stilts", "on tall stilts")
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
            f"{caption} on {background}", f"{caption} against {background}", f"{caption}, {color} background"
        )

    def describe_scene(self, scene: Scene) -> str:
        """The scene without its background."""
        objects = scene.objects
        if scene.kind == "count":
            return self._describe_count(objects)
        if scene.kind == "two":
            return self._describe_two(scene)
        if scene.kind == "group":
            phrases = [self.describe_object(obj) for obj in objects]
            return ", ".join(phrases[:-1]) + " and " + phrases[-1]
        return self.describe_object(objects[0])

    def choose_noun(self, name: str) -> str:
        """The noun or one of its synonyms."""
        synonyms = self._vocabulary.synonyms.get(name, ())
        if synonyms and not self._canonical and self._rng.random() < SYNONYM_PROBABILITY:
            return self.choose(*synonyms)
        return name

    def describe_object(self, obj: SceneObject) -> str:
        """An object with its article, size, tint and accessories."""
        if obj.hybrid_of:
            return self._describe_hybrid(*obj.hybrid_of, obj.splice)
        phrase = with_article(self._adjectives(obj) + self.choose_noun(obj.noun))
        if obj.on_stilts:
            return f"{phrase} {self.choose(*STILTS_PHRASES)}"
        if obj.wearing:
            return f"{phrase} {self.choose(*WEARING_WORDS)} {with_article(obj.wearing)}"
        return phrase

    def _adjectives(self, obj: SceneObject) -> str:
        size = self.choose(*SIZE_ADJECTIVES[obj.size_word]) if obj.size_word else ""
        return "".join(f"{word} " for word in (size, obj.tint) if word)

    def _describe_count(self, objects: tuple[SceneObject, ...]) -> str:
        name = self.choose_noun(objects[0].noun)
        # Synonyms have no plural in the vocabulary.
        plural_noun = self._vocabulary.plurals.get(name) or pluralize(name)
        number = NUMBERS[len(objects)]
        return f"{number} {objects[0].tint} {plural_noun}" if objects[0].tint else f"{number} {plural_noun}"

    def _describe_two(self, scene: Scene) -> str:
        first, second = (self.describe_object(obj) for obj in scene.objects)
        if not scene.relation or (not self._canonical and self._rng.random() < 0.15):
            return f"{second} and {first}" if scene.relation in {"right of", "below"} else f"{first} and {second}"
        phrase = f"{first} {self.choose(*RELATION_PHRASES[scene.relation])} {second}"
        if scene.relation == "next to":
            return phrase
        inverse_phrase = f"{second} {self.choose(*RELATION_PHRASES[INVERSE_RELATIONS[scene.relation]])} {first}"
        if scene.relation not in {"left of", "right of"}:
            return self.choose(phrase, phrase, inverse_phrase)
        left, right = (first, second) if scene.relation == "left of" else (second, first)
        return self.choose(phrase, phrase, inverse_phrase, f"{left} on the left and {right} on the right")

    def _describe_hybrid(self, upper: str, lower: str, splice: str) -> str:
        """The upper or left part is named first. Only parts side by side are called halves."""
        first, second = self.choose_noun(upper), self.choose_noun(lower)
        if splice == "side":
            return self.choose(
                f"half {first} half {second}",
                f"half {with_article(first)} and half {with_article(second)}",
                f"half {first}, half {second}",
            )
        return self.choose(
            with_article(f"{first}-{second} hybrid"),
            f"a hybrid of {with_article(first)} and {with_article(second)}",
            f"{with_article(first)} crossed with {with_article(second)}",
            f"a cross between {with_article(first)} and {with_article(second)}",
        )
