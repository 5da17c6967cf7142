"""The training loop, for whatever is trained: a task gives batches and losses, validates, draws samples and ends."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from unspeckle.training import memory
from unspeckle.training.errors import TrainingError
from unspeckle.training.optimizer import learning_rate_factor
from unspeckle.training.progress import Clock, ProgressReport, StatsReader, StepStats, merge_stats
from unspeckle.training.task import Task
from unspeckle.training.updater import Updater

ShouldStop = Callable[[], bool]


def training_step(task: Task | Updater, batch: Any, step: int) -> StepStats:
    """Update the weights by a batch, as step 1…steps; not at all where a loss or a gradient is not finite."""
    stats = []
    # One update for most tasks, two for a GAN: the next loss is computed with the weights that the last update left.
    for update in task.updates(batch, step):
        update.weights.zero_grad()
        update.weights.scaled(update.loss).backward()  # type: ignore[no-untyped-call]
        update.weights.take_gradients()
        max_grad_norm = update.optimizer.plan.max_grad_norm or math.inf
        grad_norm = torch.nn.utils.clip_grad_norm_(update.weights.parameters(), max_grad_norm)
        is_finite = grad_norm.isfinite() & update.loss.isfinite()
        update.optimizer.step(learning_rate_factor(step, task.plan), is_finite)
        update.weights.refresh_compute_module()
        update.weights.update_loss_scale(is_finite)
        stats.append(StepStats(update.loss.detach(), grad_norm.detach(), is_finite))
    return merge_stats(stats)


def fit(task: Task, should_stop: ShouldStop = lambda: False) -> Iterator[ProgressReport]:
    """Train the task from its newest checkpoint to its last step, then let it finish; yields a report now and then.

    Stops early, with a checkpoint, when should_stop() turns true. TrainingError if the loss stays infinite, if memory
    runs out, or if a checkpoint cannot be written.
    """
    first_step, last_step = task.resume() + 1, task.plan.work.steps
    clock, stats_reader = Clock(first_step - 1), StatsReader()
    batches = task.batches(start=first_step - 1)
    for step in range(first_step, last_step + 1):
        with out_of_memory_as_training_error(task, step):
            stats = training_step(task, next(batches), step)
        task.update_emas(step)

        stage, is_stopping, is_last = task.stage_of(step), should_stop(), step == last_step
        clock.tick()
        should_validate = clock.validation_due() and stage.can_validate and not (is_stopping or is_last)
        should_save = clock.checkpoint_due() or is_stopping or is_last
        should_report = clock.report_due() or should_validate or should_save
        if stats_reader.add(stats, task.updater.optimizer.is_asynchronous) or should_report:
            task.skipped_steps += stats_reader.read(step)
        if should_report:
            images_per_second = clock.steps_per_second(step) * task.plan.work.batch_size
            # The checkpoint first: nothing is lost if validation or samples fail.
            saved_path = task.save_checkpoint(step) if should_save else None
            with out_of_memory_as_training_error(task, step):
                validation = task.validate() if should_validate else None
                samples_path = task.save_samples(step) if should_validate else None
            report = ProgressReport(
                step=step,
                steps=last_step,
                stage=stage.name,
                loss=stats_reader.take_mean_loss(),
                other_losses=stats_reader.take_other_losses(task.updater.other_loss_names),
                grad_norm=stats_reader.grad_norm,
                images_per_second=images_per_second,
                seconds_left=estimate_seconds_left(task, step, images_per_second),
                skipped_steps=task.skipped_steps,
                validation=validation,
                samples_path=samples_path,
                saved_path=saved_path,
                mfu=task.plan.measured.compute_mfu(images_per_second) if stage.can_validate else math.nan,
            )
            clock.reset(validated=should_validate, saved=should_save)
            yield report
        if step == stage.last_step:
            clock.start_stage(step)
        if is_stopping and not is_last:
            return
    yield from task.finish()


def estimate_seconds_left(task: Task, step: int, images_per_second: float) -> float:
    """Seconds from a step to the last one: of the present stage at the rate that it has, of later ones at the rate that
    the plan expects, or at the present one where it expects none."""
    seconds, done = 0.0, step
    present, *later = [stage for stage in task.stages if stage.last_step >= step]
    for stage in (present._replace(images_per_second=images_per_second), *later):
        rate = images_per_second if math.isnan(stage.images_per_second) else stage.images_per_second
        seconds += task.plan.work.batch_size * (stage.last_step - done) / max(1e-9, rate)
        done = stage.last_step
    return seconds


@contextmanager
def out_of_memory_as_training_error(task: Task, step: int) -> Iterator[None]:
    """Say in one line what to do if memory runs out in a step."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise TrainingError(
            f"step {step}: no memory left; free some and give the same command to continue from the last checkpoint, "
            f"or begin again with --batch-size {max(1, task.plan.work.batch_size // 2)} and another --out"
        ) from error
