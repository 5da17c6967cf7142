"""The walk along a plan's steps that every learner takes: reports, looks, checkpoints, and stops at clean points."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from torch import Tensor

from unspeckle.training import checkpoint, memory
from unspeckle.training.checkpoint import Checkpoint
from unspeckle.training.master_weights import StepNumbers, StepStats, read_step_stats
from unspeckle.training.plan import Plan
from unspeckle.training.validation import ValidationResult

MAX_SKIPPED_STEPS = 20  # steps in a row that may be skipped
INSPECTION_INTERVAL = 180.0  # seconds between held-out losses and samples
CHECKPOINT_INTERVAL = 240.0  # seconds between checkpoints
REPORT_INTERVAL = 1.0
STATS_READ_STEPS = 16  # steps, of a device that works apart: how they went


class TrainingError(Exception):
    """Training cannot go on; one line says why and what to try."""


@dataclass(frozen=True)
class Inspection:
    """What is seen of a learner on the way."""

    validation: ValidationResult | None = None
    samples_path: Path | None = None


@dataclass(frozen=True)
class ProgressReport:
    """Where a run stands. loss: mean since the last report. rate: pictures/s of this process so far, in this part of
    the run. words: they learn alone, so the loss is their draft's, and the network has not begun."""

    step: int
    steps: int
    loss: float
    grad_norm: float
    images_per_second: float
    seconds_left: float  # seconds
    skipped_steps: int  # steps whose loss or gradient was not finite, in all
    validation: ValidationResult | None = None
    samples_path: Path | None = None
    saved_path: Path | None = None  # a checkpoint, or at the end the model
    is_text_stage: bool = False
    mfu: float = math.nan  # at that rate: see Plan


class Stage(Protocol):
    """A learner on its way through its plan."""

    plan: Plan
    skipped_steps: int

    def step(self, batch: Any, step: int) -> StepStats: ...
    def inspect(self, step: int) -> Inspection: ...
    def save_checkpoint(self, step: int) -> Path: ...
    def should_stop(self) -> bool: ...


def training_loop(stage: Stage, batches: Iterator[Any], steps_done: int) -> Iterator[ProgressReport]:
    """Take the steps done + 1 … plan.steps, the last with a checkpoint; where stage.stop() turns true, end early, at a
    clean point with a checkpoint. Failed where the loss stays infinite or memory runs out. While the words learn alone
    there is nothing to look at: the network is as it was born."""
    plan, steps = stage.plan, stage.plan.steps
    stage_start = last_report = last_checkpoint = last_inspection = time.monotonic()
    losses, unread_stats, stats = list[float](), list[StepStats](), StepNumbers(math.nan, math.nan, True)
    consecutive_skips, inspection_seconds, stage_start_step = 0, 0.0, steps_done
    for step in range(steps_done + 1, steps + 1):
        unread_stats.append(_run_step(stage, batches, step))
        now, is_stopping = time.monotonic(), stage.should_stop()
        is_text_stage = step <= plan.text_steps
        inspection_due = (
            now - last_inspection > max(INSPECTION_INTERVAL, 20 * inspection_seconds)
            and step < steps
            and not (is_stopping or is_text_stage)
        )
        checkpoint_due = is_stopping or now - last_checkpoint > CHECKPOINT_INTERVAL or step == steps
        report_due = inspection_due or checkpoint_due or now - last_report > REPORT_INTERVAL
        if report_due or len(unread_stats) >= STATS_READ_STEPS or not isinstance(unread_stats[-1].is_updated, Tensor):
            for stats_step, stats in enumerate(read_step_stats(unread_stats), step + 1 - len(unread_stats)):
                consecutive_skips = 0 if stats.is_updated else consecutive_skips + 1
                stage.skipped_steps += not stats.is_updated
                losses.append(stats.loss)
                if consecutive_skips >= MAX_SKIPPED_STEPS:
                    raise TrainingError(
                        f"step {stats_step}: the loss has not been finite for {MAX_SKIPPED_STEPS} steps; "
                        "try --precision float32 with another --out"
                    )
            unread_stats = []
        if report_due:
            images_per_second = (step - stage_start_step) * plan.batch_size / max(1e-9, now - stage_start)
            finite_losses = [loss for loss in losses if math.isfinite(loss)]
            inspection = stage.inspect(step) if inspection_due else Inspection()
            report = ProgressReport(
                step, steps, sum(finite_losses) / len(finite_losses) if finite_losses else math.nan, stats.grad_norm, images_per_second,
                _estimate_seconds_left(plan, step, images_per_second), stage.skipped_steps, inspection.validation, inspection.samples_path,
                stage.save_checkpoint(step) if checkpoint_due else None, is_text_stage, math.nan if is_text_stage else plan.compute_mfu(images_per_second),
            )  # fmt: skip
            losses, last_report = [], time.monotonic()
            inspection_seconds = last_report - now if inspection_due else inspection_seconds
            last_inspection = last_report if inspection_due else last_inspection
            last_checkpoint = last_report if checkpoint_due else last_checkpoint
            yield report
        if step == plan.text_steps:
            stage_start = last_inspection = time.monotonic()
            stage_start_step = step
        if is_stopping:
            return


def _estimate_seconds_left(plan: Plan, step: int, images_per_second: float) -> float:
    """Seconds from a step on, at the rate of its part of the run; the network's, before it begins, is the plan's."""
    text_steps_left = max(0, plan.text_steps - step)
    network_images_per_second = plan.images_per_second if step <= plan.text_steps else images_per_second
    return plan.batch_size * (
        text_steps_left / max(1e-9, images_per_second)
        + (plan.steps - step - text_steps_left) / max(1e-9, network_images_per_second)
    )


def _run_step(stage: Stage, batches: Iterator[Any], step: int) -> StepStats:
    try:
        return stage.step(next(batches), step)
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise TrainingError(
            f"step {step}: no memory left; free some and give the same command to go on from the last checkpoint, "
            f"or begin anew with --batch {max(1, stage.plan.batch_size // 2)} and another --out"
        ) from error


def save_checkpoint_or_raise(
    folder: Path, step: int, tensors: Mapping[str, Tensor], counters: Mapping[str, float]
) -> Path:
    """Write a checkpoint, or say in one line why it cannot be."""
    cpu_tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    try:
        return checkpoint.save_checkpoint(folder, Checkpoint(step, cpu_tensors, counters))
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"the checkpoint of step {step} cannot be written ({error}); free some space, "
            "then the same command goes on from the one before"
        ) from error
