"""A task of the trainer: what is trained, from which batches, and how that is judged and saved."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.old_names import rename_checkpoint_tensor
from unspeckle.training import checkpoint
from unspeckle.training.ema import PowerFunctionEMA
from unspeckle.training.plan import Plan
from unspeckle.training.progress import ProgressReport
from unspeckle.training.updater import Update, Updater
from unspeckle.training.validation import ValidationResult


class Stage(NamedTuple):
    """Consecutive steps of a task that train the same weights, and take about the same time each."""

    # "text", "network", "autoencoder", …
    name: str
    last_step: int
    # As the plan expects it; NaN if it does not say
    images_per_second: float = math.nan
    # Whether there is already something to validate and to draw samples with
    can_validate: bool = True


class Task(ABC):
    """What is trained. Subclasses say from which batches, by which updater, and what is left in the RUN folder.

    Attributes: run_folder, where checkpoints and the log lie; skipped_steps, those whose loss was not finite.
    """

    # The part of a model that it trains, if it is a single one: its checkpoints' tensors are named without it
    model_part = ""

    def __init__(self, plan: Plan, run_folder: Path, updater: Updater) -> None:
        self.plan, self.run_folder, self.updater = plan, run_folder, updater
        self.emas = [PowerFunctionEMA(width, updater.weights.parameters()) for width in plan.optimizer.ema_widths]
        self.skipped_steps = 0

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order; the last one ends with the last step."""
        return (Stage("network", self.plan.work.steps, self.plan.measured.images_per_second),)

    def stage_of(self, step: int) -> Stage:
        """The stage to which a step 1…steps belongs."""
        return next(stage for stage in self.stages if step <= stage.last_step)

    @abstractmethod
    def batches(self, start: int) -> Iterator[Any]:
        """Batches without end, from the step after `start`: a function of the plan and of `start` alone."""

    def updates(self, batch: Any, step: int) -> Iterator[Update]:
        """The updates of a step, in order: each a loss with the weights and the optimizer that it updates."""
        return self.updater.updates(batch, step)

    def update_emas(self, step: int) -> None:
        """Take the weights after a step into the EMAs, if it is the turn of that step."""
        if step % self.plan.optimizer.ema_every == 0 or step == self.plan.work.steps:
            for ema in self.emas:
                ema.update(self.updater.weights.parameters(), step)

    @abstractmethod
    def validate(self) -> ValidationResult | None:
        """How well the present weights do on data that they are not trained on."""

    @abstractmethod
    def save_samples(self, step: int) -> Path | None:
        """Images drawn with the present weights, as a file in RUN/samples."""

    @abstractmethod
    def finish(self) -> Iterator[ProgressReport]:
        """What follows the last step, such as choosing and saving the model. It may be called again in a run that was
        stopped after it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor of a checkpoint by its name: the tensors themselves."""
        names = [name for name, _ in self.updater.weights.module.named_parameters()]
        state: dict[str, Tensor] = {}
        trained = {"": (self.updater.weights, self.updater.optimizer), **self.updater.others}
        for prefix, (weights, optimizer) in ((f"{part}." if part else "", pair) for part, pair in trained.items()):
            state |= {f"{prefix}weights.{name}": tensor for name, tensor in weights.module.state_dict().items()}
            state |= {f"{prefix}optimizer.{name}": tensor for name, tensor in optimizer.state_dict().items()}
            if weights.loss_scale is not None:
                scale_state = weights.loss_scale.state_dict()
                state |= {f"{prefix}loss_scale.{name}": tensor for name, tensor in scale_state.items()}
        for ema in self.emas:
            averages = zip(names, ema.averaged_tensors, strict=True)
            state |= {f"ema-{ema.width}.{name}": tensor for name, tensor in averages}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy the tensors of a checkpoint into those of state_dict(). KeyError or RuntimeError if they do not fit."""
        target = self.state_dict()
        if mismatched := target.keys() ^ state.keys():
            raise KeyError(f"the checkpoint and the plan differ in {sorted(mismatched)[0]}")
        for name, tensor in target.items():
            tensor.copy_(state[name])
        for weights in (self.updater.weights, *(weights for weights, _ in self.updater.others.values())):
            weights.refresh_compute_module()

    def save_checkpoint(self, step: int) -> Path:
        """Write a checkpoint. TrainingError if it cannot be written."""
        counters = {"skipped_steps": self.skipped_steps, **{_ema_counter(ema): ema.last_step for ema in self.emas}}
        tensors = {name: tensor.detach().cpu() for name, tensor in self.state_dict().items()}
        return checkpoint.save_checkpoint(self.run_folder, checkpoint.Checkpoint(step, tensors, counters))

    def resume(self) -> int:
        """Load the newest checkpoint, if there is one; returns its step, else 0. InputError if it does not fit."""
        saved = checkpoint.load_latest_checkpoint(self.run_folder, self.rename_old_tensor)
        if saved is None:
            return 0
        try:
            self.load_state_dict(saved.tensors)
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{self.run_folder}: its checkpoint does not fit its plan ({error}); give another --out"
            ) from error
        self.skipped_steps = int(saved.counters["skipped_steps"])
        for ema in self.emas:
            ema.last_step = int(saved.counters[_ema_counter(ema)])
        return saved.step

    @classmethod
    def rename_old_tensor(cls, name: str) -> str:
        """The name of today of a tensor in the task's checkpoints of version 0.1."""
        return rename_checkpoint_tensor(name, cls.model_part)


def _ema_counter(ema: PowerFunctionEMA) -> str:
    return f"ema-{ema.width}"
