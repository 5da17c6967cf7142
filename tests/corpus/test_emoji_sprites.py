"""What is done to sprites: tints that a person would name so, stilts, garments, hybrids of two faces."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from unspeckle.corpus.emoji.accessories import add_garment, add_stilts, make_hybrid
from unspeckle.corpus.emoji.nouns import Face
from unspeckle.corpus.emoji.sprite_sources import SPRITE_SIZE, trim_and_shrink
from unspeckle.corpus.emoji.tints import TINTS, color_shares, tint_image

FACE = Face(eye_y=0.4, eye_offset_x=0.2, hat_y=0.2, seam_y=0.5)


def disc(color: tuple[int, int, int], size: tuple[int, int] = (128, 128)) -> Image.Image:
    image = Image.new("RGBA", size)
    ImageDraw.Draw(image).ellipse((0, 0, size[0] - 1, size[1] - 1), fill=(*color, 255))
    return image


def shaded_disc(dark: tuple[int, int, int], main: tuple[int, int, int], light: tuple[int, int, int]) -> Image.Image:
    image = disc(main)
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 40, 50, 60), fill=(*dark, 255))
    draw.ellipse((70, 30, 95, 55), fill=(*light, 255))
    return image


@pytest.mark.parametrize("tint", TINTS)
@pytest.mark.parametrize("main", [(120, 190, 40), (245, 245, 245), (60, 60, 64), (200, 60, 40), (250, 200, 30)])
def test_a_tinted_image_has_the_color_of_the_tint_and_keeps_its_shading(tint: str, main: tuple[int, int, int]) -> None:
    image = shaded_disc((15, 15, 15), main, (255, 255, 255))
    tinted = tint_image(image, tint)
    shares = color_shares(tinted)
    assert shares[tint] > 0.7, shares
    assert np.array_equal(np.asarray(tinted)[..., 3], np.asarray(image)[..., 3])
    luminance = np.asarray(tinted.convert("L")).astype(int)
    # The dark eye is still darker than the skin.
    assert luminance[50, 40] < luminance[100, 64] - 25


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ((255, 0, 0), "red"),
        ((255, 128, 0), "orange"),
        ((255, 225, 0), "yellow"),
        ((0, 160, 0), "green"),
        ((0, 80, 255), "blue"),
        ((130, 0, 200), "purple"),
        ((255, 120, 200), "pink"),
        ((120, 70, 30), "brown"),
        ((255, 255, 255), "white"),
        ((128, 128, 128), "grey"),
        ((10, 10, 10), "black"),
    ],
)
def test_plain_colors_have_their_names(color: tuple[int, int, int], name: str) -> None:
    assert color_shares(disc(color))[name] == 1.0


def test_stilts_are_two_legs_on_the_ground_below_an_unchanged_object() -> None:
    image = add_stilts(disc((0, 80, 255)))
    solid = np.asarray(image)[..., 3] > 128
    height = image.height
    assert height > 1.8 * 128
    for row in range(round(0.65 * height), round(0.92 * height)):
        runs = np.flatnonzero(np.diff(np.concatenate([[0], solid[row].astype(int), [0]])))
        # Two legs are two runs of opaque pixels, transparent between.
        assert len(runs) == 4, row
    feet, knees = np.flatnonzero(solid[-6]), np.flatnonzero(solid[round(0.7 * height)])
    # The legs spread towards the ground.
    assert feet[0] < knees[0] and feet[-1] > knees[-1]
    blue = np.asarray(image)[64, image.width // 2]
    assert tuple(blue) == (0, 80, 255, 255)


def test_garments_are_in_their_places() -> None:
    face, garment_image = disc((0, 200, 0)), Image.new("RGBA", (100, 50), (255, 0, 0, 255))
    dressed = {
        name: np.asarray(add_garment(face, FACE, name, garment_image)).astype(int)
        for name in ("sunglasses", "top hat", "bow")
    }

    def garment_center(pixels: np.ndarray) -> tuple[float, float]:
        red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60)
        rows, columns = np.nonzero(red)
        return float(columns.mean()), float(rows.mean())

    x, y = garment_center(dressed["sunglasses"])
    assert abs(x - 64) < 2 and abs(y - 0.4 * 128) < 5 and dressed["sunglasses"].shape[:2] == (128, 128)
    growth = dressed["top hat"].shape[0] - 128
    x, y = garment_center(dressed["top hat"])
    assert growth > 0 and abs(x - dressed["top hat"].shape[1] / 2) < 2 and y < growth + 0.2 * 128
    assert garment_center(dressed["bow"])[0] > 0.7 * 128


@pytest.mark.parametrize("splice", ["top", "side"])
def test_a_hybrid_is_the_first_then_the_second_face_with_a_smooth_seam(splice: str) -> None:
    hybrid = np.asarray(make_hybrid(disc((250, 0, 0)), FACE, disc((0, 0, 250), (90, 90)), FACE, splice)).astype(int)
    line = hybrid[:, hybrid.shape[1] // 2] if splice == "top" else hybrid[hybrid.shape[0] // 2]
    red, blue = line[:, 0], line[:, 2]
    far = len(line) // 3
    assert (red[4:far] > 245).all() and (blue[4:far] < 5).all()
    assert (blue[-far:-4] > 245).all() and (red[-far:-4] < 5).all()
    steps = np.diff(red[4:-4])
    # It only decreases, and without a jump.
    assert (steps <= 0).all() and steps.min() > -60
    # The smaller face was enlarged to fit.
    assert abs(hybrid.shape[0] - 128) <= 4 and abs(hybrid.shape[1] - 128) <= 4


def test_a_sprite_is_trimmed_to_one_size_with_clean_edges() -> None:
    # There is a hidden color under full transparency.
    canvas = Image.new("RGBA", (700, 500), (255, 0, 255, 0))
    canvas.alpha_composite(disc((0, 200, 0), (300, 200)), (333, 111))
    sprite = trim_and_shrink(canvas)
    assert sprite.size == (SPRITE_SIZE, round(SPRITE_SIZE * 200 / 300))
    pixels = np.asarray(sprite).astype(int)
    visible = pixels[pixels[..., 3] > 20]
    # Nothing of the hidden color is in the edges.
    assert (visible[:, 0] < 8).all() and (visible[:, 2] < 8).all()
