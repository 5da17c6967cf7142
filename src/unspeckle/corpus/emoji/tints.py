"""Named colors: which colors an image has, and how to recolor it so that a person names the new color."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RGB = tuple[int, int, int]
Floats = NDArray[np.float64]

TINTS: dict[str, tuple[RGB, RGB, RGB]] = {
    "red": ((70, 0, 0), (222, 30, 38), (255, 190, 180)),
    "orange": ((95, 35, 0), (250, 130, 15), (255, 218, 170)),
    "yellow": ((105, 75, 0), (252, 214, 20), (255, 250, 200)),
    "green": ((0, 50, 8), (42, 165, 60), (205, 245, 190)),
    "blue": ((0, 15, 85), (35, 105, 230), (195, 222, 255)),
    "purple": ((45, 0, 75), (140, 55, 200), (228, 200, 255)),
    "pink": ((110, 10, 65), (250, 115, 185), (255, 222, 240)),
    "brown": ((40, 18, 4), (135, 82, 44), (230, 205, 180)),
}
"""The colors in which objects are painted: a dark, a middle and a light shade, along which their luminance runs."""

BACKGROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "grey": (158, 160, 164),
    "black": (20, 20, 24),
    "red": (205, 52, 52),
    "orange": (244, 152, 66),
    "yellow": (250, 226, 110),
    "green": (104, 184, 108),
    "blue": (112, 176, 238),
    "purple": (158, 112, 206),
    "pink": (248, 178, 210),
    "brown": (142, 98, 64),
}
"""The colors of backgrounds."""

_HUE_RANGES = (
    ("red", -18, 13),
    ("orange", 13, 42),
    ("yellow", 42, 68),
    ("green", 68, 168),
    ("blue", 168, 252),
    ("purple", 252, 292),
    ("pink", 292, 342),
)
"""(color, lowest hue, highest hue) in degrees."""
_HUE_OVERLAP = 7
"""A hue within this many degrees of a boundary counts for the colors on both sides."""


def color_shares(image: Image.Image) -> dict[str, float]:
    """By color name, the share of the image's opaque area that has it. Areas between two colors count for both."""
    pixels = np.asarray(image.convert("RGBA").resize((48, 48), Image.Resampling.BOX)).reshape(-1, 4)
    pixels = pixels[pixels[:, 3] > 128]
    if len(pixels) == 0:
        return {}
    hue, saturation, value = _rgb_to_hsv(pixels[:, :3].astype(np.float64) / 255)
    black = value < 0.25
    pale = ~black & (saturation < 0.16)
    vivid = ~black & ~pale
    masks = {"black": black, "white": pale & (value > 0.82), "grey": pale & (value <= 0.9)}
    for name, low, high in _HUE_RANGES:
        in_range = (hue - (low - _HUE_OVERLAP)) % 360 <= (high - low + 2 * _HUE_OVERLAP)
        masks[name] = vivid & in_range
    warm = masks["red"] | masks["orange"]
    dark_warm = warm & (value < 0.72)
    masks["brown"] = dark_warm
    masks["red"] = masks["red"] & ~(dark_warm & (value < 0.6) & (saturation < 0.75))
    masks["orange"] = masks["orange"] & ~(dark_warm & (value < 0.6))
    pale_red = vivid & ((hue < 26) | (hue > 330)) & (saturation < 0.6) & (value > 0.75)
    masks["pink"] = masks["pink"] | pale_red
    return {name: float(mask.mean()) for name, mask in masks.items() if mask.mean() > 0.02}


def _rgb_to_hsv(rgb: Floats) -> tuple[Floats, Floats, Floats]:
    """(N, 3) from 0 to 1 -> hue in degrees, saturation and value from 0 to 1, each (N,)."""
    high, low = rgb.max(1), rgb.min(1)
    span = np.where(high > low, high - low, 1.0)
    red, green, blue = rgb.T
    hue = np.where(high == red, (green - blue) / span, np.where(high == green, 2 + (blue - red) / span, 0))
    hue = np.where((high == blue) & (high != red) & (high != green), 4 + (red - green) / span, hue)
    return (hue * 60) % 360, np.where(high > 0, (high - low) / np.maximum(high, 1e-9), 0.0), high


def tint_image(image: Image.Image, tint: str) -> Image.Image:
    """The image in one color: its luminance, stretched so that the median gets the middle shade of the tint."""
    pixels = np.asarray(image.convert("RGBA")).astype(np.float64)
    luminance = pixels[..., :3] @ np.array([0.299, 0.587, 0.114]) / 255
    opaque = pixels[..., 3] > 128
    middle = float(np.median(luminance[opaque])) if opaque.any() else 0.5
    low, high = min(0.1, middle - 0.25), max(0.95, middle + 0.25)
    shade_position = np.interp(luminance, [low, middle, high], [0.0, 0.5, 1.0])
    shades = np.array(TINTS[tint], dtype=np.float64)
    color = np.stack([np.interp(shade_position, [0.0, 0.5, 1.0], shades[:, channel]) for channel in range(3)], axis=-1)
    return Image.fromarray(np.dstack([color.round(), pixels[..., 3]]).astype(np.uint8), "RGBA")
