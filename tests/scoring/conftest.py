"""A model file and a corpus that the tests of scoring share, and a cache of their own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny_models import save_random_model


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model for images of 16 × 16 pixels."""
    return save_random_model(tmp_path_factory.mktemp("scored model"))


@pytest.fixture(scope="session")
def square_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """640 images of a colored square on a colored background, each with two captions."""
    path = tmp_path_factory.mktemp("scored corpus") / "squares"
    path.mkdir()
    rng = np.random.default_rng(0)
    for i in range(640):
        pixels = np.full((16, 16, 3), rng.integers(0, 256, 3), np.uint8)
        y, x = rng.integers(0, 9, 2)
        pixels[y : y + 7, x : x + 7] = rng.integers(0, 256, 3)
        Image.fromarray(pixels).save(path / f"{i:03d}.png")
        (path / f"{i:03d}.txt").write_text(f"a frog\n{('a blue rabbit', 'two red frogs')[i % 2]}\n")
    return path


@pytest.fixture(autouse=True)
def scoring_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's cache, for the tests of scoring alone."""
    path = tmp_path_factory.getbasetemp() / "scoring cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path
