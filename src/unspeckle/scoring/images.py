"""Pictures inside the report: PNG as data, so that one file holds all."""

import base64
import io
from html import escape

import torch
from PIL import Image
from torch import Tensor

MAX_SIDE = 128  # pixels of a picture's longer side in the report


def image_tag(image: Tensor, alt_text: str) -> str:
    """(3, H, W) uint8 as an <img>; said: read out to those who do not see it."""
    return _png_tag(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), alt_text, MAX_SIDE)


def image_strip_tag(images: Tensor, alt_text: str) -> str:
    """(N, 3, H, W) uint8 side by side as one <img>."""
    row = torch.cat(tuple(images), 2).permute(1, 2, 0).contiguous()
    return _png_tag(Image.fromarray(row.numpy()), alt_text, MAX_SIDE * len(images))


def figure_tag(content_html: str, caption: str) -> str:
    return f"<figure>{content_html}<figcaption>{escape(caption)}</figcaption></figure>"


def _png_tag(image: Image.Image, alt_text: str, max_side: int) -> str:
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    width, height = image.size
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt_text)}" width="{width}" height="{height}">'
