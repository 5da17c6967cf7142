"""How training goes: what each step reports, and when reports, validation and checkpoints are due."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unspeckle.output.inline_image import image_file_html
from unspeckle.quantities import format_duration, format_images_per_second
from unspeckle.training.errors import TrainingError
from unspeckle.training.validation import ValidationResult

# Steps in a row that may be skipped because their loss or gradient is not finite
MAX_SKIPPED_STEPS = 20
# Steps after which the statistics of a GPU are read: reading waits until the GPU has done all queued work
STATS_READ_STEPS = 16
# Seconds between reports, validations and checkpoints
REPORT_INTERVAL = 1.0
VALIDATION_INTERVAL = 180.0
CHECKPOINT_INTERVAL = 240.0
# Validation takes at most one in so many seconds
VALIDATION_TIME_RATIO = 20


class StepStats(NamedTuple):
    """How a step went, as tensors () on its device."""

    # Mean loss of the batch
    loss: Tensor
    # Norm of the gradient before clipping
    grad_norm: Tensor
    # Whether both were finite, so that the weights were updated
    is_updated: Tensor
    # The losses of further updates of the step
    other_losses: tuple[Tensor, ...] = ()


class StepNumbers(NamedTuple):
    """The same as numbers."""

    loss: float
    grad_norm: float
    is_updated: bool
    other_losses: tuple[float, ...] = ()


def merge_stats(stats: Sequence[StepStats]) -> StepStats:
    """The statistics of a step of several updates: those of the first, whose loss is the one to watch, with the losses
    of the others; updated if all were."""
    first, *others = stats
    for other in others:
        losses = (*first.other_losses, other.loss)
        first = first._replace(is_updated=first.is_updated & other.is_updated, other_losses=losses)
    return first


def read_step_stats(stats: Sequence[StepStats]) -> list[StepNumbers]:
    """The statistics of steps on one device, read at once."""
    flat = [(one.loss, one.grad_norm, one.is_updated, *one.other_losses) for one in stats]
    rows = torch.stack([torch.stack([number.float() for number in numbers]) for numbers in flat]).tolist()
    return [StepNumbers(loss, norm, bool(is_updated), tuple(others)) for loss, norm, is_updated, *others in rows]


@dataclass(frozen=True)
class ProgressReport:
    """Where a task stands."""

    step: int
    # The last step of the task
    steps: int
    # Name of the task's stage, see task.py
    stage: str
    # Mean loss since the last report, NaN if there is none
    loss: float = math.nan
    # The same of further losses, by the name of what they update
    other_losses: dict[str, float] = field(default_factory=dict)
    # Norm of the last gradient before clipping
    grad_norm: float = math.nan
    # Images per second in this stage, since this process began
    images_per_second: float = 0.0
    # Estimated seconds to the last step
    seconds_left: float = 0.0
    # Steps whose loss or gradient was not finite, in all
    skipped_steps: int = 0
    validation: ValidationResult | None = None
    samples_path: Path | None = None
    # A checkpoint, or at the end the model
    saved_path: Path | None = None
    # Share of the device's peak that is reached (see Measurements.compute_mfu)
    mfu: float = math.nan

    @property
    def status(self) -> str:
        """How it goes, in one phrase."""
        parts = [
            "text encoder alone" if self.stage == "text" else "",
            format_images_per_second(self.images_per_second),
            f"loss {self.loss:.4f}",
            *(f"{name} {loss:.4f}" for name, loss in self.other_losses.items()),
            f"{format_duration(self.seconds_left)} left",
            f"{self.skipped_steps} steps skipped" if self.skipped_steps else "",
        ]
        return " · ".join(filter(None, parts))

    def _repr_html_(self) -> str:
        """For notebooks: a bar, the status, the validation and the samples, if there are any."""
        bar = f'<progress value="{self.step}" max="{self.steps}" style="width: 100%"></progress>'
        # The last report, of the model that was saved, comes after all steps.
        status = f" · {self.status}" if self.images_per_second else ""
        parts = [bar, f"<div>step {self.step:,} of {self.steps:,}{status}</div>"]
        if self.validation is not None:
            parts.append(f"<div>{escape(self.validation.summary)}</div>")
        if self.samples_path is not None and self.samples_path.is_file():
            parts.append(image_file_html(self.samples_path))
        return "".join(parts)


class StatsReader:
    """Collects the statistics of steps, and reads them now and then if they lie on a GPU, else at each step."""

    def __init__(self) -> None:
        self.unread: list[StepStats] = []
        self.losses: list[float] = []
        self.other_losses: list[tuple[float, ...]] = []
        self.consecutive_skips = 0
        self.grad_norm = math.nan

    def add(self, stats: StepStats, is_asynchronous: bool) -> bool:
        """Add a step's statistics; returns whether it is time to read them."""
        self.unread.append(stats)
        return not is_asynchronous or len(self.unread) >= STATS_READ_STEPS

    def read(self, step: int) -> int:
        """Read what was added up to that step; returns how many steps of it were skipped. TrainingError if too many
        steps in a row were."""
        skipped_steps = 0
        for stats_step, stats in enumerate(read_step_stats(self.unread), step + 1 - len(self.unread)):
            self.consecutive_skips = 0 if stats.is_updated else self.consecutive_skips + 1
            skipped_steps += not stats.is_updated
            self.losses.append(stats.loss)
            self.other_losses.append(stats.other_losses)
            self.grad_norm = stats.grad_norm
            if self.consecutive_skips >= MAX_SKIPPED_STEPS:
                raise TrainingError(
                    f"step {stats_step}: the loss has not been finite for {MAX_SKIPPED_STEPS} steps; "
                    "try --precision float32 with another --out"
                )
        self.unread = []
        return skipped_steps

    def take_mean_loss(self) -> float:
        """The mean of the finite losses since the last call, NaN if there was none."""
        losses, self.losses = self.losses, []
        return mean_of_finite(losses)

    def take_other_losses(self, names: Sequence[str]) -> dict[str, float]:
        """The same of the losses of further updates, which have these names."""
        columns, self.other_losses = zip(*self.other_losses, strict=True), []
        return {name: mean_of_finite(column) for name, column in zip(names, columns, strict=False)}


