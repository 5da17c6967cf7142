"""What is done to sprites: tints that a person names, stilts, things worn, two faces in one."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from unspeckle.corpus.emoji.accessories import add_garment, add_stilts, make_hybrid
from unspeckle.corpus.emoji.nouns import Face
from unspeckle.corpus.emoji.sprites import SPRITE_SIZE, trim_and_shrink
from unspeckle.corpus.emoji.tints import TINTS, color_shares, tint_image

FACE = Face(eye_y=0.4, eye_offset_x=0.2, hat_y=0.2, seam_y=0.5)


def disc(colour: tuple[int, int, int], size: tuple[int, int] = (128, 128)) -> Image.Image:
    picture = Image.new("RGBA", size)
    ImageDraw.Draw(picture).ellipse((0, 0, size[0] - 1, size[1] - 1), fill=(*colour, 255))
    return picture


def shaded(dark: tuple[int, int, int], main: tuple[int, int, int], light: tuple[int, int, int]) -> Image.Image:
    picture = disc(main)
    pen = ImageDraw.Draw(picture)
    pen.ellipse((30, 40, 50, 60), fill=(*dark, 255))
    pen.ellipse((70, 30, 95, 55), fill=(*light, 255))
    return picture


@pytest.mark.parametrize("tint", TINTS)
@pytest.mark.parametrize("main", [(120, 190, 40), (245, 245, 245), (60, 60, 64), (200, 60, 40), (250, 200, 30)])
def test_a_tinted_picture_has_the_tints_name_and_keeps_its_drawing(tint: str, main: tuple[int, int, int]) -> None:
    picture = shaded((15, 15, 15), main, (255, 255, 255))
    recoloured = tint_image(picture, tint)
    colours = color_shares(recoloured)
    assert colours[tint] > 0.7, colours
    assert np.array_equal(np.asarray(recoloured)[..., 3], np.asarray(picture)[..., 3])
    grey = np.asarray(recoloured.convert("L")).astype(int)
    assert grey[50, 40] < grey[100, 64] - 25  # the dark eye is still darker than the skin


@pytest.mark.parametrize(
    ("colour", "name"),
    [((255, 0, 0), "red"), ((255, 128, 0), "orange"), ((255, 225, 0), "yellow"), ((0, 160, 0), "green"),
     ((0, 80, 255), "blue"), ((130, 0, 200), "purple"), ((255, 120, 200), "pink"), ((120, 70, 30), "brown"),
     ((255, 255, 255), "white"), ((128, 128, 128), "grey"), ((10, 10, 10), "black")],
)  # fmt: skip
def test_plain_colours_have_their_names(colour: tuple[int, int, int], name: str) -> None:
    assert color_shares(disc(colour))[name] == 1.0


def test_stilts_are_two_legs_on_the_ground_below_an_object_that_is_left_whole() -> None:
    picture = add_stilts(disc((0, 80, 255)))
    solid = np.asarray(picture)[..., 3] > 128
    height = picture.height
    assert height > 1.8 * 128
    for row in range(round(0.65 * height), round(0.92 * height)):
        runs = np.flatnonzero(np.diff(np.concatenate([[0], solid[row].astype(int), [0]])))
        assert len(runs) == 4, row  # two legs: two runs of opaque pixels, clear between
    feet, knees = np.flatnonzero(solid[-6]), np.flatnonzero(solid[round(0.7 * height)])
    assert feet[0] < knees[0] and feet[-1] > knees[-1]  # they spread
    blue = np.asarray(picture)[64, picture.width // 2]
    assert tuple(blue) == (0, 80, 255, 255)


def test_garments_sit_at_their_places() -> None:
    face, cloth = disc((0, 200, 0)), Image.new("RGBA", (100, 50), (255, 0, 0, 255))
    worn = {
        name: np.asarray(add_garment(face, FACE, name, cloth)).astype(int) for name in ("sunglasses", "top hat", "bow")
    }

    def middle(pixels: np.ndarray) -> tuple[float, float]:
        red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60)
        rows, columns = np.nonzero(red)
        return float(columns.mean()), float(rows.mean())

    x, y = middle(worn["sunglasses"])
    assert abs(x - 64) < 2 and abs(y - 0.4 * 128) < 5 and worn["sunglasses"].shape[:2] == (128, 128)
    grown = worn["top hat"].shape[0] - 128
    x, y = middle(worn["top hat"])
    assert grown > 0 and abs(x - worn["top hat"].shape[1] / 2) < 2 and y < grown + 0.2 * 128
    assert middle(worn["bow"])[0] > 0.7 * 128


@pytest.mark.parametrize("splice", ["top", "side"])
def test_a_hybrid_is_the_first_then_the_second_with_a_smooth_seam(splice: str) -> None:
    whole = np.asarray(make_hybrid(disc((250, 0, 0)), FACE, disc((0, 0, 250), (90, 90)), FACE, splice)).astype(int)
    line = whole[:, whole.shape[1] // 2] if splice == "top" else whole[whole.shape[0] // 2]
    red, blue = line[:, 0], line[:, 2]
    far = len(line) // 3
    assert (red[4:far] > 245).all() and (blue[4:far] < 5).all()
    assert (blue[-far:-4] > 245).all() and (red[-far:-4] < 5).all()
    between = np.diff(red[4:-4])
    assert (between <= 0).all() and between.min() > -60  # one way, no jump
    assert abs(whole.shape[0] - 128) <= 4 and abs(whole.shape[1] - 128) <= 4  # the smaller face grew to fit


def test_a_master_is_trimmed_and_of_one_size_with_clean_edges() -> None:
    canvas = Image.new("RGBA", (700, 500), (255, 0, 255, 0))  # a hidden colour under full transparency
    canvas.alpha_composite(disc((0, 200, 0), (300, 200)), (333, 111))
    small = trim_and_shrink(canvas)
    assert small.size == (SPRITE_SIZE, round(SPRITE_SIZE * 200 / 300))
    pixels = np.asarray(small).astype(int)
    visible = pixels[pixels[..., 3] > 20]
    assert (visible[:, 0] < 8).all() and (visible[:, 2] < 8).all()  # nothing of the hidden colour in the edges
