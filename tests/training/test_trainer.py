"""The training loop: what it reports and when, steps that are not finite, and tasks of several updates a step."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny_models import make_plan
from training_runs import checkpoint_tensors, interrupt_at, train_options
from unspeckle.errors import InputError
from unspeckle.training import progress
from unspeckle.training.errors import TrainingError
from unspeckle.training.master_weights import MasterWeights
from unspeckle.training.optimizer import Optimizer
from unspeckle.training.plan import Plan
from unspeckle.training.plan_file import load_plan
from unspeckle.training.progress import ProgressReport
from unspeckle.training.task import Stage, Task
from unspeckle.training.text_to_image_updater import TextToImageUpdater, init_modules
from unspeckle.training.train_command import run_training
from unspeckle.training.trainer import fit
from unspeckle.training.updater import Update, Updater


class LinearUpdater(Updater):
    """Fits a line to the numbers of a batch."""

    def __init__(self, plan: Plan) -> None:
        torch.manual_seed(0)
        super().__init__(plan, MasterWeights.for_plan(nn.Linear(1, 1), plan.compute))

    def loss(self, batch: Tensor, step: int) -> Tensor:
        loss: Tensor = (self.weights.compute_module(batch) - 3 * batch).square().mean()
        return loss


class LinearTask(Task):
    """A task without files but its checkpoints."""

    def __init__(self, plan: Plan, run_folder: Path, updater: Updater | None = None) -> None:
        super().__init__(plan, run_folder, updater or LinearUpdater(plan))
        self.validated_steps: list[int] = []
        self.has_finished = False

    def batches(self, start: int) -> Iterator[Tensor]:
        while True:
            yield torch.randn(8, 1, generator=torch.Generator().manual_seed(start))
            start += 1

    def validate(self) -> None:
        pass

    def save_samples(self, step: int) -> None:
        self.validated_steps.append(step)

    def finish(self) -> Iterator[ProgressReport]:
        self.has_finished = True
        yield from ()


def test_the_time_left_is_foreseen_while_the_text_encoder_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of the text stage take 3 s, others 20: the speed of the former says nothing of the latter, and nothing is
    validated in the text stage."""
    plan = make_plan(batch_size=8).with_changes(work={"steps": 40})
    clock = [100.0]

    class TwoStageTask(LinearTask):
        stages = (Stage("text", 12, can_validate=False), Stage("network", 40, 8 / 20))

        def updates(self, batch: Any, step: int) -> Iterator[Update]:
            clock[0] += 3 if step <= 12 else 20
            return super().updates(batch, step)

        def resume(self) -> int:
            return 4

    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "VALIDATION_INTERVAL", 25.0)
    task = TwoStageTask(plan, tmp_path)
    reports = list(fit(task))
    assert [report.step for report in reports] == list(range(5, 41))
    for report in reports:
        assert report.seconds_left == pytest.approx(3 * max(0, 12 - report.step) + 20 * (40 - max(12, report.step)))
        assert report.stage == ("text" if report.step <= 12 else "network")
    assert task.validated_steps == list(range(14, 40, 2)) and task.has_finished


def test_a_task_stops_with_a_checkpoint_and_continues(tmp_path: Path) -> None:
    plan = make_plan().with_changes(work={"steps": 30}, optimizer={"learning_rate": 0.1})
    uninterrupted, task = LinearTask(plan, tmp_path / "a"), LinearTask(plan, tmp_path / "b")
    list(fit(uninterrupted))
    steps = iter(range(1, 12))
    list(fit(task, lambda: next(steps) == 11))
    assert not task.has_finished and task.resume() == 11
    continued = LinearTask(plan, tmp_path / "b")
    list(fit(continued))
    assert continued.has_finished
    for name, tensor in uninterrupted.state_dict().items():
        assert torch.equal(tensor, continued.state_dict()[name]), name


