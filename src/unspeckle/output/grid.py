"""Several images as one."""

import math
from collections.abc import Sequence

from PIL import Image


def grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Images of one size side by side, in rows of so many columns; None: as many columns as rows, or one more.
    ValueError if there are no images, or their sizes differ."""
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"a grid needs images of one size, not of {len(sizes)}")
    ((width, height),) = sizes
    columns = columns or math.ceil(math.sqrt(len(images)))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height))
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet
