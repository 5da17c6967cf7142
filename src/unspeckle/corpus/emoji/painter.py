"""From a scene to pixels. Each appearance is rendered once, resized once for each size, and then only pasted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unspeckle.corpus.emoji.accessories import add_garment, add_stilts, make_hybrid
from unspeckle.corpus.emoji.nouns import Face
from unspeckle.corpus.emoji.scenes import Scene, SceneObject
from unspeckle.corpus.emoji.sprite_sources import trim_and_shrink
from unspeckle.corpus.emoji.sprites import SpriteLibrary
from unspeckle.corpus.emoji.tints import BACKGROUNDS, tint_image

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels; x1 and y1 are just outside."""

BACKGROUND_BRIGHTNESS_RANGE = 10.0
"""By how much at most a background is brighter or darker than its color, in 255ths."""
BACKGROUND_GRADIENT_RANGE = 12.0
"""By how much at most its top differs from its bottom, in 255ths."""


@dataclass(frozen=True)
class ObjectAppearance:
    """Everything about an object but its position and size; see `SceneObject` for the fields."""

    noun: str
    tint: str
    wearing: str
    on_stilts: bool
    hybrid_of: tuple[str, str] | None
    splice: str


class ScenePainter:
    """Paints scenes of `image_size` × `image_size` pixels with the sprites of a library."""

    def __init__(self, sprite_library: SpriteLibrary, image_size: int) -> None:
        self._sprite_library, self._image_size = sprite_library, image_size
        self._sprite_image = lru_cache(maxsize=1024)(self._render_sprite)
        self._scaled_sprite = lru_cache(maxsize=16384)(self._scale_sprite)

    def paint(self, scene: Scene) -> tuple[NDArray[np.uint8], list[Box]]:
        """The image, uint8 (image_size, image_size, 3), and the box of each object."""
        canvas = self._paint_background(scene)
        boxes = []
        for obj in scene.objects:
            alpha, color = self._scaled_sprite(_appearance(obj), round(obj.side * self._image_size))
            height, width = alpha.shape[:2]
            x0 = min(max(0, round(obj.x * self._image_size - width / 2)), self._image_size - width)
            y0 = round(obj.y * self._image_size - height / 2)
            if obj.on_stilts:
                # The feet stand on the lower edge of the object's square.
                y0 = round((obj.y + obj.side / 2) * self._image_size) - height
            y0 = min(max(0, y0), self._image_size - height)
            patch = canvas[y0 : y0 + height, x0 : x0 + width]
            patch *= 1 - alpha
            patch += color
            boxes.append((x0, y0, x0 + width, y0 + height))
        return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), boxes

    def _paint_background(self, scene: Scene) -> NDArray[np.float32]:
        color = np.array(BACKGROUNDS[scene.background], dtype=np.float32)
        if scene.background == "white":
            return np.full((self._image_size, self._image_size, 3), 255, dtype=np.float32)
        brightness, gradient = scene.background_variation
        slope = np.linspace(-0.5, 0.5, self._image_size, dtype=np.float32)
        slope *= np.float32(gradient * BACKGROUND_GRADIENT_RANGE)
        column = color + np.float32(brightness * BACKGROUND_BRIGHTNESS_RANGE) + slope[:, None]  # (H, 3)
        return np.repeat(column[:, None, :], self._image_size, axis=1)

    def _scale_sprite(self, appearance: ObjectAppearance, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Alpha (h, w, 1) from 0 to 1 and premultiplied color (h, w, 3) from 0 to 255."""
        sprite_image = self._sprite_image(appearance)
        scale = side / max(sprite_image.size)
        size = (max(1, round(sprite_image.width * scale)), max(1, round(sprite_image.height * scale)))
        scaled = np.asarray(sprite_image.convert("RGBa").resize(size, Image.Resampling.LANCZOS)).astype(np.float32)
        alpha = scaled[..., 3:] / np.float32(255)
        return alpha, np.minimum(scaled[..., :3], scaled[..., 3:])

    def _render_sprite(self, appearance: ObjectAppearance) -> Image.Image:
        if appearance.hybrid_of:
            first, second = (self._sprite_library.sprites[noun] for noun in appearance.hybrid_of)
            first_face, second_face = (sprite.noun.face or Face(0.4, 0.2, 0.1, 0.5) for sprite in (first, second))
            return trim_and_shrink(make_hybrid(first.image, first_face, second.image, second_face, appearance.splice))
        sprite = self._sprite_library.sprites[appearance.noun]
        image = tint_image(sprite.image, appearance.tint) if appearance.tint else sprite.image
        if appearance.wearing and sprite.noun.face:
            garment_image = self._sprite_library.garments[appearance.wearing]
            image = add_garment(image, sprite.noun.face, appearance.wearing, garment_image)
        return add_stilts(image) if appearance.on_stilts else image


def _appearance(obj: SceneObject) -> ObjectAppearance:
    return ObjectAppearance(obj.noun, obj.tint, obj.wearing, obj.on_stilts, obj.hybrid_of, obj.splice)
