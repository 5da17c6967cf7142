"""Training on a folder: what the model learns, what RUN holds, and what the plan decides of the images."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from training_runs import COLORS, train_options
from unspeckle.corpus.captions import read_folder
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model import ModelCard
from unspeckle.model_io.loading import load
from unspeckle.training.inputs import TrainingInputs, load_inputs
from unspeckle.training.plan import Plan
from unspeckle.training.plan_file import load_plan
from unspeckle.training.run_folder import CAPTIONS_FILE
from unspeckle.training.text_to_image_task import VALIDATION_IMAGES, TextToImageTask
from unspeckle.training.train_command import run_training
from unspeckle.training.validation import ValidationLoss


def load_run_plan(run: Path) -> Plan:
    plan = load_plan(run, Plan)
    assert plan is not None
    return plan


def load_run_inputs(folder: Path, run: Path) -> TrainingInputs:
    """What a RUN was trained from."""
    return load_inputs(read_folder(folder), train_options(folder, run), load_run_plan(run), Console(quiet=True))


def read_log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def validation_loss(inputs: TrainingInputs, plan: Plan) -> ValidationLoss:
    """That by which a run is validated."""
    return ValidationLoss(
        inputs.corpus.validation, inputs.tokenizer, inputs.autoencoder, plan.objective, device=torch.device("cpu"),
        max_images=VALIDATION_IMAGES,
    )  # fmt: skip


def test_the_model_learns_which_color_a_word_means(color_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_training(train_options(color_folder, run, steps=100, batch_size=16, precision=None)) == 0
    model = load(run)
    for name in COLORS:
        image = draw(model, Request(f"a photo of {name}", steps=12, guidance_scale=2.0))[0]
        mean = np.asarray(image, np.float64).mean((0, 1))
        nearest = min(COLORS, key=lambda other: float(np.abs(mean - COLORS[other]).sum()))
        assert nearest == name, (name, mean)


def test_a_transformer_learns_too(color_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = train_options(color_folder, run, steps=60, batch_size=32, precision=None, preset="t-nano")
    assert run_training(options) == 0
    plan, inputs = load_run_plan(run), load_run_inputs(color_folder, run)
    updater = TextToImageTask(plan, run, inputs, ModelCard()).updater
    untrained_loss = validation_loss(inputs, plan)(updater.denoiser, updater.compute_modules.text_encoder).total
    assert read_log(run)[-1]["validation_loss"] < 0.5 * untrained_loss


def test_a_run_holds_what_its_description_says(finished_run: Path) -> None:
    assert load_run_plan(finished_run).work.steps == 12
    last_record = read_log(finished_run)[-1]
    assert last_record["step"] == 12 and last_record["images_seen"] == 96 and last_record["validation_loss"] > 0
    with Image.open(sorted((finished_run / "samples").glob("*.png"))[-1]) as grid:
        assert grid.size[0] % 16 == 0 and len(grid.getcolors(100_000)) > 10
    model = load(finished_run)
    assert model.card.size == (16, 16) and "red" in model.card.vocabulary
    assert str(finished_run) not in json.dumps(model.card.corpus) + model.card.recipe
    captions = (finished_run / CAPTIONS_FILE).read_text().splitlines()
    assert set(captions) == {f"a photo of a {name}" for name in COLORS}
    assert len(captions) == model.card.corpus["training"]


def test_the_model_has_the_weights_that_validate_best(color_folder: Path, finished_run: Path) -> None:
    plan, inputs = load_run_plan(finished_run), load_run_inputs(color_folder, finished_run)
    task = TextToImageTask(plan, finished_run, inputs, ModelCard())
    task.resume()
    losses, compute_loss = {}, validation_loss(inputs, plan)
    for name, tensors in task.candidate_weights().items():
        model = task.build_model(tensors)
        losses[name] = compute_loss(model.denoiser, model.text_encoder).total
    assert len(losses) == 3
    assert read_log(finished_run)[-1]["validation_loss"] == pytest.approx(min(losses.values()), rel=1e-6)
    assert load(finished_run).card.corpus["weights"] == min(losses, key=losses.__getitem__)


def test_training_continues_another_model_where_it_ended(
    color_folder: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert run_training(train_options(color_folder, run, steps=1, preset=None, from_model=finished_run)) == 0
    before, after = load_file(finished_run / "model.safetensors"), load_file(run / "model.safetensors")
    assert before.keys() == after.keys()
    # One step at the beginning of the warm-up
    assert 0 < max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-2


def test_the_plan_decides_how_often_rare_captions_are_shown(color_folder: Path, finished_run: Path) -> None:
    """All images but ten have the same caption."""
    plan = load_run_plan(finished_run).with_changes(work={"balance": 1.0})
    inputs = load_run_inputs(color_folder, finished_run)
    split = inputs.corpus.training
    captions = tuple(("common",) if i < len(split) - 10 else ("rare",) for i in range(len(split)))
    inputs = inputs._replace(corpus=replace(inputs.corpus, training=replace(split, captions=captions)))
    batches = TextToImageTask(plan, finished_run, inputs, ModelCard()).batches(0)
    shown = [caption for _ in range(20) for caption in next(batches).captions]
    assert shown.count("rare") == pytest.approx(len(shown) / 2, rel=0.15)


@pytest.mark.parametrize("flip", [False, True])
def test_the_plan_decides_whether_images_are_mirrored(color_folder: Path, finished_run: Path, flip: bool) -> None:
    plan = load_run_plan(finished_run).with_changes(work={"flip": flip})
    inputs = load_run_inputs(color_folder, finished_run)
    batches = TextToImageTask(plan, finished_run, inputs, ModelCard()).batches(0)
    shown = torch.cat([next(batches).images for _ in range(8)])
    split = inputs.corpus.training
    unmirrored = {image.numpy().tobytes() for image in split.center_crops(range(len(split)))}
    assert all(image.numpy().tobytes() in unmirrored for image in shown) is not flip


@pytest.mark.parametrize(
    "changes",
    [
        {"time_distribution": "edm", "mean": -0.5, "std": 1.2},
        {"loss_weighting": "min_snr"},
    ],
)
def test_the_plan_says_what_is_minimized(
    color_folder: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """A run is continued by the objective of its plan, to other weights and to another validation loss."""
    from training_runs import final_tensors, interrupt_at, tensors_equal
    from unspeckle.training.plan_file import save_plan

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert run_training(train_options(color_folder, run)) == 130
    save_plan(load_run_plan(run).with_changes(objective=changes), run)
    assert run_training(train_options(color_folder, run)) == 0
    changed, usual = final_tensors(run), final_tensors(finished_run)
    assert changed.keys() == usual.keys() and not tensors_equal(changed, usual)
    errors = [read_log(path)[-1]["validation_errors"] for path in (run, finished_run)]
    assert (errors[0].keys() == errors[1].keys()) is ("loss_weighting" in changes)
