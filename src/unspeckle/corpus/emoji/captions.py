"""The captions of a scene: several true wordings, the first the fullest."""

from __future__ import annotations

from random import Random

from unspeckle.corpus.emoji.nouns import plural, with_article
from unspeckle.corpus.emoji.scenes import Palette, Scene, Thing

NUMBERS = {2: "two", 3: "three", 4: "four"}
SYNONYM = 0.3  # how often a synonym is said for a noun that has one
PLACES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "next to": ("next to", "beside"),
}
TURNED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", "next to": "next to"}
OPENINGS = ("a picture of ", "an emoji of ", "a drawing of ", "a photo of ")
WORN = ("wearing", "with", "in")
TOLD = {"white": 0.4, "coloured": 1.0}  # how often the background is: left unsaid, it means white
STANDING = ("on stilts", "standing on stilts", "walking on stilts", "on tall stilts")
SIZES = {"big": ("big", "large"), "small": ("small", "little")}


def wordings(rng: Random, scene: Scene, palette: Palette) -> list[str]:
    """Three to six different captions; the first names every object canonically, and the background unless white."""
    full = Speaker(rng, palette, plain=True)
    captions = [_with_background(full, scene, full.said(scene), always=scene.background != "white")]
    wanted = 3 + int(rng.random() * 4)
    for _ in range(50):
        if len(captions) >= wanted:
            break
        free = Speaker(rng, palette, plain=False)
        told = TOLD["white" if scene.background == "white" else "coloured"]
        caption = _with_background(free, scene, free.said(scene), always=rng.random() < told)
        if rng.random() < 0.12:
            caption = OPENINGS[int(rng.random() * len(OPENINGS))] + caption
        if caption not in captions:
            captions.append(caption)
    return captions


def _with_background(speaker: Speaker, scene: Scene, caption: str, always: bool) -> str:
    if not always:
        return caption
    ground = with_article(f"{scene.background} background")
    return speaker.one_of(
        f"{caption} on {ground}", f"{caption} against {ground}", f"{caption}, {scene.background} background"
    )


class Speaker:
    """One way of saying things; `plain` takes each first choice and no synonym."""

    def __init__(self, rng: Random, palette: Palette, plain: bool) -> None:
        self._rng, self._palette, self._plain = rng, palette, plain

    def one_of(self, *options: str) -> str:
        return options[0] if self._plain else options[int(self._rng.random() * len(options))]

    def said(self, scene: Scene) -> str:
        things = scene.things
        if scene.kind == "count":
            return self._several(things)
        if scene.kind == "two":
            return self._two(scene)
        if scene.kind == "group":
            names = [self.thing(thing) for thing in things]
            return ", ".join(names[:-1]) + " and " + names[-1]
        return self.thing(things[0])

    def noun(self, name: str) -> str:
        synonyms = self._palette.synonyms.get(name, ())
        if synonyms and not self._plain and self._rng.random() < SYNONYM:
            return self.one_of(*synonyms)
        return name

    def thing(self, thing: Thing) -> str:
        if thing.hybrid_of:
            return self._hybrid(*thing.hybrid_of, thing.splice)
        said = with_article(self._adjectives(thing) + self.noun(thing.noun))
        if thing.stilts:
            return f"{said} {self.one_of(*STANDING)}"
        if thing.wearing:
            return f"{said} {self.one_of(*WORN)} {with_article(thing.wearing)}"
        return said

    def _adjectives(self, thing: Thing) -> str:
        size = self.one_of(*SIZES[thing.size]) if thing.size else ""
        return "".join(f"{word} " for word in (size, thing.tint) if word)

    def _several(self, things: tuple[Thing, ...]) -> str:
        name = self.noun(things[0].noun)
        many = self._palette.plurals[name] if name in self._palette.plurals else plural(name)
        number = NUMBERS[len(things)]
        return f"{number} {things[0].tint} {many}" if things[0].tint else f"{number} {many}"

    def _two(self, scene: Scene) -> str:
        first, second = (self.thing(thing) for thing in scene.things)
        if not scene.relation or (not self._plain and self._rng.random() < 0.15):
            return f"{second} and {first}" if scene.relation in {"right of", "below"} else f"{first} and {second}"
        plainly = f"{first} {self.one_of(*PLACES[scene.relation])} {second}"
        if scene.relation == "next to":
            return plainly
        turned = f"{second} {self.one_of(*PLACES[TURNED[scene.relation]])} {first}"
        if scene.relation not in {"left of", "right of"}:
            return self.one_of(plainly, plainly, turned)
        left, right = (first, second) if scene.relation == "left of" else (second, first)
        return self.one_of(plainly, plainly, turned, f"{left} on the left and {right} on the right")

    def _hybrid(self, upper: str, lower: str, splice: str) -> str:
        """The upper or left part is named first; halves side by side are called halves, the others are not."""
        first, second = self.noun(upper), self.noun(lower)
        if splice == "side":
            return self.one_of(
                f"half {first} half {second}",
                f"half {with_article(first)} and half {with_article(second)}",
                f"half {first}, half {second}",
            )
        return self.one_of(
            with_article(f"{first}-{second} hybrid"),
            f"a hybrid of {with_article(first)} and {with_article(second)}",
            f"{with_article(first)} crossed with {with_article(second)}",
            f"a cross between {with_article(first)} and {with_article(second)}",
        )
