"""The trained autoencoder: latents of variance 1, its loss, and training that can be stopped anywhere."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tiny_models import save_random_model
from training_runs import interrupt_at
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load
from unspeckle.networks.autoencoder import PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.presets import PRESETS, UNET_PRESETS
from unspeckle.training import train_command
from unspeckle.training.autoencoder_task import AUTOENCODER_FOLDER, AutoencoderTask, init_autoencoder
from unspeckle.training.autoencoder_updater import AutoencoderUpdater
from unspeckle.training.checkpoint import latest_step
from unspeckle.training.optimizer import learning_rate_factor
from unspeckle.training.options import TrainOptions
from unspeckle.training.plan import Plan
from unspeckle.training.plan_file import load_plan
from unspeckle.training.preset_choice import choose_space, network_config_for
from unspeckle.training.reconstruction_loss import laplacian_pyramid_loss
from unspeckle.training.text_to_image_updater import TextToImageUpdater
from unspeckle.training.train_command import run_training
from unspeckle.training.updater import Updater


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images of 32 × 32 pixels."""
    root = tmp_path_factory.mktemp("discs")
    for i, pixels in enumerate(discs(0)):
        Image.fromarray(pixels).save(root / f"{i}.png")
    return root


def discs(seed: int) -> list[np.ndarray]:
    """Each a disc of one color on a background of another."""
    rng, (rows, columns) = np.random.default_rng(seed), np.mgrid[:32, :32]
    centers, colors = rng.uniform(8, 24, (40, 2)), rng.integers(0, 256, (40, 2, 3))
    inside = [(rows - y) ** 2 + (columns - x) ** 2 < 64 for y, x in centers]
    return [np.where(i[..., None], *pair).astype(np.uint8) for i, pair in zip(inside, colors, strict=True)]


def options(folder: Path, out: Path, **changes: Any) -> TrainOptions:
    latent_options = TrainOptions(
        folder, out, steps=20, size="32", preset="nano", batch_size=8, quiet=True, caption="a disc", space="latents"
    )
    return replace(latent_options, **changes)


def plan_of(run: Path) -> Plan:
    plan = load_plan(run, Plan)
    assert plan is not None
    return plan


def disc_batch(seed: int) -> Tensor:
    return torch.from_numpy(np.stack(discs(seed))).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def trained_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose autoencoder was trained for 120 steps; it must not be changed."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr("unspeckle.training.train_planner.AUTOENCODER_STEP_FRACTION", 6.0)
        assert run_training(options(folder, out)) == 0
    return out


def test_latents_have_mean_0_and_variance_1_over_the_training_images(trained_run: Path) -> None:
    x = load(trained_run).autoencoder.encode(disc_batch(0))
    assert x.shape[1:] == (8, 8, 8)
    assert x.mean((0, 2, 3)).abs().max() < 0.1
    assert (x.var((0, 2, 3)) - 1).abs().max() < 0.2


def test_it_reconstructs_images_that_it_has_not_seen(trained_run: Path) -> None:
    autoencoder, unseen = load(trained_run).autoencoder, disc_batch(1)
    error = (autoencoder.decode(autoencoder.encode(unseen)) - unseen).square().mean()
    assert error < 0.35 * unseen.var((2, 3)).mean()


def test_the_plan_says_how_much_disk_space_a_run_takes(folder: Path, tmp_path: Path) -> None:
    """Two checkpoints of each part are kept while a third is written. With AdamW: Muon's take less."""
    run, checkpoint_bytes = tmp_path / "run", 0
    assert run_training(options(folder, run, steps=5, precision="float32")) == 0
    for part in (run, run / AUTOENCODER_FOLDER):
        checkpoint_bytes += sorted((part / "checkpoints").glob("step-*"))[-1].stat().st_size
    used = 3 * checkpoint_bytes + (run / "model.safetensors").stat().st_size
    assert plan_of(run).measured.disk_bytes == pytest.approx(used, rel=0.02)


def test_its_learning_rate_rises_and_falls_once(trained_run: Path, tmp_path: Path) -> None:
    """Over its own steps: the text stage is one of the network's."""
    plan = plan_of(trained_run).with_changes(work={"steps": 20_000, "autoencoder_steps": 4000, "text_steps": 3000})
    task = AutoencoderTask(plan, tmp_path, None, init_autoencoder(0))  # type: ignore[arg-type]
    factors = [learning_rate_factor(step, task.plan) for step in range(1, 4001)]
    assert task.plan.work.steps == 4000
    assert factors[100:2400] == [1.0] * 2300 and factors == sorted(factors[:101]) + factors[101:]


