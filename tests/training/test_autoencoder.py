"""The trained autoencoder: latents of unit variance, a loss that is its definition, training that can stop anywhere."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tiny_models import make_plan, save_random_model
from training_runs import interrupt_at
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load
from unspeckle.networks import LatentAutoencoder, LatentAutoencoderConfig, PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.presets import PRESETS, UNET_PRESETS
from unspeckle.training import checkpoint, progress, train_command
from unspeckle.training.autoencoder_task import AUTOENCODER_FOLDER, AutoencoderTask, init_autoencoder
from unspeckle.training.autoencoder_updater import AutoencoderUpdater
from unspeckle.training.optimizer import learning_rate_factor
from unspeckle.training.options import TrainOptions
from unspeckle.training.plan import Plan
from unspeckle.training.plan_file import PLAN_FILE, load_plan
from unspeckle.training.preset_choice import autoencoder_config_for, choose_space, network_config_for
from unspeckle.training.reconstruction_loss import laplacian_pyramid_loss
from unspeckle.training.text_to_image_updater import TextToImageUpdater
from unspeckle.training.train_command import run_training


def make_discs(seed: int) -> list[NDArray[np.uint8]]:
    """40 images of 32 × 32 pixels, each a disc of one color on a background of another."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:32, :32]
    centers, colors = rng.uniform(8, 24, (40, 2)), rng.integers(0, 256, (40, 2, 3))
    masks = [(y - center_y) ** 2 + (x - center_x) ** 2 < 64 for center_y, center_x in centers]
    return [np.where(mask[..., None], *pair).astype(np.uint8) for mask, pair in zip(masks, colors, strict=True)]


def disc_tensor(seed: int) -> Tensor:
    return torch.from_numpy(np.stack(make_discs(seed))).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The discs as files."""
    root = tmp_path_factory.mktemp("discs")
    for i, pixels in enumerate(make_discs(0)):
        Image.fromarray(pixels).save(root / f"{i}.png")
    return root


def disc_options(folder: Path, out: Path, **changes: Any) -> TrainOptions:
    options = TrainOptions(
        folder, out, steps=20, size="32", preset="nano", batch_size=8, quiet=True, caption="a disc", space="latents"
    )
    return replace(options, **changes)


def load_run_plan(run: Path) -> Plan:
    plan = load_plan(run, Plan)
    assert plan is not None
    return plan


@pytest.fixture(scope="module")
def trained_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose autoencoder was trained for 120 steps."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr("unspeckle.training.train_planner.AUTOENCODER_STEP_FRACTION", 6.0)
        assert run_training(disc_options(folder, run)) == 0
    return run


def test_latents_of_training_images_have_mean_0_and_variance_1(trained_run: Path) -> None:
    x = load(trained_run).autoencoder.encode(disc_tensor(0))
    assert x.shape[1:] == (8, 8, 8)
    assert x.mean((0, 2, 3)).abs().max() < 0.1
    assert (x.var((0, 2, 3)) - 1).abs().max() < 0.2


def test_it_learns_to_reconstruct_images_that_it_never_saw(trained_run: Path) -> None:
    autoencoder, images = load(trained_run).autoencoder, disc_tensor(1)
    error = (autoencoder.decode(autoencoder.encode(images)) - images).square().mean()
    assert error < 0.35 * images.var((2, 3)).mean()


def test_the_disk_space_of_a_run_is_foreseen(folder: Path, tmp_path: Path) -> None:
    """Two checkpoints of each task are left, and room for a third is needed while it is written. With AdamW: Muon's are
    smaller."""
    run = tmp_path / "run"
    assert run_training(disc_options(folder, run, steps=5, precision="float32", optimizer="adamw")) == 0
    checkpoints = [sorted((part / "checkpoints").glob("step-*"))[-1] for part in (run, run / AUTOENCODER_FOLDER)]
    used_bytes = 3 * sum(path.stat().st_size for path in checkpoints) + (run / "model.safetensors").stat().st_size
    assert load_run_plan(run).measured.disk_bytes == pytest.approx(used_bytes, rel=0.02)


def test_its_learning_rate_is_its_own(tmp_path: Path) -> None:
    """The text stage is the network's: the autoencoder's learning rate rises once and falls once."""
    plan = make_plan().with_changes(work={"steps": 20_000, "autoencoder_steps": 4000, "text_steps": 3000})
    task = AutoencoderTask(plan, tmp_path, None, init_autoencoder(0))  # type: ignore[arg-type]
    factors = [learning_rate_factor(step, task.plan) for step in range(1, 4001)]
    assert task.plan.work.steps == 4000 and factors[100:2400] == [1.0] * 2300
    assert factors == sorted(factors[:101]) + factors[101:]


def test_shifted_images_have_shifted_latents(trained_run: Path) -> None:
    autoencoder = load(trained_run).autoencoder
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 128, 128)
    image[:, :, 56:72, 56:72] = torch.rand(1, 3, 16, 16)
    latents, shifted_latents = (autoencoder.encode(x) for x in (image, image.roll((8, -4), (2, 3))))
    expected = latents.roll((2, -1), (2, 3))
    assert torch.allclose(expected[..., 8:-8, 8:-8], shifted_latents[..., 8:-8, 8:-8], atol=1e-4)


def test_the_loss_is_its_definition() -> None:
    torch.manual_seed(0)
    error = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    half = error.view(2, 3, 8, 2, 8, 2).mean((3, 5))
    quarter = half.view(2, 3, 4, 2, 4, 2).mean((3, 5))
    eighth = quarter.view(2, 3, 2, 2, 2, 2).mean((3, 5))

    def upsample(x: Tensor) -> Tensor:
        """Bilinear, written out: a pixel takes 3/4 of its own value and 1/4 of the nearer neighbor's."""
        for axis in (2, 3):
            last = x.shape[axis] - 1
            before = x.index_select(axis, torch.arange(-1, last).clamp(min=0))
            after = x.index_select(axis, torch.arange(1, last + 2).clamp(max=last))
            x = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1).flatten(axis, axis + 1)
        return x

    bands = [error - upsample(half), half - upsample(quarter), quarter - upsample(eighth)]
    expected = sum(part.abs().mean() for part in (error, *bands, eighth))
    assert torch.allclose(laplacian_pyramid_loss(error), torch.as_tensor(expected))
    assert laplacian_pyramid_loss(torch.zeros(1, 3, 16, 16)) == 0


