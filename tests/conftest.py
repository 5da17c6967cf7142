"""Fixtures that tests of several rooms share. What is expensive is made once a test run."""

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

SDFolder = Callable[..., Path]


def pytest_collection_finish() -> None:
    """What lives until the end is not searched for garbage again and again: a tenth of the time of some tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> SDFolder:
    """A function to the folder of a tiny Stable Diffusion as diffusers saves it, by its family, whether it is in half
    precision, and its seed. The same folder for the same arguments, so it must not be changed."""
    import stable_diffusion_files

    folders: dict[tuple[str, bool, int], Path] = {}

    def make(family: str = "1", *, half: bool = False, seed: int = 0) -> Path:
        key = (family, half, seed)
        if key not in folders:
            scratch = tmp_path_factory.mktemp(f"sd-{family}")
            prediction = stable_diffusion_files.PREDICTIONS[family]
            pipeline = stable_diffusion_files.tiny_pipeline(family, scratch / "scratch", prediction, seed)
            pipeline.to(torch.float16 if half else torch.float32).save_pretrained(scratch / "pipe")
            folders[key] = scratch / "pipe"
        return folders[key]

    return make


@pytest.fixture(scope="session")
def color_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 captioned images of 16 × 16 pixels in three colors; it must not be changed."""
    from training_runs import write_color_folder

    return write_color_folder(tmp_path_factory.mktemp("colors"))


@pytest.fixture(scope="session")
def finished_run(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The RUN of a training of 12 steps that nobody interrupted; it must not be changed."""
    from training_runs import train_options
    from unspeckle.training.train_command import run_training

    run = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        assert run_training(train_options(color_folder, run)) == 0
    return run


@pytest.fixture(scope="session", autouse=True)
def _brief_measurements() -> Iterator[None]:
    """Planners time two steps of each kind instead of some seconds of them, also in fixtures of whole modules."""
    from unspeckle.training import measurement

    with pytest.MonkeyPatch.context() as monkeypatch:
        for kind in ("STEPS", "CAPTIONS", "CACHED_LATENTS", "TEXT_STAGE", "AUTOENCODER", "PEAK_FLOPS"):
            monkeypatch.setattr(measurement, f"{kind}_SECONDS", 0.0)
        yield


@pytest.fixture
def training_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of decoded images for the tests alone; the signal handlers that training sets are taken back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