def test_shifted_images_have_shifted_latents(trained_run: Path) -> None:
    autoencoder = load(trained_run).autoencoder
    torch.manual_seed(0)
    scene = torch.zeros(1, 3, 128, 128)
    scene[:, :, 56:72, 56:72] = torch.rand(1, 3, 16, 16)
    latents, shifted = (autoencoder.encode(x) for x in (scene, scene.roll((8, -4), (2, 3))))
    assert torch.allclose(latents.roll((2, -1), (2, 3))[..., 8:-8, 8:-8], shifted[..., 8:-8, 8:-8], atol=1e-4)


def test_the_loss_is_that_of_its_definition() -> None:
    torch.manual_seed(0)
    error = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    half = error.view(2, 3, 8, 2, 8, 2).mean((3, 5))
    quarter = half.view(2, 3, 4, 2, 4, 2).mean((3, 5))
    eighth = quarter.view(2, 3, 2, 2, 2, 2).mean((3, 5))

    def upsample(x: Tensor) -> Tensor:
        """Bilinear: each of the two new pixels is 3/4 of the old one and 1/4 of its neighbor on that side."""
        for axis in (2, 3):
            last = x.shape[axis] - 1
            before = x.index_select(axis, torch.arange(-1, last).clamp(min=0))
            after = x.index_select(axis, torch.arange(1, last + 2).clamp(max=last))
            x = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1).flatten(axis, axis + 1)
        return x

    bands = [error - upsample(half), half - upsample(quarter), quarter - upsample(eighth)]
    expected = torch.stack([part.abs().mean() for part in (error, *bands, eighth)]).sum()
    assert torch.allclose(laplacian_pyramid_loss(error), expected)
    assert laplacian_pyramid_loss(torch.zeros(1, 3, 16, 16)) == 0