@pytest.mark.parametrize(("precision", "cache_latents"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_a_run_that_is_interrupted_in_both_tasks_gives_the_same_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, cache_latents: bool
) -> None:
    """cache_latents: images are seen so often that they are encoded once."""
    monkeypatch.setattr("unspeckle.training.encoded_corpus.MIN_VIEWS", 1.0 if cache_latents else 100.0)
    monkeypatch.setattr("unspeckle.training.encoded_corpus.latent_cache_pays", lambda *measured: True)
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    assert run_training(disc_options(folder, uninterrupted, precision=precision)) == 0
    work = load_run_plan(uninterrupted).work
    assert work.autoencoder_steps == 4 and work.cache_latents == cache_latents
    for updater_class, last_step in ((AutoencoderUpdater, 2), (TextToImageUpdater, 7)):
        with monkeypatch.context() as patch:
            interrupt_at(patch, last_step, updater_class)
            assert run_training(disc_options(folder, run, precision=precision)) == 130
        assert not (run / "model.safetensors").exists()
    assert checkpoint.latest_step(run / AUTOENCODER_FOLDER) == 4 and checkpoint.latest_step(run) == 7
    assert run_training(disc_options(folder, run, precision=precision)) == 0
    state, expected = load(run).state_dict(), load(uninterrupted).state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def continued(model: Path) -> dict[str, Any]:
    """Options to train a model further."""
    return {"space": None, "preset": None, "from_model": model, "steps": 3}


def test_a_model_that_is_trained_further_keeps_its_autoencoder(folder: Path, trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_training(disc_options(folder, run, **continued(trained_run))) == 0
    before, after = load(trained_run).state_dict(), load(run).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("autoencoder.") for name in before)
    assert changed and not any(name.startswith("autoencoder.") for name in changed)


def test_an_autoencoder_is_never_used_untrained(
    folder: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails between the plan and the saving of the autoencoder, the same command ends with the same model."""
    # The precision would be measured.
    options = {**continued(trained_run), "precision": "float32"}
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    assert run_training(disc_options(folder, uninterrupted, **options)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(train_command, "save_or_restore_autoencoder", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_training(disc_options(folder, run, **options))
    assert (run / PLAN_FILE).exists() and not (run / AUTOENCODER_FOLDER).exists()
    assert run_training(disc_options(folder, run, **options)) == 0
    assert load(run).hash == load(uninterrupted).hash


class KilledError(BaseException):
    """Stands for the end of the process: nothing in the package catches it."""


@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_is_killed_at_any_file_ends_with_the_same_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Killed at its first file, at the second one of what is left, at the third, … before or after it is in place."""
    monkeypatch.setattr(progress, "CHECKPOINT_INTERVAL", 0.0)
    options = {"steps": 4, "precision": "float32"}
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    assert run_training(disc_options(folder, uninterrupted, **options)) == 0
    replace_path, names = Path.replace, list[str]()
    code = -1
    for death in range(1, 30):
        count = [0]

        def replace(self: Path, target: Path, count: list[int] = count, death: int = death) -> Path:
            count[0] += 1
            if count[0] == death:
                names.append(target.name)
                if after:
                    replace_path(self, target)
                raise KilledError
            return replace_path(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            try:
                code = run_training(disc_options(folder, run, **options))
            except KilledError:
                continue
        break
    assert code == 0 and len(names) >= 4
    assert load(run).hash == load(uninterrupted).hash
    logged = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert logged == sorted(logged) and logged[-1] == 4
    assert (run / "samples" / "step-00000004.png").exists()


@pytest.mark.parametrize("is_own", [True, False])
def test_a_run_without_its_autoencoder_is_not_continued(
    folder: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_own: bool
) -> None:
    options = {"steps": 4} if is_own else continued(trained_run)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert run_training(disc_options(folder, run, **options)) == 130
    shutil.move(run / AUTOENCODER_FOLDER, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{run / AUTOENCODER_FOLDER}: the autoencoder .* is gone; put it back"):
        run_training(disc_options(folder, run, **options))
    shutil.rmtree(run / AUTOENCODER_FOLDER, ignore_errors=True)
    shutil.move(tmp_path / "elsewhere", run / AUTOENCODER_FOLDER)
    assert run_training(disc_options(folder, run, **options)) == 0


def test_a_model_that_changed_before_the_first_step_is_refused(
    folder: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.safetensors"
    shutil.copy(trained_run / "model.safetensors", model)
    options = disc_options(folder, tmp_path / "run", **continued(model))
    with monkeypatch.context() as patch:
        patch.setattr(train_command, "save_or_restore_autoencoder", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_training(options)
    save_random_model(tmp_path).replace(model)
    with pytest.raises(InputError, match=f"--from {model}: changed since"):
        run_training(options)


def test_images_of_128_pixels_make_as_many_latents_as_those_of_64() -> None:
    small, large = (autoencoder_config_for(size) for size in ((64, 96), (128, 192)))
    assert 64 // small.downsampling_factor == 128 // large.downsampling_factor == 16
    assert autoencoder_config_for((120, 120)) == small  # whose sides are no multiples of 16
    assert small == LatentAutoencoderConfig() and large.latent_channels == 4 * small.latent_channels


@pytest.mark.parametrize(
    ("size", "preset", "space"),
    [
        ((64, 64), None, "latents"),
        ((96, 64), None, "latents"),
        ((136, 136), None, "pixels"),
        ((200, 200), None, "pixels"),
        ((272, 272), None, "pixels"),
        ((144, 144), None, "latents"),
        ((120, 120), None, "latents"),
        ((144, 144), "base", "pixels"),
        ((256, 256), "large", "latents"),
        ((32, 32), None, "pixels"),
    ],
)
def test_latents_are_the_default_only_if_a_network_fits_them(
    size: tuple[int, int], preset: str | None, space: str, folder: Path
) -> None:
    options = disc_options(folder, Path("run"), space=None, preset=preset, steps=None, seconds=3600.0)
    assert choose_space(options, size) == space
    latents, pixels = LatentAutoencoder(autoencoder_config_for(size)), PixelAutoencoder(PixelAutoencoderConfig())
    autoencoder = latents if space == "latents" else pixels
    names = [preset] if preset else UNET_PRESETS
    networks = [network_config_for(PRESETS[name], size, autoencoder) for name in names]
    factors = [network.size_multiple * autoencoder.downsampling_factor for network in networks]
    assert any(size[0] % factor == 0 for factor in factors)


def test_an_image_is_as_large_as_requested(trained_run: Path) -> None:
    request = Request("a disc", steps=2, size=(48, 32))
    assert [image.size for image in draw(load(trained_run), request)] == [(48, 32)]


def test_a_space_is_refused_for_a_model_that_has_its_own(folder: Path, trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="space and --from exclude each other"):
        run_training(disc_options(folder, tmp_path / "run", preset=None, from_model=trained_run))
    with pytest.raises(InputError, match="space fourier: unknown"):
        run_training(disc_options(folder, tmp_path / "run", space="fourier"))


def test_a_downsampling_factor_needs_as_many_widths() -> None:
    with pytest.raises(ValueError, match="factor 8"):
        LatentAutoencoder(LatentAutoencoderConfig(downsampling_factor=8, widths=(8, 8)))
