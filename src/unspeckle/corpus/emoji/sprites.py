"""The sprites of a corpus: a named image with alpha for each of its nouns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unspeckle.corpus.emoji.nouns import GARMENT_GLYPHS, Noun
from unspeckle.corpus.emoji.sprite_sources import EmojiFont, SpriteFolder, SpriteSource
from unspeckle.corpus.emoji.tints import color_shares
from unspeckle.errors import InputError


@dataclass(frozen=True)
class Sprite:
    """A noun and its image."""

    noun: Noun
    image: Image.Image
    """RGBA with straight alpha, trimmed, its longer side `SPRITE_SIZE` pixels."""
    color_shares: dict[str, float]
    """By color name, the share of the opaque area that has it."""


@dataclass(frozen=True)
class SpriteLibrary:
    """The sprites that scenes are painted with."""

    sprites: dict[str, Sprite]
    """By noun."""
    garments: dict[str, Image.Image]
    """What faces can wear, by name."""
    source: str
    """A font's file name, or a folder's absolute path."""

    @property
    def nouns(self) -> list[str]:
        return list(self.sprites)


def open_sprite_library(nouns: Sequence[str] | None, folder: Path | None) -> SpriteLibrary:
    """Load sprites from a folder, or from the system's color-emoji font if `folder` is None.

    nouns: names or synonyms; ("all",) for all clean glyphs; None for the curated nouns, or for all images in a folder
        of plain name.png files.

    Raises InputError for an unknown noun, a missing font or an unusable folder.
    """
    source: SpriteSource = EmojiFont.find_system_font() if folder is None else SpriteFolder(folder)
    noun_by_name = {noun.name: noun for noun in source.available_nouns()}
    wants_all = nouns is not None and [word.lower() for word in nouns] == ["all"]
    if nouns is None:
        chosen = source.default_nouns()
    else:
        chosen = list(noun_by_name.values()) if wants_all else _choose_nouns(nouns, noun_by_name)
    sprites = {}
    for noun in chosen:
        image = source.load_image(noun.name, noun.glyph)
        if image is not None:
            sprites[noun.name] = Sprite(noun, image, color_shares(image))
        elif nouns is not None and not wants_all:
            raise InputError(f": {source.name} has no image of {noun.name!r}; leave it out", "nouns")
    if not sprites:
        raise InputError(f": {source.name} has an image of none of the nouns; choose others", "nouns")
    garments = {name: source.load_image(name, glyph) for name, glyph in GARMENT_GLYPHS.items()}
    return SpriteLibrary(sprites, {name: image for name, image in garments.items() if image is not None}, source.name)


def _choose_nouns(words: Iterable[str], noun_by_name: dict[str, Noun]) -> list[Noun]:
    """The nouns whose names or synonyms are given, each once."""
    synonyms = {synonym: noun for noun in noun_by_name.values() for synonym in noun.synonyms}
    chosen: dict[str, Noun] = {}
    for word in words:
        name = " ".join(word.lower().split())
        noun = noun_by_name.get(name) or synonyms.get(name)
        if noun is None:
            suggestions = difflib.get_close_matches(name, [*noun_by_name, *synonyms], n=3, cutoff=0.6)
            hint = f"the nouns are {', '.join(list(noun_by_name)[:8])}, …"
            if suggestions:
                hint = f"did you mean {', '.join(suggestions)}?"
            raise InputError(f": there is no {word!r}; {hint}", "nouns")
        chosen[noun.name] = noun
    return list(chosen.values())
