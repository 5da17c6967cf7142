"""One file's bytes -> one RGB picture whose short side is as long as asked."""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # and no other decoder, whatever a file pretends to be
LARGEST_FILE = 1 << 29
LARGEST_PICTURE = 178_956_970  # pixels; beyond it is a bomb
LONGEST = 2  # the long side is kept up to this many times what a crop needs

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Undecodable(Exception):
    """The file is no picture that can be read; the message says why in a few words."""


@contextmanager
def quiet() -> Iterator[None]:
    """Decoders warn about odd files on stderr; what matters is said once, by name. Not for worker threads to enter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_header(file: BinaryIO) -> Image.Image:
    """Open without decoding the pixels. Raises Undecodable: not a picture, or too large."""
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Undecodable("too many pixels") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError, … on hostile bytes
        raise Undecodable("not a picture, or damaged") from error
    if image.width * image.height > LARGEST_PICTURE:
        raise Undecodable("too many pixels")
    if image.width * image.height == 0:
        raise Undecodable("no pixels")
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(w, h) after the turn that EXIF asks for, from the header."""
    return image.size[::-1] if _orientation(image) >= 5 else image.size


def decode(raw: bytes, size: tuple[int, int]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode, turn upright, put on white and shrink (Lanczos) until `size` (W, H) is just covered.

    Returns the picture (h, w, 3), h and w at most twice what `size` asks (the middle is kept), and the upright
    size in the file (w, h). Raises Undecodable.
    """
    if not raw:
        raise Undecodable("empty file")
    image = open_header(io.BytesIO(raw))
    try:
        full = image.size
        if image.format in ("JPEG", "MPO"):
            scale = max(*size) / min(full)
            image.draft(None, (int(full[0] * scale * 2), int(full[1] * scale * 2)))
        image.load()
        turn = _orientation(image)
        swapped = turn >= 5
        width, height = size[::-1] if swapped else size
        image = _shrink(_rgb(image), width, height)
        if turn in _TRANSPOSE:
            image = image.transpose(_TRANSPOSE[turn])
        return np.asarray(image), full[::-1] if swapped else full
    except MemoryError as error:
        raise Undecodable("does not fit into memory") from error
    except Exception as error:
        truncated = "truncated" in str(error)
        raise Undecodable("truncated" if truncated else f"damaged ({type(error).__name__})") from error


def whole(raw: bytes) -> Image.Image:
    """The picture at its own size, RGB, upright, on white. Raises Undecodable."""
    image = open_header(io.BytesIO(raw))
    try:
        turn = _orientation(image)
        upright = _rgb(image)
    except Exception as error:
        raise Undecodable(f"damaged ({type(error).__name__})") from error
    return upright.transpose(_TRANSPOSE[turn]) if turn in _TRANSPOSE else upright


def covering(full: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The (w, h) at which a picture of `full` (w, h) is kept so that `size` (W, H) is just covered."""
    scale = max(size[0] / full[0], size[1] / full[1])
    width = min(max(size[0], round(full[0] * scale)), LONGEST * size[0])
    height = min(max(size[1], round(full[1] * scale)), LONGEST * size[1])
    return width, height


def _shrink(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = max(width / image.width, height / image.height)
    kept = covering(image.size, (width, height))
    across = min(image.width, kept[0] / scale)
    down = min(image.height, kept[1] / scale)
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, left + across, top + down)
    if kept == image.size and box == (0, 0, *image.size):
        return image
    return image.resize(kept, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except (OSError, SyntaxError, ValueError, TypeError, struct.error, KeyError):
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _deep_grey(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        alpha = image.convert("RGBA")
        white = Image.new("RGBA", alpha.size, "white")
        return Image.alpha_composite(white, alpha).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey to 8 bits by the range of its kind."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    top = float(values.max())
    if image.mode == "F" and top <= 1:
        white = 1.0
    elif image.mode == "F" and top <= 255:
        white = 255.0
    else:
        white = 65535.0 if top <= 65535 else top
    grey = np.clip(values * (255 / white) + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