@pytest.mark.parametrize(("precision", "is_cached"), [("float32", False), ("bfloat16", True)])
def test_stopped_in_either_part_and_resumed_gives_the_same_bits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, is_cached: bool
) -> None:
    monkeypatch.setattr("unspeckle.training.encoded_corpus.MIN_VIEWS", 1.0 if is_cached else 100.0)
    monkeypatch.setattr("unspeckle.training.encoded_corpus.latent_cache_pays", lambda *measured: True)
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    assert run_training(options(folder, uninterrupted, precision=precision)) == 0
    work = plan_of(uninterrupted).work
    assert work.autoencoder_steps == 4 and work.cache_latents == is_cached
    stops: list[tuple[type[Updater], int]] = [(AutoencoderUpdater, 2), (TextToImageUpdater, 7)]
    for updater_class, step in stops:
        with monkeypatch.context() as patch:
            interrupt_at(patch, step, updater_class)
            assert run_training(options(folder, run, precision=precision)) == 130
        assert not (run / "model.safetensors").exists()
    assert latest_step(run / AUTOENCODER_FOLDER) == 4
    assert latest_step(run) == 7
    assert run_training(options(folder, run, precision=precision)) == 0
    resumed, expected = load(run).state_dict(), load(uninterrupted).state_dict()
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_a_continued_model_keeps_its_autoencoder(folder: Path, trained_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = options(folder, out, space=None, preset=None, from_model=trained_run, steps=3)
    assert run_training(changes) == 0
    before, after = load(trained_run), load(out)
    kept = [name for name in before.state_dict() if name.startswith("autoencoder.")]
    assert kept and all(torch.equal(before.state_dict()[name], after.state_dict()[name]) for name in kept)
    assert any(not torch.equal(before.state_dict()[name], after.state_dict()[name]) for name in before.state_dict())


def test_an_untrained_autoencoder_is_never_used(
    folder: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the process dies between writing plan and autoencoder, the same command gives the same model."""
    changes = {"space": None, "preset": None, "from_model": trained_run, "steps": 3, "precision": "float32"}
    assert run_training(options(folder, tmp_path / "uninterrupted", **changes)) == 0
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train_command, "save_or_restore_autoencoder", lambda *rest, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_training(options(folder, out, **changes))
    assert (out / "plan.json").exists() and not (out / AUTOENCODER_FOLDER).exists()
    assert run_training(options(folder, out, **changes)) == 0
    assert load(out).hash == load(tmp_path / "uninterrupted").hash


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the package catches it."""


@pytest.mark.parametrize("after", [False, True])
def test_a_run_killed_at_any_file_ends_with_the_same_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Killed at its first file, resumed and killed at the second one, …, each time before or after it is in place."""
    monkeypatch.setattr("unspeckle.training.progress.CHECKPOINT_INTERVAL", 0.0)
    changes = {"steps": 4, "precision": "float32"}
    assert run_training(options(folder, tmp_path / "uninterrupted", **changes)) == 0
    out, replace_path, places = tmp_path / "run", Path.replace, list[str]()
    for death in range(1, 30):
        count = [0]

        def replace(self: Path, target: Path, count: list[int] = count, death: int = death) -> Path:
            count[0] += 1
            if count[0] == death:
                places.append(target.name)
                if after:
                    replace_path(self, target)
                raise Killed
            return replace_path(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            try:
                code = run_training(options(folder, out, **changes))
            except Killed:
                continue
        break
    assert code == 0 and len(places) >= 4
    assert load(out).hash == load(tmp_path / "uninterrupted").hash
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 4
    assert (out / "samples" / "step-00000004.png").exists()


@pytest.mark.parametrize("own", [True, False])
def test_a_run_without_its_autoencoder_is_not_continued(
    folder: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    changes = {"steps": 4} if own else {"space": None, "preset": None, "from_model": trained_run, "steps": 3}
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert run_training(options(folder, out, **changes)) == 130
    shutil.move(out / AUTOENCODER_FOLDER, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{out / AUTOENCODER_FOLDER}: the autoencoder .* is gone; put it back"):
        run_training(options(folder, out, **changes))
    shutil.rmtree(out / AUTOENCODER_FOLDER, ignore_errors=True)
    shutil.move(tmp_path / "elsewhere", out / AUTOENCODER_FOLDER)
    assert run_training(options(folder, out, **changes)) == 0


def test_a_model_that_changed_before_the_first_step_is_refused(
    folder: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = tmp_path / "model.safetensors", tmp_path / "run"
    shutil.copy(trained_run / "model.safetensors", model)
    changes = options(folder, out, space=None, preset=None, from_model=model, steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(train_command, "save_or_restore_autoencoder", lambda *rest, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_training(changes)
    save_random_model(tmp_path).replace(model)
    with pytest.raises(InputError, match=f"--from {model}: changed since"):
        run_training(changes)


@pytest.mark.parametrize(
    ("size", "preset", "space"),
    [
        ((64, 64), None, "latents"),
        ((96, 64), None, "latents"),
        ((136, 136), None, "pixels"),
        ((200, 200), None, "pixels"),
        ((272, 272), None, "pixels"),
        ((144, 144), None, "latents"),
        ((144, 144), "base", "pixels"),
        ((256, 256), "large", "latents"),
        ((32, 32), None, "pixels"),
    ],
)
def test_latents_are_the_default_only_where_a_network_fits_them(
    size: tuple[int, int], preset: str | None, space: str, folder: Path
) -> None:
    changes = options(folder, Path("run"), space=None, preset=preset, steps=None, seconds=3600.0)
    assert choose_space(changes, size) == space
    names = [preset] if preset else UNET_PRESETS
    autoencoder = (
        LatentAutoencoder(LatentAutoencoderConfig())
        if space == "latents"
        else PixelAutoencoder(PixelAutoencoderConfig())
    )
    networks = [network_config_for(PRESETS[name], size, autoencoder) for name in names]
    assert any(
        side % (network.size_multiple * autoencoder.downsampling_factor) == 0
        for network in networks
        for side in size[:1]
    )


def test_an_image_has_the_size_of_the_request(trained_run: Path) -> None:
    assert [p.size for p in draw(load(trained_run), Request("a disc", steps=2, size=(48, 32)))] == [(48, 32)]


def test_space_and_from_exclude_each_other(folder: Path, trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--space and --from"):
        run_training(options(folder, tmp_path / "run", preset=None, from_model=trained_run))
    with pytest.raises(InputError, match="--space fourier: unknown"):
        run_training(options(folder, tmp_path / "run", space="fourier"))


def test_a_factor_needs_as_many_widths() -> None:
    with pytest.raises(ValueError, match="factor 8"):
        LatentAutoencoder(LatentAutoencoderConfig(downsampling_factor=8, widths=(8, 8)))
