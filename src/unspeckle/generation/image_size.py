"""Sizes in pixels that a model can draw."""

import math
from typing import Any

from PIL import Image

from unspeckle.errors import InputError
from unspeckle.model import Model

MAX_PIXELS = 1 << 24  # pixels of one picture


def choose_size(
    model: Model, size: Any, image: Image.Image | None = None, mask: Image.Image | None = None
) -> tuple[int, int]:
    """(width, height): asked for, the card's, or the picture's own brought down to what fits; of one with over four
    times the pixels that the model learnt from, its shape with as many as those. Checks picture and mask too."""
    for name, picture in (("image", image), ("mask", mask)):
        if picture is not None and not (isinstance(picture, Image.Image) and min(picture.size) > 0):
            raise InputError(f"{name}: must be a picture of PIL")
    if mask is not None:
        if image is None:
            raise InputError("mask: there is no picture to paint in; give image as well")
        if mask.size != image.size:
            (wide, high), sides = mask.size, "{}x{}".format(*image.size)
            raise InputError(f"mask: is {wide}x{high}, the image {sides}; give one of the same size")
        if mask.convert("L").getextrema()[1] < 128:  # type: ignore[operator]
            raise InputError("mask: nothing in it is white, so there is nothing to paint; paint that white")
    if image is None or size is not None:
        return check_size(model, model.card.size if size is None else size)
    pixels, usual = math.prod(image.size), math.prod(model.card.size)
    shrink = math.sqrt(usual / pixels) if pixels > 4 * usual else 1.0
    unit, least = size_unit(model)
    wide, high = (max(least, int(side * shrink + 1e-6) // unit * unit) for side in image.size)
    return check_size(model, (wide, high))


def size_unit(model: Model) -> tuple[int, int]:
    """What a side in pixels must be a multiple of, and its least."""
    config: Any = model.network.config
    unit = int(config.factor) * model.autoencoder.downsampling_factor
    return unit, -(-16 // unit) * unit


def check_size(model: Model, size: Any, name: str = "size") -> tuple[int, int]:
    """(width, height) of one number for both or a pair, if the network can draw it; the InputError names the nearest
    size that it can."""
    unit, least = size_unit(model)
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, tuple | list) else ()
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        raise InputError(f"{name} {size!r}: must be a number of pixels or a pair of them, width first")
    near = [max(least, (side + unit // 2) // unit * unit) for side in sides]
    if near != list(sides):
        raise InputError(
            f"{name} {sides[0]}x{sides[1]}: sides must be multiples of {unit}, at least {least}; "
            f"the nearest that fits is {near[0]}x{near[1]}"
        )
    if math.prod(sides) > MAX_PIXELS:
        raise InputError(f"{name} {sides[0]}x{sides[1]}: is over {MAX_PIXELS} pixels; choose a smaller one")
    return sides[0], sides[1]


def check_hires_size(hires: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The size to which a picture of `size` is enlarged, if it is larger."""
    if hires[0] < size[0] or hires[1] < size[1] or hires == size:
        (wide, high), sides = hires, "{}x{}".format(*size)
        raise InputError(f"hires {wide}x{high}: is not larger than the size {sides} drawn first; choose a larger one")
    return hires
