"""A run gives the same weights, bit for bit, however it is interrupted, and whichever version began it."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from training_runs import (
    TYPED_OPTIONS,
    final_tensors,
    interrupt_at,
    rewrite_as_version_0_1,
    tensors_equal,
    train_options,
)
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.training import checkpoint
from unspeckle.training.plan import Plan
from unspeckle.training.plan_file import PLAN_FILE, load_plan
from unspeckle.training.train_command import run_training


def test_an_interrupted_run_gives_the_same_weights(
    color_folder: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for last_step in (3, 9):
        with monkeypatch.context() as patch:
            interrupt_at(patch, last_step)
            assert run_training(train_options(color_folder, run)) == 130
        saved = checkpoint.load_latest_checkpoint(run)
        assert saved is not None and saved.step == last_step
        assert not (run / "model.safetensors").exists()
    assert run_training(train_options(color_folder, run)) == 0
    assert tensors_equal(final_tensors(run), final_tensors(finished_run))


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"precision": "bfloat16", "preset": "t-nano"},
        pytest.param({"precision": "bfloat16", "compile": True}, marks=pytest.mark.slow),
        pytest.param({"precision": "bfloat16", "compile": True, "preset": "t-nano"}, marks=pytest.mark.slow),
    ],
    ids=["bfloat16", "transformer", "compiled", "transformer compiled"],
)
def test_an_interrupted_run_gives_the_same_weights_in_every_kind_of_step(
    color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    assert run_training(train_options(color_folder, uninterrupted, **changes)) == 0
    plan = load_plan(uninterrupted, Plan)
    assert plan is not None and plan.compute.compile == ("compile" in changes)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert run_training(train_options(color_folder, run, **changes)) == 130
    assert run_training(train_options(color_folder, run, **changes)) == 0
    assert tensors_equal(final_tensors(run), final_tensors(uninterrupted))


def test_a_killed_run_gives_the_same_weights(color_folder: Path, finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Every step leaves a checkpoint; steps after the first one are slow, so that the process is killed between them.
    program = (
        "import sys, time; from pathlib import Path; from unspeckle.training import progress, train_command\n"
        "from unspeckle.training.options import TrainOptions\n"
        "from unspeckle.training.text_to_image_updater import TextToImageUpdater\n"
        "loss, folder, run = TextToImageUpdater.loss, Path(sys.argv[1]), Path(sys.argv[2])\n"
        "progress.CHECKPOINT_INTERVAL = 0\n"
        "TextToImageUpdater.loss = lambda *args: time.sleep(0.3 * (run / 'checkpoints').exists()) or loss(*args)\n"
        "train_command.run_training(TrainOptions(folder, run, steps=12, size='16', preset='nano', batch_size=8,"
        " quiet=True, precision='float32'))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(color_folder), str(run)])
    deadline = time.monotonic() + 60
    while len(list((run / "checkpoints").glob("step-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (run / "model.safetensors").exists()
    assert run_training(train_options(color_folder, run)) == 0
    assert tensors_equal(final_tensors(run), final_tensors(finished_run))


def test_a_run_without_memory_for_a_step_can_be_continued(
    color_folder: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from unspeckle.training import progress
    from unspeckle.training.text_to_image_updater import TextToImageUpdater

    run, loss = tmp_path / "run", TextToImageUpdater.loss

    def loss_without_memory(self: TextToImageUpdater, batch: Any, step: int) -> torch.Tensor:
        if step == 5:
            torch.empty(2**55)
        return loss(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(TextToImageUpdater, "loss", loss_without_memory)
        patch.setattr(progress, "CHECKPOINT_INTERVAL", 0.0)
        assert run_training(train_options(color_folder, run)) == 1
    error = capsys.readouterr().err.strip()
    assert "step 5: no memory left" in error and "--batch-size 4" in error and len(error.splitlines()) == 1
    assert run_training(train_options(color_folder, run)) == 0
    assert tensors_equal(final_tensors(run), final_tensors(finished_run))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_of_version_0_1_is_continued(
    color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """With AdamW and, in bfloat16, with Muon."""
    options = {"precision": precision, "license": "CC0-1.0"}
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    assert run_training(train_options(color_folder, uninterrupted, **options)) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        assert run_training(train_options(color_folder, run, **options)) == 130
    plan = load_plan(run, Plan)
    rewrite_as_version_0_1(run)
    old_plan = json.loads((run / PLAN_FILE).read_text())
    assert old_plan["batch"] == 8 and old_plan["asked"]["licence"] == "CC0-1.0" and "width" in old_plan["network"]
    names = set(safe_open(run / "checkpoints/step-00000007.safetensors", framework="pt").keys())
    assert "weights.text.token.weight" in names and "average-0.05.network.enter.weight" in names
    assert load_plan(run, Plan) == plan
    with pytest.raises(InputError, match="--batch-size 8, not with --batch-size 4"):
        run_training(train_options(color_folder, run, batch_size=4, **options))
    assert run_training(train_options(color_folder, run, **options)) == 0
    assert tensors_equal(final_tensors(run), final_tensors(uninterrupted))


def test_a_run_of_version_0_1_with_an_autoencoder_is_continued(
    color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while its autoencoder was trained."""
    from unspeckle.training.autoencoder_updater import AutoencoderUpdater

    options = {"space": "latents", "size": "32", "steps": 20}
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    assert run_training(train_options(color_folder, uninterrupted, **options)) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, AutoencoderUpdater)
        assert run_training(train_options(color_folder, run, **options)) == 130
    plan = load_plan(run, Plan)
    rewrite_as_version_0_1(run)
    rewrite_as_version_0_1(run / "autoencoder", "autoencoder")
    assert load_plan(run, Plan) == plan
    assert run_training(train_options(color_folder, run, **options)) == 0
    assert tensors_equal(final_tensors(run), final_tensors(uninterrupted))


