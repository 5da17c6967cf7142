"""The learnt autoencoder: unit variance, a distance that is what it says, learning that can stop anywhere."""

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from unspeckle.training.planner import choose_space, network_config_for

from tiny_models import save_random_model
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load
from unspeckle.networks import LatentAutoencoder, LatentAutoencoderConfig, PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.presets import PRESETS, UNET_PRESETS
from unspeckle.training import autoencoder_task, checkpoint, command, measurement, optimizer
from unspeckle.training import plan as plans
from unspeckle.training.options import TrainOptions
from unspeckle.training.reconstruction_loss import laplacian_pyramid_loss


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of 32 × 32."""
    root = tmp_path_factory.mktemp("discs")
    for i, pixels in enumerate(discs(0)):
        Image.fromarray(pixels).save(root / f"{i}.png")
    return root


def discs(seed: int) -> list[np.ndarray]:
    """Each a disc of one colour on a ground of another."""
    rng, (rows, columns) = np.random.default_rng(seed), np.mgrid[:32, :32]
    middles, colours = rng.uniform(8, 24, (40, 2)), rng.integers(0, 256, (40, 2, 3))
    inside = [(rows - y) ** 2 + (columns - x) ** 2 < 64 for y, x in middles]
    return [np.where(i[..., None], *pair).astype(np.uint8) for i, pair in zip(inside, colours, strict=True)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in ("training", "latents"):  # how fast it is does not matter here
        real = getattr(measurement, name)
        monkeypatch.setattr(measurement, name, lambda *given, real=real: real(*given[:-1], 0.0))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def options(folder: Path, out: Path, **changes: object) -> TrainOptions:
    asked = TrainOptions(
        folder, out, steps=20, size="32", preset="nano", batch_size=8, quiet=True, caption="a disc", space="latents"
    )
    return replace(asked, **changes)


def pictures(seed: int) -> Tensor:
    return torch.from_numpy(np.stack(discs(seed))).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def learnt(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose autoencoder had 120 steps."""
    out = tmp_path_factory.mktemp("runs") / "learnt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr("unspeckle.training.planner.LATENT_SHARE", 6.0)
        assert command.run_training(options(folder, out)) == 0
    return out


def test_latents_have_mean_0_and_variance_1_over_what_they_learn_from(learnt: Path) -> None:
    x = load(learnt).autoencoder.encode(pictures(0))
    assert x.shape[1:] == (8, 8, 8)
    assert x.mean((0, 2, 3)).abs().max() < 0.1
    assert (x.var((0, 2, 3)) - 1).abs().max() < 0.2


def test_it_learns_to_give_back_pictures_that_it_never_saw(learnt: Path) -> None:
    autoencoder, unseen = load(learnt).autoencoder, pictures(1)
    error = (autoencoder.decode(autoencoder.encode(unseen)) - unseen).square().mean()
    assert error < 0.35 * unseen.var((2, 3)).mean()


def test_the_disk_that_a_run_takes_is_foreseen(folder: Path, tmp_path: Path) -> None:
    """Two checkpoints are left of each part, room for a third is wanted while it is written. With AdamW: Muon's take
    less."""
    run, once = tmp_path / "run", 0
    assert command.run_training(options(folder, run, steps=5, precision="float32")) == 0
    for part in (run, run / autoencoder_task.AUTOENCODER_FOLDER):
        once += sorted((part / "checkpoints").glob("step-*"))[-1].stat().st_size
    used = 3 * once + (run / "model.safetensors").stat().st_size
    assert plans.load_plan(run).disk_bytes == pytest.approx(used, rel=0.02)


def test_its_pace_is_its_own(learnt: Path, tmp_path: Path) -> None:
    """The words' steps are the network's: the autoencoder warms up once, falls once."""
    plan = replace(plans.load_plan(learnt), steps=20_000, latent_steps=4000, word_steps=3000)
    own = autoencoder_task.AutoencoderTask(plan, tmp_path, None, autoencoder_task.init_autoencoder(0))  # type: ignore[arg-type]
    pace = [optimizer.learning_rate_factor(step, own.plan) for step in range(1, 4001)]
    assert own.plan.steps == 4000 and pace[100:2400] == [1.0] * 2300 and pace == sorted(pace[:101]) + pace[101:]


