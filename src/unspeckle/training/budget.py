"""How many steps fit into the time, and what a run needs in all: the end of every plan."""

import shutil
import time
from pathlib import Path

from unspeckle.errors import InputError
from unspeckle.training import measurement, memory
from unspeckle.training.cost import UNIFORM_COST, StepCost
from unspeckle.training.flops import count_flops_per_image
from unspeckle.training.measurement import Throughput
from unspeckle.training.options import Options
from unspeckle.training.plan import PlanT

# Share of the time for validation, samples and checkpoints
TIME_RESERVE = 0.05
# The work after the last step takes at most this share of the time
MAX_FINAL_SHARE = 0.2
# What was compiled while measuring is found again, in this share of the time
RECOMPILE_SHARE = 0.3
# The warm-up in steps, one in so many of all steps
MAX_WARMUP_STEPS, STEPS_PER_WARMUP_STEP = 200, 20


def finalize_plan(
    plan: PlanT,
    throughput: Throughput,
    options: Options,
    *,
    start_time: float,
    final_cost_images: float,
    step_cost: StepCost = UNIFORM_COST,
    extra_seconds: float = 0.0,
) -> PlanT:
    """The plan with its number of steps, and what they take.

    throughput: of its steps; start_time: the time.monotonic() from which --for counts; final_cost_images: the work
    after the last step, in training images; step_cost: what steps take; extra_seconds: of other work before them.
    InputError if there is no time or no disk space for it.
    """
    flops_per_image = count_flops_per_image(plan)
    peak_flops = measurement.measure_peak_flops(
        plan.compute.device, plan.compute.precision, measurement.PEAK_FLOPS_SECONDS
    )
    plan = plan.with_changes(measured={"flops_per_image": flops_per_image, "peak_flops": peak_flops})
    elapsed = time.monotonic() - start_time + extra_seconds
    images_per_second, batch_size = throughput.images_per_second, plan.work.batch_size
    if options.steps:
        steps = options.steps
    elif options.images:
        steps = -(-options.images // batch_size)
    else:
        seconds = _seconds_for_steps(options, throughput, elapsed, final_cost_images)
        steps = step_cost.steps_within(seconds * images_per_second / batch_size)
    step_seconds = step_cost.total(steps) * batch_size / images_per_second * (1 + TIME_RESERVE)
    return plan.with_changes(
        work={"steps": steps},
        optimizer={"warmup_steps": max(1, min(MAX_WARMUP_STEPS, steps // STEPS_PER_WARMUP_STEP))},
        measured={
            "images_per_second": images_per_second,
            "total_seconds": options.seconds or elapsed + step_seconds,
            "memory_bytes": throughput.memory_bytes,
            "disk_bytes": _check_disk_space(plan, options.out),
            "mfu": plan.measured.compute_mfu(images_per_second),
        },
    )


def _seconds_for_steps(options: Options, throughput: Throughput, elapsed: float, final_cost_images: float) -> float:
    """What is left of --for when all but the steps is subtracted."""
    assert options.seconds is not None
    final_seconds = min(final_cost_images / throughput.images_per_second, MAX_FINAL_SHARE * options.seconds)
    recompile_seconds = RECOMPILE_SHARE * throughput.startup_seconds
    remaining = (options.seconds - elapsed - final_seconds - recompile_seconds) * (1 - TIME_RESERVE)
    if remaining <= 0:
        raise InputError(f" {options.seconds:g}s: was used up by preparing; give more time, or --steps", "seconds")
    return remaining


def _check_disk_space(plan: PlanT, run_folder: Path) -> int:
    """Bytes that the run needs on disk. InputError if they are not free."""
    disk_bytes = run_disk_bytes(plan)
    existing = next(path for path in (run_folder.absolute(), *run_folder.absolute().parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    if disk_bytes > free_bytes:
        raise InputError(
            f"{run_folder}: the run needs {disk_bytes / 2**20:,.0f} MiB, {free_bytes / 2**20:,.0f} MiB are free; "
            "free some, or give an --out elsewhere"
        )
    return disk_bytes


def run_disk_bytes(plan: PlanT) -> int:
    """Bytes of the model and of three checkpoints (two are kept while a third is written), of the network and of an
    autoencoder that is trained; one that was trained before is kept once."""
    autoencoder_parameter_count = memory.count_autoencoder_parameters(plan)
    return 4 * (
        plan.measured.parameter_count * (3 * (3 + len(plan.optimizer.ema_widths)) + 1)
        + autoencoder_parameter_count * (3 * 3 + 1 if plan.work.autoencoder_steps else 2)
    )
