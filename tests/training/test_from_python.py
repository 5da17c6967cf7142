"""Training from Python: reports that show themselves, and runs that are left and resumed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import unspeckle
from tiny_models import model_with_student
from training_runs import final_tensors, tensors_equal
from unspeckle.model_io.model_file import save
from unspeckle.training import checkpoint, command
from unspeckle.training.progress import ProgressReport

OPTIONS: dict[str, Any] = {"size": 16, "preset": "nano", "batch_size": 8, "precision": "float32", "quiet": True}


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of each step."""
    monkeypatch.setattr("unspeckle.training.progress.REPORT_INTERVAL", 0.0)


def test_a_run_that_is_left_goes_on_and_ends_as_one_that_was_not(
    color_folder: Path, finished_run: Path, tmp_path: Path, every_step: None
) -> None:
    run = tmp_path / "run"

    def reports() -> Iterator[ProgressReport]:
        return unspeckle.train(str(color_folder), str(run), steps=12, **OPTIONS)

    for report in reports():
        if report.step == 5:
            break
    assert checkpoint.latest_step(run) == 5 and not (run / "model.safetensors").exists()
    assert [report.step for report in reports()] == [6, 7, 8, 9, 10, 11, 12, 12]
    assert tensors_equal(final_tensors(run), final_tensors(finished_run))
    # A finished run says so, and has nothing left to report.
    assert list(reports()) == []


def test_any_report_shows_how_far_training_is_and_what_it_draws(
    color_folder: Path, tmp_path: Path, every_step: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspeckle.training.progress.VALIDATION_INTERVAL", 0.0)
    monkeypatch.setattr("unspeckle.training.progress.VALIDATION_TIME_RATIO", 0)
    reports = list(unspeckle.train(color_folder, tmp_path / "run", steps="4", **OPTIONS))
    page = reports[2]._repr_html_()
    assert '<progress value="3" max="4"' in page and "images/s" in page and "validation loss" in page
    assert re.search(r'<img src="data:image/webp;base64,UklGR', page)
    # The last one is of the model that was saved.
    assert reports[-1].saved_path == tmp_path / "run" / "model.safetensors"
    assert "step 4 of 4</div>" in reports[-1]._repr_html_()


def test_a_budget_is_a_time(color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: list[float] = []

    def reports(self: command.TrainingCommand[Any, Any]) -> Iterator[ProgressReport]:
        seconds.append(self.options.seconds)
        return iter(())

    monkeypatch.setattr(command.TrainingCommand, "reports", reports)
    monkeypatch.setattr("unspeckle.training.from_python.keep_latest", lambda reports: reports)
    unspeckle.train(color_folder, tmp_path / "run", budget="1h30m")
    unspeckle.distil(color_folder, tmp_path / "few", "90s")
    assert seconds == [5400, 90]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, 'exactly one of budget="30m"'),
        ({"budget": "30m", "steps": 5}, "exactly one of"),
        ({"budget": "30"}, "^budget 30: has no unit"),
        ({"steps": 5, "learn_rate": 1e-3}, "^learn_rate: there is no such option; the nearest is `learning_rate`"),
        ({"steps": 5, "plan_only": True}, "^plan_only: there is no such option"),
        ({"steps": "5x"}, "^steps '5x': is not a number"),
        ({"steps": 5, "lora": True}, "^from_model: a LoRA needs the Stable Diffusion checkpoint"),
        ({"steps": 5, "lora": True, "from_model": "x", "preset": "nano"}, "^preset: there is no such option"),
    ],
)
def test_options_that_cannot_be_are_named_as_python_spells_them(
    color_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(unspeckle.InputError, match=message):
        unspeckle.train(color_folder, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_distil_from_python(tmp_path: Path, every_step: None) -> None:
    save(model_with_student(), tmp_path / "model.safetensors")
    (tmp_path / "captions.txt").write_text("a red dot\na blue dot\n")
    reports = list(unspeckle.distil(tmp_path / "model.safetensors", tmp_path / "few", steps=2, quiet=True))
    assert reports[-1].saved_path == tmp_path / "few" / "model.safetensors"
    assert unspeckle.load(tmp_path / "few").student is not None


def test_a_plan_says_what_training_would_do_and_writes_nothing(color_folder: Path, tmp_path: Path) -> None:
    summary = unspeckle.plan(color_folder, tmp_path / "run", steps=7, **OPTIONS)
    assert not (tmp_path / "run").exists()
    assert summary.plan.work.steps == 7 and summary.plan.measured.images_per_second > 0
    page = summary._repr_html_()
    assert "nano" in page and "56 in 7 steps of 8" in page and "GiB at the peak" in page
    # Nor does it change a run that is there.
    list(unspeckle.train(color_folder, tmp_path / "run", steps=3, **OPTIONS))
    files = sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "run").rglob("*"))
    assert unspeckle.plan(color_folder, tmp_path / "run", steps=3, **OPTIONS).plan.work.steps == 3
    assert files == sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "run").rglob("*"))


def test_a_gan_is_trained_from_python(color_folder: Path, tmp_path: Path, every_step: None) -> None:
    options = {"size": 16, "batch_size": 4, "quiet": True}
    reports = list(unspeckle.train(color_folder, tmp_path / "run", kind="gan", loss="original", steps=2, **options))
    assert "generator" in reports[0].other_losses
    assert unspeckle.draw(unspeckle.load(tmp_path / "run"), "red")[0].size == (16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "vae"}, "^kind 'vae': cannot be trained; choose one of diffusion, gan, clip"),
        ({"kind": "gan", "lora": True, "from_model": "x"}, "^kind 'gan': cannot be trained; choose diffusion"),
    ],
)
def test_kinds_that_cannot_be_trained(
    color_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(unspeckle.InputError, match=message):
        unspeckle.train(color_folder, tmp_path / "run", steps=2, **options)


def test_the_machine_says_what_it_is() -> None:
    machine = unspeckle.machine()
    assert machine.device in ("cpu", "cuda") and machine.name and machine.peak_flops > 1e8
    assert machine.free_memory_bytes is None or machine.free_memory_bytes > 2**20
    page = machine._repr_html_()
    assert "TFLOP/s measured" in page and machine.precision in page and f"{machine.threads}</td>" in page


def test_a_folder_is_checked_from_python(color_folder: Path, tmp_path: Path) -> None:
    assert not unspeckle.check(color_folder, 8)
    (tmp_path / "a.png").write_bytes(b"<html>")
    (tmp_path / "a.txt").write_text("a <b>frog</b>")
    report = unspeckle.check(tmp_path)
    assert report and "1 unreadable" in report._repr_html_() and "&lt;" not in report._repr_html_()[:20]
