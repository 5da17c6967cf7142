"""A device that works apart is asked only now and then how its steps went: nothing else may change by that.

The processor plays such a device here.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import test_training
import torch
from test_training import equal, final, options, stop_after
from torch import Tensor

from unspeckle.training import checkpoint, command, stage
from unspeckle.training.master_weights import MasterWeights, StepStats, TextToImageUpdater, read_step_stats
from unspeckle.training.optimizer import Muon

folder, whole, own_cache = test_training.folder, test_training.whole, test_training.own_cache  # fixtures


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every learner works apart; the list tells how many outcomes were read at once."""
    seen: list[int] = []

    def noted(outcomes: list[StepStats]) -> Any:
        assert all(isinstance(part, Tensor) for outcome in outcomes for part in outcome)
        seen.append(len(outcomes))
        return read_step_stats(outcomes)

    monkeypatch.setattr(MasterWeights, "apart", property(lambda self: True))
    monkeypatch.setattr(stage, "read", noted)
    monkeypatch.setattr(stage, "REPORT_EVERY", 1e9)
    monkeypatch.setattr(stage, "READ_EVERY", 5)
    return seen


def test_the_same_is_learnt_and_seldom_read(folder: Path, whole: Path, tmp_path: Path, apart: list[int]) -> None:
    assert command.run_training(options(folder, tmp_path / "run")) == 0
    assert equal(final(tmp_path / "run"), final(whole)) and apart == [5, 5, 2]


def test_muon_moves_the_same_but_for_rounding_or_not_at_all() -> None:
    torch.manual_seed(0)
    shapes = [(6, 4), (4, 6), (6, 4), (5, 3, 3, 3)]
    begun = [torch.randn(shape) for shape in shapes]

    def made() -> Muon:
        module = torch.nn.ParameterList([t.clone() for t in begun]).to(memory_format=torch.channels_last)
        return Muon(list(module), 0.1)

    one, other = made(), made()
    for finite in (True, True, False, True):
        for parameter, same in zip(one.parameters, other.parameters, strict=True):
            same.grad = torch.randn_like(parameter) * (1 if finite else math.nan)
            parameter.grad = same.grad.clone()
        if finite:
            one.step(0.1)
        other.step(0.1, torch.tensor(finite))
        assert all(torch.equal(a, b) for a, b in zip(one.momenta, other.momenta, strict=True))
        assert all(torch.allclose(a, b, 1e-5, 1e-6) for a, b in zip(one.parameters, other.parameters, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_and_resumed_is_bit_for_bit_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: list[int], optimizer: str
) -> None:
    run, uninterrupted = tmp_path / "run", tmp_path / "whole"
    assert command.run_training(options(folder, uninterrupted, optimizer=optimizer)) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        assert command.run_training(options(folder, run, optimizer=optimizer)) == 130
    assert checkpoint.load_latest_checkpoint(run / "checkpoints").step == 8
    assert command.run_training(options(folder, run, optimizer=optimizer)) == 0
    assert equal(final(run), final(uninterrupted))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("part", [math.inf, math.nan])
def test_steps_that_are_not_finite_move_nothing_and_are_bounded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    apart: list[int], optimizer: str, part: float,
) -> None:  # fmt: skip
    real, before, bad = TextToImageUpdater.loss, {}, False

    def state(learner: TextToImageUpdater) -> list[Tensor]:
        return [t.clone() for t in (*learner.weight_tensors(), *learner.optimizer.state_tensors().values())]

    def loss(self: TextToImageUpdater, batch: Any, step: int) -> Tensor:
        number = int(batch.indices[0]) // 8 + 1
        if number == 5 and self.plan.warmup_steps < 10**9:
            before["state"] = state(self)
        if number == 6 and "state" in before:
            assert all(torch.equal(a, b) for a, b in zip(before.pop("state"), state(self), strict=True))
            before["seen"] = True
        value = real(self, batch, step)
        return value * part if number == 5 or (bad and number > 20) else value

    monkeypatch.setattr(TextToImageUpdater, "loss", loss)
    assert command.run_training(options(folder, tmp_path / "one", optimizer=optimizer)) == 0
    assert before == {"seen": True}
    assert json.loads((tmp_path / "one/log.jsonl").read_text().splitlines()[-1])["skipped"] == 1
    assert all(t.isfinite().all() for t in final(tmp_path / "one").values())
    if optimizer == "adamw":
        bad = True
        assert command.run_training(options(folder, tmp_path / "many", steps=60)) == 1
        assert "step 40: the loss has not been finite for 20 steps" in capsys.readouterr().err