def test_each_update_of_a_step_sees_the_one_before(tmp_path: Path) -> None:
    """As in a GAN: a step updates the discriminator, then the generator by the new discriminator's judgment, whose
    gradients do not move the discriminator."""
    plan = make_plan().with_changes(work={"steps": 3}, optimizer={"weight_decay": 0.0})
    judgments: list[tuple[float, float]] = []

    class AdversarialUpdater(LinearUpdater):
        def __init__(self, plan: Plan) -> None:
            super().__init__(plan)
            self.critic = MasterWeights.for_plan(nn.Linear(1, 1), plan.compute)
            self.critic_optimizer = Optimizer(self.critic.module, plan.optimizer)

        def judge(self, images: Tensor) -> Tensor:
            judgment: Tensor = self.critic.compute_module(images).mean()
            return judgment

        def updates(self, batch: Tensor, step: int) -> Iterator[Update]:
            before = float(self.judge(batch).detach())
            yield Update(self.judge(batch), self.critic, self.critic_optimizer)
            judgments.append((before, float(self.judge(batch).detach())))
            images = self.weights.compute_module(batch)
            yield Update(-1e6 * self.judge(images), self.weights, self.optimizer)

    task = LinearTask(plan, tmp_path, AdversarialUpdater(plan))
    initial = [tensor.clone() for tensor in task.updater.weights.tensors()]
    assert list(fit(task))[-1].step == 3
    assert len(judgments) == 3 and all(after < before for before, after in judgments)
    assert not torch.equal(initial[0], task.updater.weights.tensors()[0])


def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path) -> None:
    plan = make_plan().with_changes(work={"steps": 2})
    list(fit(LinearTask(plan, tmp_path)))
    with pytest.raises(InputError, match="its checkpoint does not fit its plan"):
        LinearTask(plan.with_changes(optimizer={"ema_widths": (0.2,)}), tmp_path).resume()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_stays_infinite_ends_the_training(tmp_path: Path, value: float) -> None:
    class InfiniteUpdater(LinearUpdater):
        def loss(self, batch: Tensor, step: int) -> Tensor:
            return super().loss(batch, step) * (value if step > 7 else 1)

    plan = make_plan().with_changes(work={"steps": 60})
    with pytest.raises(TrainingError, match="step 27: the loss has not been finite for 20 steps"):
        list(fit(LinearTask(plan, tmp_path, InfiniteUpdater(plan))))


def test_steps_that_are_not_finite_update_nothing_and_are_counted(
    color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss, before = TextToImageUpdater.loss, {}

    def sometimes_infinite(self: TextToImageUpdater, batch: Any, step: int) -> Tensor:
        number = int(batch.example_indices[0]) // 8 + 1
        if number == 5:
            before["weights"] = [tensor.clone() for tensor in self.weights.tensors()]
        if number == 6:
            assert all(torch.equal(a, b) for a, b in zip(before["weights"], self.weights.tensors(), strict=True))
        value = loss(self, batch, step)
        return value * math.inf if number == 5 or (stays_infinite and number > 20) else value

    monkeypatch.setattr(TextToImageUpdater, "loss", sometimes_infinite)
    stays_infinite = False
    assert run_training(train_options(color_folder, tmp_path / "one")) == 0
    assert json.loads((tmp_path / "one/log.jsonl").read_text().splitlines()[-1])["skipped_steps"] == 1
    stays_infinite = True
    assert run_training(train_options(color_folder, tmp_path / "many", steps=60)) == 1
    assert "not been finite for 20 steps" in capsys.readouterr().err


def test_the_text_encoder_is_trained_alone_first(
    color_folder: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = load_plan(finished_run, Plan)
    assert plan is not None
    text_steps = plan.work.text_steps
    assert text_steps == int(0.3 * plan.work.steps) >= 3
    first_modules = {"text_encoder", "coarse_predictor"}
    for last_step, trained in ((text_steps, first_modules), (text_steps + 1, {*first_modules, "network"})):
        run = tmp_path / str(last_step)
        with monkeypatch.context() as patch:
            interrupt_at(patch, last_step)
            assert run_training(train_options(color_folder, run)) == 130
        tensors, initial = checkpoint_tensors(run), dict(init_modules(plan).named_parameters())
        changed = {name for name, old in initial.items() if not torch.equal(tensors[f"weights.{name}"], old)}
        modules = {"coarse_predictor" if ".coarse_predictor." in n else n.split(".")[0] for n in changed}
        assert modules == trained
