"""Pictures inside the report: PNG as data, so that one file holds all."""

import base64
import io
from html import escape

import torch
from PIL import Image
from torch import Tensor

MOST = 128  # pixels of a picture's longer side in the report


def image(picture: Tensor, said: str) -> str:
    """(3, H, W) uint8 as an <img>; said: read out to those who do not see it."""
    return _tag(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()), said, MOST)


def strip(pictures: Tensor, said: str) -> str:
    """(N, 3, H, W) uint8 side by side as one <img>."""
    row = torch.cat(tuple(pictures), 2).permute(1, 2, 0).contiguous()
    return _tag(Image.fromarray(row.numpy()), said, MOST * len(pictures))


def figure(inside: str, caption: str) -> str:
    return f"<figure>{inside}<figcaption>{escape(caption)}</figcaption></figure>"


def _tag(picture: Image.Image, said: str, most: int) -> str:
    if max(picture.size) > most:
        picture.thumbnail((most, most))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    width, height = picture.size
    return f'<img src="data:image/png;base64,{data}" alt="{escape(said)}" width="{width}" height="{height}">'
