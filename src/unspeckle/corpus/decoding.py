"""From the bytes of an image file to RGB pixels that just cover a given size."""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""The decoders of Pillow that are used, and no others, whatever a file claims to be."""
MAX_FILE_BYTES = 1 << 29
MAX_PIXELS = 178_956_970
"""A file that declares more pixels is refused as a decompression bomb."""
MAX_LONG_SIDE_FACTOR = 2
"""The long side of a decoded image is cut to at most this many times the crop's."""

_EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageDecodeError(Exception):
    """The file is not an image that can be decoded; the message says why in a few words."""


@contextmanager
def suppress_decoder_warnings() -> Iterator[None]:
    """Suppress Pillow's warnings about odd files, which would appear on stderr without the file's name.

    Only for the main thread: the filters of `warnings` are global.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_image_header(file: BinaryIO) -> Image.Image:
    """Open an image without decoding its pixels. Raises ImageDecodeError if it is not an image or is too large."""
    try:
        image = Image.open(file, formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageDecodeError("too many pixels") from error
    except Exception as error:
        # Decoders raise OSError, SyntaxError, struct.error, ValueError and more on hostile bytes.
        raise ImageDecodeError("not an image, or damaged") from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageDecodeError("too many pixels")
    if image.width * image.height == 0:
        raise ImageDecodeError("no pixels")
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the rotation that EXIF asks for, from the header."""
    return image.size[::-1] if _exif_orientation(image) >= 5 else image.size


def decode_image(raw: bytes, crop_size: tuple[int, int]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode an image, rotate it upright, put it on white and resize it (Lanczos) to just cover `crop_size` (W, H).

    Returns the pixels, uint8 (h, w, 3) with h <= 2 H and w <= 2 W (the center is kept), and the (width, height) of the
    upright image in the file. Raises ImageDecodeError.
    """
    if not raw:
        raise ImageDecodeError("empty file")
    image = open_image_header(io.BytesIO(raw))
    try:
        full_size = image.size
        if image.format in ("JPEG", "MPO"):
            scale = max(*crop_size) / min(full_size)
            image.draft(None, (int(full_size[0] * scale * 2), int(full_size[1] * scale * 2)))
        image.load()
        orientation = _exif_orientation(image)
        is_rotated = orientation >= 5
        width, height = crop_size[::-1] if is_rotated else crop_size
        image = _shrink_to_cover(_to_rgb(image), width, height)
        if orientation in _EXIF_TRANSPOSE:
            image = image.transpose(_EXIF_TRANSPOSE[orientation])
        return np.asarray(image), full_size[::-1] if is_rotated else full_size
    except MemoryError as error:
        raise ImageDecodeError("does not fit into memory") from error
    except Exception as error:
        is_truncated = "truncated" in str(error)
        raise ImageDecodeError("truncated" if is_truncated else f"damaged ({type(error).__name__})") from error


def decode_full_size(raw: bytes) -> Image.Image:
    """The image at its own size: RGB, upright, on white. Raises ImageDecodeError."""
    image = open_image_header(io.BytesIO(raw))
    try:
        orientation = _exif_orientation(image)
        rgb = _to_rgb(image)
    except Exception as error:
        raise ImageDecodeError(f"damaged ({type(error).__name__})") from error
    return rgb.transpose(_EXIF_TRANSPOSE[orientation]) if orientation in _EXIF_TRANSPOSE else rgb


def covering_size(full_size: tuple[int, int], crop_size: tuple[int, int]) -> tuple[int, int]:
    """The (w, h) to which an image of `full_size` (w, h) is resized and cut, to just cover `crop_size` (W, H)."""
    scale = max(crop_size[0] / full_size[0], crop_size[1] / full_size[1])
    width = min(max(crop_size[0], round(full_size[0] * scale)), MAX_LONG_SIDE_FACTOR * crop_size[0])
    height = min(max(crop_size[1], round(full_size[1] * scale)), MAX_LONG_SIDE_FACTOR * crop_size[1])
    return width, height


def _shrink_to_cover(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = max(width / image.width, height / image.height)
    target_size = covering_size(image.size, (width, height))
    crop_width = min(image.width, target_size[0] / scale)
    crop_height = min(image.height, target_size[1] / scale)
    left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
    box = (left, top, left + crop_width, top + crop_height)
    if target_size == image.size and box == (0, 0, *image.size):
        return image
    return image.resize(target_size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _exif_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except (OSError, SyntaxError, ValueError, TypeError, struct.error, KeyError):
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _high_bit_depth_to_rgb(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _high_bit_depth_to_rgb(image: Image.Image) -> Image.Image:
    """Grayscale with 16 bits, 32 bits or floats, scaled to 8 bits by the range of its type."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    maximum = float(values.max())
    if image.mode == "F" and maximum <= 1:
        white_level = 1.0
    elif image.mode == "F" and maximum <= 255:
        white_level = 255.0
    else:
        white_level = 65535.0 if maximum <= 65535 else maximum
    gray = np.clip(values * (255 / white_level) + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")
