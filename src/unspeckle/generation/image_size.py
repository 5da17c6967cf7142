"""Which sizes in pixels a model can draw."""

import math
from typing import Any

from PIL import Image

from unspeckle.errors import InputError
from unspeckle.model import Model
from unspeckle.networks.gan import Generator

MAX_PIXELS = 1 << 24  # of one image


def choose_size(
    model: Model, size: object, image: Image.Image | None = None, mask: Image.Image | None = None
) -> tuple[int, int]:
    """(width, height) in pixels: the requested size, or the model card's, or that of the image to start from, with
    sides rounded down to what the network can draw. An image with over four times the pixels that the model was trained
    on is reduced to that many.

    InputError where the network cannot draw the size, or where image and mask do not fit each other."""
    _check_image_and_mask(image, mask)
    if image is None or size is not None:
        return check_size(model, model.card.size if size is None else size)
    pixels, usual = math.prod(image.size), math.prod(model.card.size)
    shrink = math.sqrt(usual / pixels) if pixels > 4 * usual else 1.0
    multiple, least = _size_multiple(model)
    width, height = (max(least, int(side * shrink + 1e-6) // multiple * multiple) for side in image.size)
    return check_size(model, (width, height))


def _check_image_and_mask(image: Image.Image | None, mask: Image.Image | None) -> None:
    """InputError where one is not an image, or the mask has another size or nothing white."""
    for name, value in (("image", image), ("mask", mask)):
        if value is not None and not (isinstance(value, Image.Image) and min(value.size) > 0):
            raise InputError(": must be a PIL image", name)
    if mask is None:
        return
    if image is None:
        raise InputError(": there is no image to redraw; give `image` as well", "mask")
    if mask.size != image.size:
        (width, height), size = mask.size, "{}x{}".format(*image.size)
        raise InputError(f": is {width}x{height}, the image {size}; give one of the same size", "mask")
    if mask.convert("L").getextrema()[1] < 128:  # type: ignore[operator]
        raise InputError(
            ": nothing in it is white, so nothing would be redrawn; make white what is to be redrawn", "mask"
        )


def _size_multiple(model: Model) -> tuple[int, int]:
    """What a side in pixels must be a multiple of, and the least side."""
    config: Any = model.network.config
    multiple = int(config.size_multiple) * model.autoencoder.downsampling_factor
    return multiple, -(-16 // multiple) * multiple


def check_size(model: Model, size: object, name: str = "size") -> tuple[int, int]:
    """(width, height) in pixels from one number for both or a pair, if the network can draw it. InputError names the
    nearest size that it can draw."""
    multiple, least = _size_multiple(model)
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, tuple | list) else ()
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        raise InputError(f" {size!r}: must be a number of pixels or a pair of them, width first", name)
    if isinstance(model.network, Generator) and tuple(sides) != model.card.size:
        only = "{}x{}".format(*model.card.size)
        raise InputError(f" {sides[0]}x{sides[1]}: this model draws {only} only; leave it out", name)
    nearest = [max(least, (side + multiple // 2) // multiple * multiple) for side in sides]
    if nearest != list(sides):
        raise InputError(
            f" {sides[0]}x{sides[1]}: sides must be multiples of {multiple}, at least {least}; "
            f"the nearest that fits is {nearest[0]}x{nearest[1]}",
            name,
        )
    if math.prod(sides) > MAX_PIXELS:
        raise InputError(f" {sides[0]}x{sides[1]}: is over {MAX_PIXELS} pixels; choose a smaller one", name)
    return sides[0], sides[1]


def check_hires_size(model: Model, hires_size: object, size: tuple[int, int]) -> tuple[int, int] | None:
    """The size (width, height) to which an image of `size` is enlarged, if it is larger; None where it is not."""
    if hires_size is None:
        return None
    width, height = check_size(model, hires_size, "hires_size")
    if width < size[0] or height < size[1] or (width, height) == size:
        first = "{}x{}".format(*size)
        raise InputError(
            f" {width}x{height}: is not larger than the size {first} drawn first; choose a larger one", "hires_size"
        )
    return width, height