def test_shifted_pictures_have_shifted_latents(learnt: Path) -> None:
    autoencoder = load(learnt).autoencoder
    torch.manual_seed(0)
    scene = torch.zeros(1, 3, 128, 128)
    scene[:, :, 56:72, 56:72] = torch.rand(1, 3, 16, 16)
    here, there = (autoencoder.encode(p) for p in (scene, scene.roll((8, -4), (2, 3))))
    assert torch.allclose(here.roll((2, -1), (2, 3))[..., 8:-8, 8:-8], there[..., 8:-8, 8:-8], atol=1e-4)


def test_the_distance_is_its_definition() -> None:
    torch.manual_seed(0)
    error = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    grey = error.view(2, 3, 8, 2, 8, 2).mean((3, 5))
    coarse = grey.view(2, 3, 4, 2, 4, 2).mean((3, 5))
    coarsest = coarse.view(2, 3, 2, 2, 2, 2).mean((3, 5))

    def up(x: Tensor) -> Tensor:
        """Bilinear, written out: a pixel takes 3/4 of its own place and 1/4 of the neighbour it leans to."""
        for axis in (2, 3):
            last = x.shape[axis] - 1
            before = x.index_select(axis, torch.arange(-1, last).clamp(min=0))
            after = x.index_select(axis, torch.arange(1, last + 2).clamp(max=last))
            x = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1).flatten(axis, axis + 1)
        return x

    bands = [error - up(grey), grey - up(coarse), coarse - up(coarsest)]
    wanted = sum(part.abs().mean() for part in (error, *bands, coarsest))
    assert torch.allclose(laplacian_pyramid_loss(error), wanted)
    assert laplacian_pyramid_loss(torch.zeros(1, 3, 16, 16)) == 0


