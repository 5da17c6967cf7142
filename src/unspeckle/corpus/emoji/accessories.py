"""What is done to a sprite before it is placed in a scene: it gets a garment or stilts, or becomes a hybrid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from unspeckle.corpus.emoji.nouns import Face

PremultipliedPixels = NDArray[np.float64]
"""(H, W, 4), RGB multiplied by alpha, then alpha, from 0 to 1."""

WOOD, WOOD_EDGE = (193, 134, 72, 255), (92, 56, 24, 255)
SEAM_BLEND = 0.07
"""Half the width of a hybrid's blended seam, as a fraction of its height."""


def add_garment(image: Image.Image, face: Face, garment: str, garment_image: Image.Image) -> Image.Image:
    """A front-facing face with a garment in its place; the canvas grows if the garment reaches beyond it."""
    width, height = image.size
    x, y, garment_width = 0.5, 0.0, 0.0
    if garment == "sunglasses":
        garment_width = max(0.56 * width, 2 * face.eye_offset_x * width / 0.47)
    elif garment == "bow":
        garment_width = 0.44 * width
    else:
        garment_width = (0.62 if garment == "top hat" else 0.56) * width
    garment_image = _resize(garment_image, garment_width / garment_image.width)
    if garment == "sunglasses":
        y = face.eye_y * height - garment_image.height * 0.45
    elif garment == "bow":
        x, y = face.bow_x, (face.hat_y - 0.1) * height - garment_image.height * 0.5
    else:
        y = face.hat_y * height - garment_image.height * 0.93
    left, top = round(x * width - garment_image.width / 2), round(y)
    bounds = (
        min(0, left),
        min(0, top),
        max(width, left + garment_image.width),
        max(height, top + garment_image.height),
    )
    canvas = Image.new("RGBA", (bounds[2] - bounds[0], bounds[3] - bounds[1]))
    canvas.alpha_composite(image, (-bounds[0], -bounds[1]))
    canvas.alpha_composite(garment_image, (left - bounds[0], top - bounds[1]))
    return canvas


