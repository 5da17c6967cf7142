"""What is done to a sprite before it stands in a scene: dressed, put on stilts, crossed with another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from unspeckle.corpus.emoji.nouns import Face

Pixels = NDArray[np.float64]  # (H, W, 4) premultiplied, 0 to 1

WOOD, WOOD_EDGE = (193, 134, 72, 255), (92, 56, 24, 255)
BLEND = 0.07  # half the height of a hybrid's seam, as a share of its height


def dressed(picture: Image.Image, face: Face, garment: str, cloth: Image.Image) -> Image.Image:
    """A front-facing face with a garment at its place; the canvas grows where the garment reaches beyond."""
    width, height = picture.size
    x, y, breadth = 0.5, 0.0, 0.0
    if garment == "sunglasses":
        breadth = max(0.56 * width, 2 * face.apart * width / 0.47)
    elif garment == "bow":
        breadth = 0.44 * width
    else:
        breadth = (0.62 if garment == "top hat" else 0.56) * width
    cloth = _resized(cloth, breadth / cloth.width)
    if garment == "sunglasses":
        y = face.eyes * height - cloth.height * 0.45
    elif garment == "bow":
        x, y = face.ear, (face.brow - 0.1) * height - cloth.height * 0.5
    else:
        y = face.brow * height - cloth.height * 0.93
    left, top = round(x * width - cloth.width / 2), round(y)
    over = (min(0, left), min(0, top), max(width, left + cloth.width), max(height, top + cloth.height))
    canvas = Image.new("RGBA", (over[2] - over[0], over[3] - over[1]))
    canvas.alpha_composite(picture, (-over[0], -over[1]))
    canvas.alpha_composite(cloth, (left - over[0], top - over[1]))
    return canvas


def on_stilts(picture: Image.Image) -> Image.Image:
    """A picture lifted onto two long poles, each with a footrest under it and a foot on the ground."""
    picture = _resized(picture, 128 / max(picture.size))
    width, height = picture.size
    fine = 4  # the poles are drawn this much finer, then shrunk
    length = 128  # from the footrest to the ground
    full = (max(width, 120), height + length - 6)
    poles = Image.new("RGBA", (full[0] * fine, full[1] * fine))
    pen = ImageDraw.Draw(poles)
    middle, spread = full[0] / 2, 30
    tops = [middle + side * spread * 0.80 for side in (-1, 1)]
    undersides = [_underside(picture, int(top - (full[0] - width) / 2)) for top in tops]
    rest = max(undersides)  # both footrests at one height; the poles reach up into the object
    for side, top_x, underside in zip((-1, 1), tops, undersides, strict=True):
        foot_x = middle + side * spread * 1.25
        _bar(pen, (top_x, underside - 14), (foot_x, full[1] - 5), 9, fine)
        _bar(pen, (foot_x - 9, full[1] - 5), (foot_x + 9, full[1] - 5), 9, fine)
        _bar(pen, (top_x - 15, rest + 3), (top_x + 15, rest + 3), 9, fine)
    canvas = poles.convert("RGBa").resize(full, Image.Resampling.BOX).convert("RGBA")
    canvas.alpha_composite(picture, ((full[0] - width) // 2, 0))
    return canvas


def _bar(pen: Any, start: tuple[float, float], end: tuple[float, float], thickness: float, fine: int) -> None:
    ends = [(start[0] * fine, start[1] * fine), (end[0] * fine, end[1] * fine)]
    for colour, stroke in ((WOOD_EDGE, thickness + 2), (WOOD, thickness - 2)):
        radius = stroke * fine / 2
        pen.line(ends, fill=colour, width=round(stroke * fine))
        for x, y in ends:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _underside(picture: Image.Image, column: int) -> int:
    """The lowest opaque row of a picture near a column."""
    alpha = np.asarray(picture.getchannel("A"))[:, max(0, column - 6) : column + 7]
    rows = np.flatnonzero((alpha > 100).any(1))
    return int(rows[-1]) if len(rows) else picture.height - 1


def crossed(first: Image.Image, one: Face, second: Image.Image, other: Face, splice: str) -> Image.Image:
    """Two faces as one. "top": the first's eyes and ears on the second's mouth; "side": left and right halves.

    The second is scaled so that both outlines meet at the seam, and the seam is blended smoothly.
    """
    if splice == "top":
        return _stacked(_pixels(first), one.seam or 0.5, second, other.seam or 0.5)
    return _halved(_pixels(first), one, second, other)


def _stacked(upper: Pixels, upper_seam: float, second: Image.Image, lower_seam: float) -> Image.Image:
    cut = round(upper_seam * len(upper))
    breadth, middle = _breadth(upper, cut)
    own, _ = _breadth(_pixels(second), round(lower_seam * second.height))
    lower = _pixels(_resized(second, min(1.5, max(0.6, breadth / max(own, 1)))))
    lower_cut = round(lower_seam * len(lower))
    _, lower_middle = _breadth(lower, lower_cut)
    height = cut + len(lower) - lower_cut
    half = max(middle, upper.shape[1] - middle, lower_middle, lower.shape[1] - lower_middle)
    above, below = (np.zeros((height, round(2 * half), 4)) for _ in range(2))
    _paste(above, upper, 0, round(half - middle))
    _paste(below, lower, cut - lower_cut, round(half - lower_middle))
    place = (np.arange(height) - cut) / (BLEND * height)
    share = _smooth(place)[:, None, None]
    return _image(above * (1 - share) + below * share)


def _halved(left: Pixels, one: Face, second: Image.Image, other: Face) -> Image.Image:
    mine, theirs = _span(left), _span(_pixels(second))
    right = _pixels(_resized(second, min(1.5, max(0.6, mine[2] / max(theirs[2], 1)))))
    theirs = _span(right)
    top, shift = max(mine[0], theirs[0]), (mine[0], theirs[0])
    height = top + max(len(left) - mine[0], len(right) - theirs[0])
    half = max(left.shape[1], right.shape[1]) / 2
    a, b = (np.zeros((height, round(2 * half), 4)) for _ in range(2))
    _paste(a, left, top - shift[0], round(half - left.shape[1] / 2))
    _paste(b, right, top - shift[1], round(half - right.shape[1] / 2))
    share = _smooth((np.arange(a.shape[1]) - half) / (0.5 * BLEND * a.shape[1]))[None, :, None]
    return _image(a * (1 - share) + b * share)


def _smooth(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 below −1, 1 above 1, a smooth step between."""
    u = np.clip((place + 1) / 2, 0, 1)
    return np.asarray(u * u * (3 - 2 * u))


def _breadth(pixels: Pixels, row: int) -> tuple[float, float]:
    """How wide the solid outline is near a row, and where its middle lies."""
    solid = np.flatnonzero(pixels[max(0, row - 2) : row + 3, :, 3].mean(0) > 0.5)
    if len(solid) == 0:
        return float(pixels.shape[1]), pixels.shape[1] / 2
    return float(solid[-1] + 1 - solid[0]), (solid[-1] + 1 + solid[0]) / 2


def _span(pixels: Pixels) -> tuple[int, int, float]:
    """Top, bottom and height of the solid outline along the middle column."""
    middle = pixels.shape[1] // 2
    solid = np.flatnonzero(pixels[:, middle - 2 : middle + 3, 3].mean(1) > 0.5)
    if len(solid) == 0:
        return 0, len(pixels), float(len(pixels))
    return int(solid[0]), int(solid[-1]) + 1, float(solid[-1] + 1 - solid[0])


def _paste(canvas: Pixels, patch: Pixels, top: int, left: int) -> None:
    y, x = max(0, top), max(0, left)
    patch = patch[y - top :, x - left :][: canvas.shape[0] - y, : canvas.shape[1] - x]
    canvas[y : y + patch.shape[0], x : x + patch.shape[1]] = patch


def _resized(picture: Image.Image, scale: float) -> Image.Image:
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")


def _pixels(picture: Image.Image) -> Pixels:
    straight = np.asarray(picture.convert("RGBA")).astype(np.float64) / 255
    return np.dstack([straight[..., :3] * straight[..., 3:], straight[..., 3]])


def _image(pixels: Pixels) -> Image.Image:
    colour = pixels[..., :3] / np.maximum(pixels[..., 3:], 1e-6)
    whole = np.dstack([np.clip(colour, 0, 1), pixels[..., 3]])
    return Image.fromarray((whole * 255).round().astype(np.uint8), "RGBA")
