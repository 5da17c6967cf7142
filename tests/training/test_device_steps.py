"""The statistics of steps on a GPU are read only now and then: nothing else may change by that.

The CPU plays the GPU here.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training_runs import final_tensors, interrupt_at, is_measuring, tensors_equal, train_options
from unspeckle.training import checkpoint, progress
from unspeckle.training.muon import Muon
from unspeckle.training.optimizer import Optimizer
from unspeckle.training.progress import StepNumbers, StepStats, read_step_stats
from unspeckle.training.text_to_image_updater import TextToImageUpdater
from unspeckle.training.train_command import run_training


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every optimizer works as on a GPU; the list says of how many steps statistics were read at once."""
    counts: list[int] = []

    def read(stats: Sequence[StepStats]) -> list[StepNumbers]:
        counts.append(len(stats))
        return read_step_stats(stats)

    monkeypatch.setattr(Optimizer, "is_asynchronous", property(lambda self: True, lambda self, value: None), False)
    monkeypatch.setattr(progress, "read_step_stats", read)
    monkeypatch.setattr(progress, "REPORT_INTERVAL", 1e9)
    monkeypatch.setattr(progress, "STATS_READ_STEPS", 5)
    return counts


def test_weights_are_the_same_and_statistics_are_read_seldom(
    color_folder: Path, finished_run: Path, tmp_path: Path, reads: list[int]
) -> None:
    assert run_training(train_options(color_folder, tmp_path / "run")) == 0
    state, expected = final_tensors(tmp_path / "run"), final_tensors(finished_run)
    # Muon's updates are rounded elsewhere.
    assert state.keys() == expected.keys() and reads == [5, 5, 2]
    assert all(torch.allclose(state[name], expected[name], 1e-3, 1e-4) for name in state)


def test_muon_updates_the_same_but_for_rounding_or_not_at_all() -> None:
    torch.manual_seed(0)
    initial = [torch.randn(shape) for shape in [(6, 4), (4, 6), (6, 4), (5, 3, 3, 3)]]

    def make_muon() -> Muon:
        module = torch.nn.ParameterList([tensor.clone() for tensor in initial]).to(memory_format=torch.channels_last)
        return Muon(list(module), 0.1)

    synchronous, asynchronous = make_muon(), make_muon()
    for is_finite in (True, True, False, True):
        for parameter, same in zip(synchronous.parameters, asynchronous.parameters, strict=True):
            same.grad = torch.randn_like(parameter) * (1 if is_finite else math.nan)
            parameter.grad = same.grad.clone()
        if is_finite:
            synchronous.step(0.1)
        asynchronous.step(0.1, torch.tensor(is_finite))
        assert all(torch.equal(a, b) for a, b in zip(synchronous.momenta, asynchronous.momenta, strict=True))
        parameters = zip(synchronous.parameters, asynchronous.parameters, strict=True)
        assert all(torch.allclose(a, b, 1e-5, 1e-6) for a, b in parameters)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_run_gives_the_same_weights(
    color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int], optimizer: str
) -> None:
    run, uninterrupted = tmp_path / "run", tmp_path / "uninterrupted"
    assert run_training(train_options(color_folder, uninterrupted, optimizer=optimizer)) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        assert run_training(train_options(color_folder, run, optimizer=optimizer)) == 130
    assert checkpoint.latest_step(run) == 8
    assert run_training(train_options(color_folder, run, optimizer=optimizer)) == 0
    assert tensors_equal(final_tensors(run), final_tensors(uninterrupted))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_steps_that_are_not_finite_update_nothing_and_are_counted(
    color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    reads: list[int], optimizer: str, factor: float,
) -> None:  # fmt: skip
    loss, before, stays_infinite = TextToImageUpdater.loss, {}, False

    def state(updater: TextToImageUpdater) -> list[Tensor]:
        return [t.clone() for t in (*updater.weights.tensors(), *updater.optimizer.state_dict().values())]

    def sometimes_infinite(self: TextToImageUpdater, batch: Any, step: int) -> Tensor:
        number = int(batch.example_indices[0]) // 8 + 1
        if number == 5 and not is_measuring(self.plan):
            before["state"] = state(self)
        if number == 6 and "state" in before:
            assert all(torch.equal(a, b) for a, b in zip(before.pop("state"), state(self), strict=True))
            before["compared"] = True
        value = loss(self, batch, step)
        return value * factor if number == 5 or (stays_infinite and number > 20) else value

    monkeypatch.setattr(TextToImageUpdater, "loss", sometimes_infinite)
    assert run_training(train_options(color_folder, tmp_path / "one", optimizer=optimizer)) == 0
    assert before == {"compared": True}
    assert json.loads((tmp_path / "one/log.jsonl").read_text().splitlines()[-1])["skipped_steps"] == 1
    assert all(tensor.isfinite().all() for tensor in final_tensors(tmp_path / "one").values())
    if optimizer == "adamw":
        stays_infinite = True
        assert run_training(train_options(color_folder, tmp_path / "many", steps=60)) == 1
        assert "step 40: the loss has not been finite for 20 steps" in capsys.readouterr().err
