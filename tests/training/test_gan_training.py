"""Training a GAN: what it learns, that it resumes to the bit, and what its model can be asked for."""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import unspeckle
from training_runs import final_tensors, interrupt_at, tensors_equal
from unspeckle.cli import main
from unspeckle.corpus.batches import batches
from unspeckle.model_io.loading import load
from unspeckle.training import gan_planner
from unspeckle.training.gan_command import GANCommand
from unspeckle.training.gan_updater import GANUpdater
from unspeckle.training.gan_validation import energy_distance, energy_distances
from unspeckle.training.options import GANOptions
from unspeckle.training.plan import GANPlan

TYPED = ["--kind", "gan", "--size", "16", "--batch-size", "8", "--steps", "12", "--quiet"]


def gan_options(folder: Path, out: Path, **changes: Any) -> GANOptions:
    return GANOptions(
        **{"folder": folder, "out": out, "steps": 12, "size": "16", "batch_size": 8, "quiet": True, **changes}
    )


def read_log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def small_networks() -> Iterator[None]:
    """Fewer channels, in all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan_planner, "FINEST_WIDTH", 16)
        patch.setattr(gan_planner, "MAX_WIDTH", 32)
        yield


@pytest.fixture(scope="module")
def gan_run(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, without interruption."""
    run = tmp_path_factory.mktemp("gan") / "run"
    assert main(["train", str(color_folder), "--out", str(run), *TYPED]) == 0
    return run


def make_updater(folder: Path, run: Path, **changes: Any) -> tuple[GANUpdater, Any]:
    """An updater, and the batches of its plan."""
    command = GANCommand(gan_options(folder, run, **changes))
    command.open_inputs(None)
    command.load_inputs(None)
    plan = command.make_plan()
    assert isinstance(plan, GANPlan)
    plan = plan.with_changes(optimizer={"warmup_steps": 1, "learning_rate": 1e-3})
    updater = GANUpdater(plan, command.inputs.tokenizer, command.inputs.autoencoder)
    return updater, batches(command.inputs.corpus.training, plan.work.batch_size, seed=0, flip=False)


def test_a_step_updates_the_discriminator_and_then_the_generator(color_folder: Path, tmp_path: Path) -> None:
    updater, all_batches = make_updater(color_folder, tmp_path / "run")
    moved = []
    for update in updater.updates(next(all_batches), 1):
        other = updater.discriminator_weights if update.weights is updater.weights else updater.weights
        update.weights.zero_grad()
        other.zero_grad()
        update.loss.backward()
        update.weights.take_gradients()
        # The one that is not updated gets no gradient.
        assert all(p.grad is None for p in other.parameters())
        assert any(p.grad is not None and p.grad.any() for p in update.weights.parameters())
        moved.append("generator" if update.weights is updater.weights else "discriminator")
    assert moved == ["discriminator", "generator"]


