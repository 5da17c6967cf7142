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
from unspeckle.training.master_weights import Outcome, Told, read
from unspeckle.training.plan import Plan
from unspeckle.training.validation import Judged

SKIPS = 20  # steps in a row that may be skipped
LOOK_EVERY = 180.0  # seconds between held-out losses and samples
SAVE_EVERY = 240.0  # seconds between checkpoints
REPORT_EVERY = 1.0
READ_EVERY = 16  # steps, of a device that works apart: how they went


class Failed(Exception):
    """Training cannot go on; one line says why and what to try."""


@dataclass(frozen=True)
class Look:
    """What is seen of a learner on the way."""

    held: Judged | None = None
    samples: Path | None = None


@dataclass(frozen=True)
class Report:
    """Where a run stands. loss: mean since the last report. rate: pictures/s of this process so far, in this part of
    the run. words: they learn alone, so the loss is their draft's, and the network has not begun."""

    step: int
    steps: int
    loss: float
    norm: float
    rate: float
    left: float  # seconds
    skipped: int  # steps whose loss or gradient was not finite, in all
    held: Judged | None = None
    samples: Path | None = None
    saved: Path | None = None  # a checkpoint, or at the end the model
    words: bool = False
    utilisation: float = math.nan  # at that rate: see Plan


class Stage(Protocol):
    """A learner on its way through its plan."""

    plan: Plan
    skipped: int

    def step(self, batch: Any, step: int) -> Outcome: ...
    def look(self, step: int) -> Look: ...
    def save(self, step: int) -> Path: ...
    def stop(self) -> bool: ...


def walk(stage: Stage, data: Iterator[Any], done: int) -> Iterator[Report]:
    """Take the steps done + 1 … plan.steps, the last with a checkpoint; where stage.stop() turns true, end early, at a
    clean point with a checkpoint. Failed where the loss stays infinite or memory runs out. While the words learn alone
    there is nothing to look at: the network is as it was born."""
    plan, steps = stage.plan, stage.plan.steps
    began = reported = saved = looked = time.monotonic()
    losses, unread, outcome = list[float](), list[Outcome](), Told(math.nan, math.nan, True)
    in_a_row, look_took, since = 0, 0.0, done
    for step in range(done + 1, steps + 1):
        unread.append(_step(stage, data, step))
        now, stopping = time.monotonic(), stage.stop()
        words = step <= plan.word_steps
        looking = now - looked > max(LOOK_EVERY, 20 * look_took) and step < steps and not (stopping or words)
        due = stopping or now - saved > SAVE_EVERY or step == steps
        telling = looking or due or now - reported > REPORT_EVERY
        if telling or len(unread) >= READ_EVERY or not isinstance(unread[-1].moved, Tensor):
            for number, outcome in enumerate(read(unread), step + 1 - len(unread)):
                in_a_row = 0 if outcome.moved else in_a_row + 1
                stage.skipped += not outcome.moved
                losses.append(outcome.loss)
                if in_a_row >= SKIPS:
                    raise Failed(
                        f"step {number}: the loss has not been finite for {SKIPS} steps; "
                        "try --precision float32 with another --out"
                    )
            unread = []
        if telling:
            rate = (step - since) * plan.batch / max(1e-9, now - began)
            finite = [value for value in losses if math.isfinite(value)]
            look = stage.look(step) if looking else Look()
            report = Report(
                step, steps, sum(finite) / len(finite) if finite else math.nan, outcome.norm, rate,
                _left(plan, step, rate), stage.skipped, look.held, look.samples,
                stage.save(step) if due else None, words, math.nan if words else plan.utilisation(rate),
            )  # fmt: skip
            losses, reported = [], time.monotonic()
            look_took = reported - now if looking else look_took
            looked = reported if looking else looked
            saved = reported if due else saved
            yield report
        if step == plan.word_steps:
            began = looked = time.monotonic()
            since = step
        if stopping:
            return


def _left(plan: Plan, step: int, rate: float) -> float:
    """Seconds from a step on, at the rate of its part of the run; the network's, before it begins, is the plan's."""
    of_words = max(0, plan.word_steps - step)
    network = plan.rate if step <= plan.word_steps else rate
    return plan.batch * (of_words / max(1e-9, rate) + (plan.steps - step - of_words) / max(1e-9, network))


def _step(stage: Stage, data: Iterator[Any], step: int) -> Outcome:
    try:
        return stage.step(next(data), step)
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
        raise Failed(
            f"step {step}: no memory left; free some and give the same command to go on from the last checkpoint, "
            f"or begin anew with --batch {max(1, stage.plan.batch // 2)} and another --out"
        ) from error


def keep(folder: Path, step: int, tensors: Mapping[str, Tensor], counters: Mapping[str, float]) -> Path:
    """Write a checkpoint, or say in one line why it cannot be."""
    plain = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    try:
        return checkpoint.save(folder, Checkpoint(step, plain, counters))
    except (OSError, SafetensorError) as error:
        raise Failed(
            f"the checkpoint of step {step} cannot be written ({error}); free some space, "
            "then the same command goes on from the one before"
        ) from error
