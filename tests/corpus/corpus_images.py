"""Image files that the tests of this folder make."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_noise(path: Path, width: int, height: int, seed: int = 0) -> None:
    """An image of random pixels, the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_blanks(folder: Path, *names: str) -> Path:
    """Black images of 4 × 4 pixels with these names; returns the folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder
