"""From a scene to pixels: every look is made once at full size, shrunk once for each size, then only pasted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unspeckle.corpus.emoji.accessories import crossed, dressed, on_stilts
from unspeckle.corpus.emoji.nouns import Face
from unspeckle.corpus.emoji.scenes import Scene, Thing
from unspeckle.corpus.emoji.sprites import Library, master
from unspeckle.corpus.emoji.tints import BACKGROUNDS, tinted

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; x1 and y1 lie just outside

BRIGHTNESS, GRADIENT = 10.0, 12.0  # how far backgrounds vary, in 255ths


@dataclass(frozen=True)
class Look:
    """All of a thing but its place and size."""

    noun: str
    tint: str
    wearing: str
    stilts: bool
    hybrid_of: tuple[str, str] | None
    splice: str


class Painter:
    """Draws scenes of `size` × `size` pixels from a library."""

    def __init__(self, library: Library, size: int) -> None:
        self._library, self._size = library, size
        self._whole = lru_cache(maxsize=1024)(self._make)
        self._cutout = lru_cache(maxsize=16384)(self._shrink)

    def paint(self, scene: Scene) -> tuple[NDArray[np.uint8], list[Box]]:
        """The picture (size, size, 3) and each thing's box."""
        canvas = self._background(scene)
        boxes = []
        for thing in scene.things:
            alpha, colour = self._cutout(_look(thing), round(thing.side * self._size))
            height, width = alpha.shape[:2]
            x0 = min(max(0, round(thing.x * self._size - width / 2)), self._size - width)
            y0 = round(thing.y * self._size - height / 2)
            if thing.stilts:  # the feet stand on the lower edge of the thing's square
                y0 = round((thing.y + thing.side / 2) * self._size) - height
            y0 = min(max(0, y0), self._size - height)
            patch = canvas[y0 : y0 + height, x0 : x0 + width]
            patch *= 1 - alpha
            patch += colour
            boxes.append((x0, y0, x0 + width, y0 + height))
        return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), boxes

    def _background(self, scene: Scene) -> NDArray[np.float32]:
        colour = np.array(BACKGROUNDS[scene.background], dtype=np.float32)
        if scene.background == "white":
            return np.full((self._size, self._size, 3), 255, dtype=np.float32)
        slope = np.linspace(-0.5, 0.5, self._size, dtype=np.float32) * np.float32(scene.glow[1] * GRADIENT)
        column = colour + np.float32(scene.glow[0] * BRIGHTNESS) + slope[:, None]
        return np.repeat(column[:, None, :], self._size, axis=1)

    def _shrink(self, look: Look, side: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Alpha (h, w, 1) in 0 to 1 and premultiplied colour (h, w, 3) in 0 to 255, the longer side `side` px."""
        whole = self._whole(look)
        scale = side / max(whole.size)
        size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
        small = np.asarray(whole.convert("RGBa").resize(size, Image.Resampling.LANCZOS)).astype(np.float32)
        alpha = small[..., 3:] / np.float32(255)
        return alpha, np.minimum(small[..., :3], small[..., 3:])

    def _make(self, look: Look) -> Image.Image:
        if look.hybrid_of:
            first, second = (self._library.sprites[noun] for noun in look.hybrid_of)
            one, other = (sprite.noun.face or Face(0.4, 0.2, 0.1, 0.5) for sprite in (first, second))
            return master(crossed(first.picture, one, second.picture, other, look.splice))
        sprite = self._library.sprites[look.noun]
        picture = tinted(sprite.picture, look.tint) if look.tint else sprite.picture
        if look.wearing and sprite.noun.face:
            picture = dressed(picture, sprite.noun.face, look.wearing, self._library.garments[look.wearing])
        return on_stilts(picture) if look.stilts else picture


def _look(thing: Thing) -> Look:
    return Look(thing.noun, thing.tint, thing.wearing, thing.stilts, thing.hybrid_of, thing.splice)
