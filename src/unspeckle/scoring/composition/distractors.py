"""Distractors: sprites that show nothing with a name, which the detector must learn to ignore."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from unspeckle.corpus.emoji.nouns import Noun
from unspeckle.corpus.emoji.sprite_sources import SPRITE_SIZE, trim_and_shrink
from unspeckle.corpus.emoji.sprites import Sprite, SpriteLibrary
from unspeckle.corpus.emoji.tints import color_shares

DISTRACTOR_CATEGORY = "distractor"


def make_distractor(rng: Random, library: SpriteLibrary, name: str) -> Sprite:
    """A sprite of that name made of the library's: scrambled, wrongly joined, blended, blurred, cut, or a mere blob."""
    image = trim_and_shrink(_MAKERS[int(rng.random() * len(_MAKERS))](rng, library))
    return Sprite(Noun(name, "", DISTRACTOR_CATEGORY), image, color_shares(image))


def _random_image(rng: Random, library: SpriteLibrary, allow_faces: bool = True) -> Image.Image:
    """Some noun's sprite, stretched to a square.

    The second part of a mixture must not be a face: two joined faces would be a true hybrid.
    """
    sprites = [s for s in library.sprites.values() if s.noun.category != DISTRACTOR_CATEGORY]
    sprites = [s for s in sprites if allow_faces or s.noun.face is None] or sprites
    return sprites[int(rng.random() * len(sprites))].image.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.BICUBIC)


def _scramble_tiles(rng: Random, library: SpriteLibrary) -> Image.Image:
    """A sprite cut into tiles that change places."""
    image, tiles_per_side = _random_image(rng, library), 2 + int(rng.random() * 3)
    tile_size = -(-SPRITE_SIZE // tiles_per_side)
    positions = [(x, y) for x in range(tiles_per_side) for y in range(tiles_per_side)]
    new_positions = sorted(positions, key=lambda _: rng.random())
    if sum(a == b for a, b in zip(positions, new_positions, strict=True)) * 2 > len(positions) - 2:
        new_positions = positions[1:] + positions[:1]
    scrambled = Image.new("RGBA", (SPRITE_SIZE, SPRITE_SIZE))
    for (x, y), (u, v) in zip(positions, new_positions, strict=True):
        tile = image.crop((x * tile_size, y * tile_size, (x + 1) * tile_size, (y + 1) * tile_size))
        scrambled.paste(tile, (u * tile_size, v * tile_size))
    return scrambled


def _join_halves(rng: Random, library: SpriteLibrary) -> Image.Image:
    """Half of one sprite next to half of another."""
    first, second = _random_image(rng, library), _random_image(rng, library, allow_faces=False)
    if rng.random() < 0.5:
        first, second = second, first
    cut = round(SPRITE_SIZE * (0.4 + 0.2 * rng.random()))
    corner = (0, cut) if rng.random() < 0.5 else (cut, 0)
    first = first.copy()
    first.paste(second.crop((*corner, SPRITE_SIZE, SPRITE_SIZE)), corner)
    return first


def _blend_two(rng: Random, library: SpriteLibrary) -> Image.Image:
    """Two sprites on top of each other."""
    return Image.blend(
        _random_image(rng, library), _random_image(rng, library, allow_faces=False), 0.4 + 0.2 * rng.random()
    )


def _blur_image(rng: Random, library: SpriteLibrary) -> Image.Image:
    """A sprite that is blurred beyond recognition."""
    image = _random_image(rng, library).convert("RGBa")
    return image.filter(ImageFilter.GaussianBlur(18 + 14 * rng.random())).convert("RGBA")


def _cut_piece(rng: Random, library: SpriteLibrary) -> Image.Image:
    """A quarter of a sprite or less."""
    side = round(SPRITE_SIZE * (0.35 + 0.15 * rng.random()))
    x, y = (round((SPRITE_SIZE - side) * rng.random()) for _ in range(2))
    piece = _random_image(rng, library).crop((x, y, x + side, y + side))
    return piece if piece.getchannel("A").getbbox() else _paint_blob(rng, library)


def _paint_blob(rng: Random, library: SpriteLibrary) -> Image.Image:
    """Patches of color within a soft outline."""
    np_rng = np.random.default_rng(int(rng.random() * 2**32))
    cells = 2 + int(rng.random() * 4)
    cell_colors = np_rng.integers(0, 256, (1, 1, 3)) + np_rng.normal(0, 50, (cells, cells, 3))
    color_image = Image.fromarray(cell_colors.clip(0, 255).astype(np.uint8)).resize(
        (SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.BICUBIC
    )
    y, x = np.mgrid[-1 : 1 : SPRITE_SIZE * 1j, -1 : 1 : SPRITE_SIZE * 1j]
    angles = np.arctan2(y, x)[..., None] * np.arange(2, 6) + np_rng.uniform(0, 6.28, 4)
    radius = 0.8 + (np.cos(angles) * np_rng.normal(0, 0.07, 4)).sum(-1)
    mask = 255 * (np.hypot(x, y) < radius)
    image = color_image.convert("RGBA")
    image.putalpha(Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.GaussianBlur(3)))
    if rng.random() < 0.5:  # with the outline of a sprite
        alpha = _random_image(rng, library).getchannel("A")
        image.putalpha(ImageChops.lighter(alpha, image.getchannel("A").point(lambda v: v // 8)))
    return image


_MAKERS: tuple[Callable[[Random, SpriteLibrary], Image.Image], ...] = (
    _scramble_tiles,
    _join_halves,
    _blend_two,
    _blur_image,
    _cut_piece,
    _paint_blob,
)