def mean_of_finite(values: Sequence[float]) -> float:
    """The mean of the values that are finite, NaN if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


class Clock:
    """When a report, a validation and a checkpoint are due, by the time since the last one; and how fast steps are."""

    def __init__(self, step: int) -> None:
        self.now = self.last_report = self.last_validation = self.last_checkpoint = time.monotonic()
        self.validation_seconds = 0.0
        self.stage_start, self.stage_start_step = self.now, step

    def tick(self) -> None:
        """Take the present time for the questions that follow."""
        self.now = time.monotonic()

    def report_due(self) -> bool:
        return self.now - self.last_report > REPORT_INTERVAL

    def validation_due(self) -> bool:
        interval = max(VALIDATION_INTERVAL, VALIDATION_TIME_RATIO * self.validation_seconds)
        return self.now - self.last_validation > interval

    def checkpoint_due(self) -> bool:
        return self.now - self.last_checkpoint > CHECKPOINT_INTERVAL

    def steps_per_second(self, step: int) -> float:
        """Of the steps of the stage since it began, or since this process did."""
        return (step - self.stage_start_step) / max(1e-9, self.now - self.stage_start)

    def reset(self, *, validated: bool, saved: bool) -> None:
        """Count anew after a report, which a validation or a checkpoint may have come with."""
        before, self.last_report = self.now, time.monotonic()
        if validated:
            self.validation_seconds = self.last_report - before
            self.last_validation = self.last_report
        if saved:
            self.last_checkpoint = self.last_report

    def start_stage(self, step: int) -> None:
        """Begin a stage after that step, whose steps take another time."""
        self.stage_start = self.last_validation = time.monotonic()
        self.stage_start_step = step