@pytest.mark.parametrize(("precision", "often"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_stopped_in_either_part_and_resumed_is_bit_for_bit_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, often: bool
) -> None:
    """often: pictures are seen so often that they are encoded once."""
    monkeypatch.setattr("unspeckle.training.encoded_corpus.OFTEN", 1.0 if often else 100.0)
    monkeypatch.setattr("unspeckle.training.encoded_corpus.pays", lambda *measured: True)
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert command.run_training(options(folder, whole, precision=precision)) == 0
    assert plans.load_plan(whole).autoencoder_steps == 4 and plans.load_plan(whole).cache_latents == often
    for learner, last in (("autoencoder_task.LatentLearner", 2), ("learner.Learner", 7)):
        with monkeypatch.context() as patch:
            stop_in(patch, f"unspeckle.training.{learner}.step", last)
            assert command.run_training(options(folder, out, precision=precision)) == 130
        assert not (out / "model.safetensors").exists()
    assert checkpoint.latest_step(out / "autoencoder/checkpoints") == 4
    assert checkpoint.latest_step(out / "checkpoints") == 7
    assert command.run_training(options(folder, out, precision=precision)) == 0
    ours, theirs = load(out).state_dict(), load(whole).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and ours.keys() == theirs.keys()


def stop_in(monkeypatch: pytest.MonkeyPatch, method: str, steps: int) -> None:
    """Ctrl-C, as it were, during the given step of a learner."""
    where, _, name = method.rpartition(".")
    module, _, kind = where.rpartition(".")
    learner = getattr(__import__(module, fromlist=[kind]), kind)
    real = getattr(learner, name)

    def step(self: object, batch: object, number: int) -> object:
        if number == steps:
            signal.raise_signal(signal.SIGINT)
        return real(self, batch, number)

    monkeypatch.setattr(learner, name, step)


def test_another_model_goes_on_with_its_own_autoencoder(folder: Path, learnt: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = options(folder, out, space=None, preset=None, from_model=learnt, steps=3)
    assert command.run_training(asked) == 0
    before, after = load(learnt), load(out)
    kept = [name for name in before.state_dict() if name.startswith("autoencoder.")]
    assert kept and all(torch.equal(before.state_dict()[name], after.state_dict()[name]) for name in kept)
    assert any(not torch.equal(before.state_dict()[name], after.state_dict()[name]) for name in before.state_dict())


def test_an_autoencoder_is_never_taken_unlearnt(
    folder: Path, learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever dies between the plan and the autoencoder's keeping, the same command ends with the same model."""
    asked = {"space": None, "preset": None, "from_model": learnt, "steps": 3, "precision": "float32"}  # not measured
    assert command.run_training(options(folder, tmp_path / "whole", **asked)) == 0
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(autoencoder_task, "settle", lambda *rest, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command.run_training(options(folder, out, **asked))
    assert (out / "plan.json").exists() and not (out / autoencoder_task.AUTOENCODER_FOLDER).exists()
    assert command.run_training(options(folder, out, **asked)) == 0
    assert load(out).hash == load(tmp_path / "whole").hash


class Killed(BaseException):
    """As it were: nothing in the package catches it."""


@pytest.mark.parametrize("after", [False, True])
def test_whichever_file_a_run_dies_at_it_ends_with_the_same_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Killed at its first file, at the second one of what is left, at the third, … before or after it is in place."""
    monkeypatch.setattr("unspeckle.training.stage.SAVE_EVERY", 0.0)
    asked = {"steps": 4, "precision": "float32"}
    assert command.run_training(options(folder, tmp_path / "whole", **asked)) == 0
    out, real, places = tmp_path / "run", Path.replace, list[str]()
    for death in range(1, 30):
        count = [0]

        def replace(self: Path, target: Path, count: list[int] = count, death: int = death) -> Path:
            count[0] += 1
            if count[0] == death:
                places.append(target.name)
                if after:
                    real(self, target)
                raise Killed
            return real(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            try:
                code = command.run_training(options(folder, out, **asked))
            except Killed:
                continue
        break
    assert code == 0 and len(places) >= 4
    assert load(out).hash == load(tmp_path / "whole").hash
    told = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert told == sorted(told) and told[-1] == 4
    assert (out / "samples" / "step-00000004.png").exists()


@pytest.mark.parametrize("own", [True, False])
def test_a_run_without_its_autoencoder_does_not_go_on(
    folder: Path, learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    asked = {"steps": 4} if own else {"space": None, "preset": None, "from_model": learnt, "steps": 3}
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_in(patch, "unspeckle.training.master_weights.Learner.step", 2)
        assert command.run_training(options(folder, out, **asked)) == 130
    shutil.move(out / autoencoder_task.AUTOENCODER_FOLDER, tmp_path / "elsewhere")
    with pytest.raises(
        InputError, match=f"{out / autoencoder_task.AUTOENCODER_FOLDER}: the autoencoder .* is gone; put it back"
    ):
        command.run_training(options(folder, out, **asked))
    shutil.rmtree(out / autoencoder_task.AUTOENCODER_FOLDER, ignore_errors=True)
    shutil.move(tmp_path / "elsewhere", out / autoencoder_task.AUTOENCODER_FOLDER)
    assert command.run_training(options(folder, out, **asked)) == 0


def test_a_model_that_changed_before_the_first_step_is_refused(
    folder: Path, learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = tmp_path / "model.safetensors", tmp_path / "run"
    shutil.copy(learnt / "model.safetensors", model)
    asked = options(folder, out, space=None, preset=None, from_model=model, steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(autoencoder_task, "settle", lambda *rest, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command.run_training(asked)
    save_random_model(tmp_path).replace(model)
    with pytest.raises(InputError, match=f"--from {model}: changed since"):
        command.run_training(asked)


@pytest.mark.parametrize(
    ("size", "preset", "where"),
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
    size: tuple[int, int], preset: str | None, where: str, folder: Path
) -> None:
    asked = options(folder, Path("run"), space=None, preset=preset, steps=None, seconds=3600.0)
    assert choose_space(asked, size) == where
    names = [preset] if preset else UNET_PRESETS
    autoencoder = (
        LatentAutoencoder(LatentAutoencoderConfig())
        if where == "latents"
        else PixelAutoencoder(PixelAutoencoderConfig())
    )
    networks = [network_config_for(PRESETS[name], size, autoencoder) for name in names]
    assert any(
        side % (network.size_multiple * autoencoder.downsampling_factor) == 0
        for network in networks
        for side in size[:1]
    )


def test_a_drawing_is_as_large_as_asked(learnt: Path) -> None:
    assert [p.size for p in draw(load(learnt), Request("a disc", steps=2, size=(48, 32)))] == [(48, 32)]


def test_space_and_from_exclude_each_other(folder: Path, learnt: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--space and --from"):
        command.run_training(options(folder, tmp_path / "run", preset=None, from_model=learnt))
    with pytest.raises(InputError, match="--space fourier: unknown"):
        command.run_training(options(folder, tmp_path / "run", space="fourier"))


def test_a_factor_wants_as_many_widths() -> None:
    with pytest.raises(ValueError, match="factor 8"):
        LatentAutoencoder(LatentAutoencoderConfig(downsampling_factor=8, widths=(8, 8)))
