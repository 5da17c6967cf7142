"""Images for tests of drawings that start from one."""

import numpy as np
from PIL import Image


def make_image(width: int = 16, height: int = 16) -> Image.Image:
    """Smooth colors with some noise."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:height, :width] / max(width, height)
    colors = np.stack([x, y, 1 - x * y], -1) * 200 + rng.uniform(0, 55, (height, width, 3))
    return Image.fromarray(colors.astype(np.uint8))


def make_mask(width: int = 16, height: int = 16) -> Image.Image:
    """White in its right half, which is to be redrawn."""
    return Image.fromarray(np.where(np.arange(width) < width // 2, 0, 255).astype(np.uint8)[None].repeat(height, 0))