def add_stilts(image: Image.Image) -> Image.Image:
    """An image lifted onto two long poles, each with a footrest below the image and a foot on the ground."""
    image = _resize(image, 128 / max(image.size))
    width, height = image.size
    # The poles are drawn at this multiple of their resolution, then shrunk.
    supersampling = 4
    length = 128  # pixels from the footrest to the ground
    canvas_size = (max(width, 120), height + length - 6)
    poles = Image.new("RGBA", (canvas_size[0] * supersampling, canvas_size[1] * supersampling))
    draw = ImageDraw.Draw(poles)
    center_x, spread = canvas_size[0] / 2, 30
    top_xs = [center_x + side * spread * 0.80 for side in (-1, 1)]
    undersides = [_lowest_opaque_row(image, int(top_x - (canvas_size[0] - width) / 2)) for top_x in top_xs]
    # Both footrests are at one height; the poles reach up into the object.
    footrest_y = max(undersides)
    for side, top_x, underside in zip((-1, 1), top_xs, undersides, strict=True):
        foot_x = center_x + side * spread * 1.25
        _draw_bar(draw, (top_x, underside - 14), (foot_x, canvas_size[1] - 5), 9, supersampling)
        _draw_bar(draw, (foot_x - 9, canvas_size[1] - 5), (foot_x + 9, canvas_size[1] - 5), 9, supersampling)
        _draw_bar(draw, (top_x - 15, footrest_y + 3), (top_x + 15, footrest_y + 3), 9, supersampling)
    canvas = poles.convert("RGBa").resize(canvas_size, Image.Resampling.BOX).convert("RGBA")
    canvas.alpha_composite(image, ((canvas_size[0] - width) // 2, 0))
    return canvas


def _draw_bar(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    thickness: float,
    supersampling: int,
) -> None:
    points = [(start[0] * supersampling, start[1] * supersampling), (end[0] * supersampling, end[1] * supersampling)]
    for color, line_width in ((WOOD_EDGE, thickness + 2), (WOOD, thickness - 2)):
        radius = line_width * supersampling / 2
        draw.line(points, fill=color, width=round(line_width * supersampling))
        for x, y in points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _lowest_opaque_row(image: Image.Image, column: int) -> int:
    """The lowest opaque row of an image near a column."""
    alpha = np.asarray(image.getchannel("A"))[:, max(0, column - 6) : column + 7]
    rows = np.flatnonzero((alpha > 100).any(1))
    return int(rows[-1]) if len(rows) else image.height - 1


def make_hybrid(
    first: Image.Image, first_face: Face, second: Image.Image, second_face: Face, splice: str
) -> Image.Image:
    """Two faces joined into one.

    splice: "top" puts the first's eyes and ears on the second's mouth, "side" joins a left half and a right half.

    The second is scaled so that both outlines meet at the seam, and the seam is blended smoothly.
    """
    if splice == "top":
        return _join_top_and_bottom(
            _to_premultiplied(first), first_face.seam_y or 0.5, second, second_face.seam_y or 0.5
        )
    return _join_left_and_right(_to_premultiplied(first), first_face, second, second_face)


def _join_top_and_bottom(
    upper: PremultipliedPixels, upper_seam: float, lower_image: Image.Image, lower_seam: float
) -> Image.Image:
    upper_cut = round(upper_seam * len(upper))
    upper_width, upper_center = _outline_width(upper, upper_cut)
    lower_width, _ = _outline_width(_to_premultiplied(lower_image), round(lower_seam * lower_image.height))
    lower = _to_premultiplied(_resize(lower_image, min(1.5, max(0.6, upper_width / max(lower_width, 1)))))
    lower_cut = round(lower_seam * len(lower))
    _, lower_center = _outline_width(lower, lower_cut)
    height = upper_cut + len(lower) - lower_cut
    half_width = max(upper_center, upper.shape[1] - upper_center, lower_center, lower.shape[1] - lower_center)
    upper_canvas, lower_canvas = (np.zeros((height, round(2 * half_width), 4)) for _ in range(2))
    _paste_patch(upper_canvas, upper, 0, round(half_width - upper_center))
    _paste_patch(lower_canvas, lower, upper_cut - lower_cut, round(half_width - lower_center))
    seam_distance = (np.arange(height) - upper_cut) / (SEAM_BLEND * height)
    lower_weight = _smoothstep(seam_distance)[:, None, None]
    return _to_image(upper_canvas * (1 - lower_weight) + lower_canvas * lower_weight)


def _join_left_and_right(
    left: PremultipliedPixels, left_face: Face, right_image: Image.Image, right_face: Face
) -> Image.Image:
    left_span, right_span = _outline_span(left), _outline_span(_to_premultiplied(right_image))
    right = _to_premultiplied(_resize(right_image, min(1.5, max(0.6, left_span[2] / max(right_span[2], 1)))))
    right_span = _outline_span(right)
    top, span_tops = max(left_span[0], right_span[0]), (left_span[0], right_span[0])
    height = top + max(len(left) - left_span[0], len(right) - right_span[0])
    half_width = max(left.shape[1], right.shape[1]) / 2
    left_canvas, right_canvas = (np.zeros((height, round(2 * half_width), 4)) for _ in range(2))
    _paste_patch(left_canvas, left, top - span_tops[0], round(half_width - left.shape[1] / 2))
    _paste_patch(right_canvas, right, top - span_tops[1], round(half_width - right.shape[1] / 2))
    right_weight = _smoothstep(
        (np.arange(left_canvas.shape[1]) - half_width) / (0.5 * SEAM_BLEND * left_canvas.shape[1])
    )[None, :, None]
    return _to_image(left_canvas * (1 - right_weight) + right_canvas * right_weight)


def _smoothstep(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 below -1, 1 above 1, and a smooth transition between (3u² - 2u³)."""
    u = np.clip((x + 1) / 2, 0, 1)
    return np.asarray(u * u * (3 - 2 * u))


def _outline_width(pixels: PremultipliedPixels, row: int) -> tuple[float, float]:
    """The width of the solid outline near a row, and its center."""
    solid = np.flatnonzero(pixels[max(0, row - 2) : row + 3, :, 3].mean(0) > 0.5)
    if len(solid) == 0:
        return float(pixels.shape[1]), pixels.shape[1] / 2
    return float(solid[-1] + 1 - solid[0]), (solid[-1] + 1 + solid[0]) / 2


def _outline_span(pixels: PremultipliedPixels) -> tuple[int, int, float]:
    """Top, bottom and height of the solid outline along the center column."""
    middle = pixels.shape[1] // 2
    solid = np.flatnonzero(pixels[:, middle - 2 : middle + 3, 3].mean(1) > 0.5)
    if len(solid) == 0:
        return 0, len(pixels), float(len(pixels))
    return int(solid[0]), int(solid[-1]) + 1, float(solid[-1] + 1 - solid[0])


def _paste_patch(canvas: PremultipliedPixels, patch: PremultipliedPixels, top: int, left: int) -> None:
    y, x = max(0, top), max(0, left)
    patch = patch[y - top :, x - left :][: canvas.shape[0] - y, : canvas.shape[1] - x]
    canvas[y : y + patch.shape[0], x : x + patch.shape[1]] = patch


def _resize(image: Image.Image, scale: float) -> Image.Image:
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")


def _to_premultiplied(image: Image.Image) -> PremultipliedPixels:
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64) / 255
    return np.dstack([rgba[..., :3] * rgba[..., 3:], rgba[..., 3]])


def _to_image(pixels: PremultipliedPixels) -> Image.Image:
    color = pixels[..., :3] / np.maximum(pixels[..., 3:], 1e-6)
    rgba = np.dstack([np.clip(color, 0, 1), pixels[..., 3]])
    return Image.fromarray((rgba * 255).round().astype(np.uint8), "RGBA")
