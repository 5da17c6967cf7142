"""Images inside an HTML file: PNG as data URIs, so that one file contains everything."""

import base64
import io
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

MAX_SIDE = 128  # pixels of an image's longer side in the report


class HtmlImage(NamedTuple):
    """What an <img> element needs."""

    src: str  # a data URI
    width: int  # pixels
    height: int


def encode_image(image: Tensor) -> HtmlImage:
    """(3, H, W) uint8, shrunk to MAX_SIDE pixels."""
    return _encode_png(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), MAX_SIDE)


def encode_image_strip(images: Tensor) -> HtmlImage:
    """(N, 3, H, W) uint8 side by side, shrunk to MAX_SIDE pixels each."""
    row = torch.cat(tuple(images), 2).permute(1, 2, 0).contiguous()
    return _encode_png(Image.fromarray(row.numpy()), MAX_SIDE * len(images))


def _encode_png(image: Image.Image, max_side: int) -> HtmlImage:
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return HtmlImage(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", *image.size)