# What the first plans did not have, and the options that `train` did not have then
NEW_PLAN_FIELDS = ("distribution", "weight", "gamma", "work", "peak", "mfu", "balance", "encode_once")
NEW_OPTIONS = ("optimizer", "learning_rate", "licence", "balance")


def test_a_plan_of_version_0_1_without_newer_fields_is_continued(
    color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    # As all were balanced then
    options = train_options(color_folder, uninterrupted, balance=0.0)
    assert run_training(options) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert run_training(train_options(color_folder, run, balance=0.0)) == 130
    rewrite_as_version_0_1(run)
    plan = json.loads((run / PLAN_FILE).read_text())
    plan = {name: value for name, value in plan.items() if name not in NEW_PLAN_FIELDS}
    plan["asked"] = {name: value for name, value in plan["asked"].items() if name not in NEW_OPTIONS}
    (run / PLAN_FILE).write_text(json.dumps(plan))
    assert run_training(train_options(color_folder, run)) == 0
    assert tensors_equal(final_tensors(run), final_tensors(uninterrupted))


def test_a_log_of_version_0_1_is_continued(
    color_folder: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert run_training(train_options(color_folder, run)) == 130
    old_record = {"time": 1.0, "step": 2, "pictures": 16, "norm": 0.5, "rate": 7.0, "skipped": 0.0, "words": True}
    (run / "log.jsonl").write_text(json.dumps(old_record) + "\n" + json.dumps(old_record)[:20])
    assert run_training(train_options(color_folder, run)) == 0
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert records[0]["images_seen"] == 16 and records[0]["grad_norm"] == 0.5 and records[-1]["step"] == 12


def test_a_finished_run_says_so(color_folder: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_training(train_options(color_folder, finished_run, quiet=False)) == 0
    output = capsys.readouterr()
    assert output.out.strip() == str(finished_run / "model.safetensors")
    assert "this run is finished" in output.err


def test_changed_options_are_refused_by_name(color_folder: Path, finished_run: Path) -> None:
    with pytest.raises(InputError, match="--batch-size 8, not with --batch-size 4"):
        run_training(train_options(color_folder, finished_run, batch_size=4))
    with pytest.raises(InputError, match="began with no --flip, not with --no-flip"):
        run_training(train_options(color_folder, finished_run, flip=False))
    with pytest.raises(InputError, match="began with no --space, not with --space latents"):
        run_training(train_options(color_folder, finished_run, space="latents"))
    with pytest.raises(InputError, match="--seed"):
        run_training(train_options(color_folder, finished_run, plan_only=True, seed=9))


def test_a_changed_folder_is_refused(color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    run, other_folder = tmp_path / "run", tmp_path / "other"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        run_training(train_options(color_folder, run))
    for i in range(18):
        path = other_folder / ("red", "blue")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (200, i, 0)).save(path)
    with pytest.raises(InputError, match="have changed"):
        run_training(train_options(other_folder, run))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("plan.json", {"compute": {"threads": 0}}, "'compute.threads' must be at least 1, not 0"),
        ("plan.json", {"work": {"steps": -3}}, "'work.steps' must be at least 1"),
        ("plan.json", {"compute": {"device": "cuda:77"}}, "began on cuda:77, which is not here"),
        ("plan.json", {"work": {"batch_size": "many"}}, "field 'batch_size'"),
        ("plan.json", {"objective": {"gamma": None}}, "field 'gamma'"),
        ("plan.json", b"\xff", "plan.json: cannot be read"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json: cannot be read"),
        ("tokenizer.json", b"{}", "tokenizer.json: cannot be read"),
        ("tokenizer.json", None, "tokenizer.json: cannot be read"),
        ("checkpoints/step-00000012.safetensors", b"torn", "no checkpoint there can be read"),
    ],
)
def test_a_damaged_run_is_refused_by_file(
    file: str, content: Any, message: str, color_folder: Path, finished_run: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "model.safetensors").unlink()
    if isinstance(content, dict):
        values = json.loads((run / file).read_text())
        for section, fields in content.items():
            values[section] |= fields
        content = json.dumps(values).encode()
    (run / file).unlink() if content is None else (run / file).write_bytes(content)
    assert main(["train", str(color_folder), "--out", str(run), *TYPED_OPTIONS]) == 2
    output = capsys.readouterr()
    assert output.out == "" and len(output.err.splitlines()) == 1 and str(run) in output.err and message in output.err
