"""Images within a page, for notebooks."""

import base64
import io
from pathlib import Path

from PIL import Image

WEBP_QUALITY = 85


def image_html(data: bytes, media_type: str) -> str:
    """An <img> that holds the image itself, such as a PNG ("image/png")."""
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img src="data:{media_type};base64,{encoded}" style="max-width: 100%">'


def image_file_html(path: Path) -> str:
    """An <img> of an image file, made small for pages that are sent again and again: as a lossy WebP."""
    file = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(file, "WEBP", quality=WEBP_QUALITY)
    return image_html(file.getvalue(), "image/webp")
