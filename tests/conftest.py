"""Fixtures that tests of several rooms share. What is expensive is made once a test run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

SDFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> SDFolder:
    """A function to the folder of a tiny Stable Diffusion as diffusers saves it, by its family, what it predicts,
    whether it is in half precision, and its seed. The same folder for the same arguments, so it must not be changed."""
    import stable_diffusion_files

    folders: dict[tuple[str, str, bool, int], Path] = {}

    def make(family: str = "1", prediction: str = "epsilon", *, half: bool = False, seed: int = 0) -> Path:
        key = (family, prediction, half, seed)
        if key not in folders:
            scratch = tmp_path_factory.mktemp(f"sd-{family}")
            pipeline = stable_diffusion_files.tiny_pipeline(family, scratch / "scratch", prediction, seed)
            pipeline.to(torch.float16 if half else torch.float32).save_pretrained(scratch / "pipe")
            folders[key] = scratch / "pipe"
        return folders[key]

    return make