def test_the_run_holds_a_model_that_draws_in_one_step(gan_run: Path) -> None:
    model = load(gan_run)
    assert model.card.steps == 1 and model.card.size == (16, 16)
    [image], [same] = unspeckle.draw(model, "red", seed=3), unspeckle.draw(model, "red", seed=3, steps=1)
    assert image.size == (16, 16) and image.tobytes() == same.tobytes()
    assert image.tobytes() != unspeckle.draw(model, "red", seed=4)[0].tobytes()
    log = read_log(gan_run)
    assert log[0]["stage"] == "GAN" and {"loss", "generator_loss"} <= log[0].keys()
    assert set(log[-1]["validation_errors"]) == {"2 px", "4 px", "8 px", "16 px"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 4}, "^steps 4: this model is a GAN, which draws in one step; choose 1"),
        ({"guidance_scale": 5.0}, "^guidance_scale 5.0: this model is a GAN"),
        ({"negative_prompt": "blue"}, "^negative_prompt: this model is a GAN"),
        ({"guidance_rescale": 0.5}, "^guidance_rescale: this model is a GAN"),
        ({"hires_size": 32}, "^hires_size: this model is a GAN, which draws from noise"),
        ({"size": 32}, "^size 32x32: this model draws 16x16 only"),
    ],
)
def test_what_a_gan_cannot_draw_is_said(gan_run: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(unspeckle.InputError, match=message):
        unspeckle.draw(load(gan_run), "red", **options)


def test_an_interrupted_run_ends_as_one_that_was_not(
    color_folder: Path, gan_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", str(color_folder), "--out", str(tmp_path / "run"), *TYPED]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, GANUpdater)
        assert main(command) == 130
    assert main(command) == 0
    assert tensors_equal(final_tensors(tmp_path / "run"), final_tensors(gan_run))


def test_a_killed_run_ends_as_one_that_was_not(color_folder: Path, gan_run: Path, tmp_path: Path) -> None:
    run, script = tmp_path / "run", "import unspeckle.training.progress as p; p.CHECKPOINT_INTERVAL = 0.0\n"
    script += "from unspeckle.training import gan_planner as g; g.FINEST_WIDTH, g.MAX_WIDTH = 16, 32\n"
    script += f"from unspeckle.cli import main; main({['train', str(color_folder), '--out', str(run), *TYPED]!r})"
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 120
    while not list((run / "checkpoints").glob("step-*3.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(["train", str(color_folder), "--out", str(run), *TYPED]) == 0
    assert tensors_equal(final_tensors(run), final_tensors(gan_run))


def test_what_it_draws_comes_nearer_to_held_out_images_than_their_mean(color_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", str(color_folder), "--out", str(run), "--kind", "gan", "--size", "16", "--batch-size", "16"]
    assert main([*command, "--steps", "150", "--learning-rate", "1e-3", "--quiet"]) == 0
    assert read_log(run)[-1]["validation_loss"] < 0.5


def test_an_unconditional_gan_reads_no_words(color_folder: Path, tmp_path: Path) -> None:
    command = ["train", str(color_folder), "--out", str(tmp_path / "run"), *TYPED, "--unconditional"]
    assert main(command) == 0
    model = load(tmp_path / "run")
    # Its text encoder has read nothing but the empty caption.
    assert model.card.vocabulary == () and unspeckle.draw(model, "")[0].size == (16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "gam"], "--kind gam: unknown; choose one of diffusion, gan, clip"),
        (["--kind", "gan", "--loss", "hinge"], "--loss hinge: unknown; choose relativistic or original"),
        (["--loss", "original"], "--loss: goes with --kind gan or --kind clip only"),
        (["--unconditional"], "--unconditional: goes with --kind gan only"),
        (["--kind", "gan", "--preset", "tiny"], "--preset: does not go with --kind gan"),
        (["--kind", "gan", "--space", "latents"], "--space: does not go with --kind gan"),
        (["--kind", "gan", "--precision", "bfloat16"], "--precision bfloat16: a GAN is trained in float32"),
        (["--kind", "gan", "--lora"], "--lora: does not go with --kind gan"),
        (["--kind", "gan", "--size", "17"], "--size 17x17: sides must be multiples of 4 here, at least 16; try 16x16"),
    ],
)
def test_options_that_do_not_go_with_a_gan(
    color_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    command = ["train", str(color_folder), "--out", str(tmp_path / "run"), "--steps", "5", "--quiet"]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_run_of_another_kind_is_not_continued(
    color_folder: Path, gan_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(color_folder), "--out", str(gan_run), "--size", "16", "--steps", "12"]) == 2
    assert "is the plan of a run of `train --kind gan`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "widths", "coarsest"),
    [
        ((64, 64), (32, 32, 32, 32, 16), (4, 4)),
        ((128, 128), (32, 32, 32, 32, 32, 16), (4, 4)),
        ((96, 64), (32, 32, 32, 32, 16), (6, 4)),
        ((16, 16), (32, 32, 16), (4, 4)),
        ((20, 20), (32, 32, 16), (5, 5)),
        ((48, 48), (32, 32, 32, 16), (6, 6)),
    ],
)
def test_networks_fit_the_size(size: tuple[int, int], widths: tuple[int, ...], coarsest: tuple[int, int]) -> None:
    config = gan_planner.generator_config(size)
    assert config.widths == widths and config.coarsest_size == coarsest


def test_the_energy_distance_is_that_of_its_definition() -> None:
    x, y = torch.randn(5, 3), torch.randn(4, 3) + 1
    mean = lambda pairs: sum(float((a - b).norm()) for a, b in pairs) / len(pairs)  # noqa: E731
    expected = 2 * mean(list(itertools.product(x, y)))
    expected -= mean(list(itertools.permutations(x, 2))) + mean(list(itertools.permutations(y, 2)))
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-5)


def test_energy_distances_of_the_same_images_are_near_0_and_those_of_the_mean_image_are_1() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(600, 3, 16, 16, generator=generator).cumsum(3) / 4
    same = energy_distances(images[:300], images[300:])
    assert all(abs(error) < 0.02 for error in same.relative_errors) and same.levels == ("2 px", "4 px", "8 px", "16 px")
    mean = energy_distances(images[300:].mean(0, keepdim=True).expand(9, -1, -1, -1), images[300:])
    assert mean.relative_errors == pytest.approx([1.0] * 4, rel=1e-3)
