"""Pictures that are nothing with a name: what a detector must say nothing about."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from unspeckle.corpus.emoji.nouns import Noun
from unspeckle.corpus.emoji.sprites import MASTER, Library, Sprite, master
from unspeckle.corpus.emoji.tints import own_colours

CATEGORY = "decoy"


def decoy(rng: Random, library: Library, name: str) -> Sprite:
    """A sprite called `name` made of the library's pictures: torn to tiles, joined wrongly, smeared, a mere blob."""
    picture = master(_KINDS[int(rng.random() * len(_KINDS))](rng, library))
    return Sprite(Noun(name, "", CATEGORY), picture, own_colours(picture))


def _any(rng: Random, library: Library, faces: bool = True) -> Image.Image:
    """Some noun's picture, filling a square; without faces, as two of them joined would be a true hybrid."""
    sprites = [s for s in library.sprites.values() if s.noun.category != CATEGORY]
    sprites = [s for s in sprites if faces or s.noun.face is None] or sprites
    return sprites[int(rng.random() * len(sprites))].picture.resize((MASTER, MASTER), Image.Resampling.BICUBIC)


def _scrambled(rng: Random, library: Library) -> Image.Image:
    picture, parts = _any(rng, library), 2 + int(rng.random() * 3)
    side = -(-MASTER // parts)
    places = [(x, y) for x in range(parts) for y in range(parts)]
    moved = sorted(places, key=lambda _: rng.random())
    if sum(a == b for a, b in zip(places, moved, strict=True)) * 2 > len(places) - 2:
        moved = places[1:] + places[:1]
    out = Image.new("RGBA", (MASTER, MASTER))
    for (x, y), (u, v) in zip(places, moved, strict=True):
        out.paste(picture.crop((x * side, y * side, (x + 1) * side, (y + 1) * side)), (u * side, v * side))
    return out


def _chimera(rng: Random, library: Library) -> Image.Image:
    """A half of one thing on a half of another."""
    one, other = _any(rng, library), _any(rng, library, faces=False)
    if rng.random() < 0.5:
        one, other = other, one
    cut = round(MASTER * (0.4 + 0.2 * rng.random()))
    corner = (0, cut) if rng.random() < 0.5 else (cut, 0)
    one = one.copy()
    one.paste(other.crop((*corner, MASTER, MASTER)), corner)
    return one


def _blend(rng: Random, library: Library) -> Image.Image:
    return Image.blend(_any(rng, library), _any(rng, library, faces=False), 0.4 + 0.2 * rng.random())


def _smeared(rng: Random, library: Library) -> Image.Image:
    picture = _any(rng, library).convert("RGBa")
    return picture.filter(ImageFilter.GaussianBlur(18 + 14 * rng.random())).convert("RGBA")


def _piece(rng: Random, library: Library) -> Image.Image:
    """A quarter or less of a thing."""
    side = round(MASTER * (0.35 + 0.15 * rng.random()))
    x, y = (round((MASTER - side) * rng.random()) for _ in range(2))
    piece = _any(rng, library).crop((x, y, x + side, y + side))
    return piece if piece.getchannel("A").getbbox() else _blob(rng, library)


def _blob(rng: Random, library: Library) -> Image.Image:
    """Patches of colour within a soft outline."""
    dice = np.random.default_rng(int(rng.random() * 2**32))
    cells = 2 + int(rng.random() * 4)
    base = dice.integers(0, 256, (1, 1, 3)) + dice.normal(0, 50, (cells, cells, 3))
    colour = Image.fromarray(base.clip(0, 255).astype(np.uint8)).resize((MASTER, MASTER), Image.Resampling.BICUBIC)
    y, x = np.mgrid[-1 : 1 : MASTER * 1j, -1 : 1 : MASTER * 1j]
    turns = np.arctan2(y, x)[..., None] * np.arange(2, 6) + dice.uniform(0, 6.28, 4)
    reach = 0.8 + (np.cos(turns) * dice.normal(0, 0.07, 4)).sum(-1)
    inside = 255 * (np.hypot(x, y) < reach)
    picture = colour.convert("RGBA")
    picture.putalpha(Image.fromarray(inside.astype(np.uint8)).filter(ImageFilter.GaussianBlur(3)))
    if rng.random() < 0.5:  # with the outline of a thing
        outline = _any(rng, library).getchannel("A")
        picture.putalpha(ImageChops.lighter(outline, picture.getchannel("A").point(lambda v: v // 8)))
    return picture


_KINDS: tuple[Callable[[Random, Library], Image.Image], ...] = (_scrambled, _chimera, _blend, _smeared, _piece, _blob)
