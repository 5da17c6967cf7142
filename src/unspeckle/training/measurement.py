"""What this machine can do, found by doing it for some seconds."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from unspeckle.corpus.batches import Batch
from unspeckle.corpus.splits import Split
from unspeckle.model_io.device import resolve_device
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.quantization.precision import fastest_precision, synchronize
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.autoencoder_updater import AutoencoderUpdater
from unspeckle.training.check_options import PRECISIONS
from unspeckle.training.encoded_corpus import EncodedSplit, encode_split
from unspeckle.training.master_weights import DTYPES
from unspeckle.training.options import Options
from unspeckle.training.plan import ComputePlan, Plan, PlanT
from unspeckle.training.reconstruction_loss import COARSE_LOSS_EVERY
from unspeckle.training.text_to_image_updater import TextToImageUpdater, init_modules
from unspeckle.training.trainer import training_step
from unspeckle.training.updater import Updater

# For how many seconds a planner times each of these
STEPS_SECONDS = 4.0
CACHED_LATENTS_SECONDS = 3.0
TEXT_STAGE_SECONDS = 2.0
CAPTIONS_SECONDS = 3.0
AUTOENCODER_SECONDS = 3.0
PEAK_FLOPS_SECONDS = 0.5
# The warm-up of steps that are only timed: long, so that no loss diverges, but not so long that the squares of
# gradients become denormal numbers, which some CPUs multiply a hundred times as slowly
NO_LEARNING_WARMUP_STEPS = 1000

PrintLine = Callable[[str], None]


class Throughput(NamedTuple):
    """How fast training steps are."""

    images_per_second: float
    # Bytes at the peak of a step; 0 where that is not known
    memory_bytes: int
    # Seconds before the steps that were timed
    startup_seconds: float


def choose_compute(options: Options, print_line: PrintLine) -> ComputePlan:
    """The device and the precision of the options; where they leave them open, the default device, and the precision
    that it is fastest in. InputError if there is no such device."""
    if options.device is None or options.precision is None:
        print_line("measuring this machine …")
    device = resolve_device(options.device)
    if options.precision is not None:
        precision = PRECISIONS[options.precision]
    else:
        precision = fastest_precision(device)
    return ComputePlan(device=device, precision=precision, threads=torch.get_num_threads())


def has_compiler() -> bool:
    """Whether there is the C++ compiler that torch.compile needs."""
    return sys.platform != "win32" and any(map(shutil.which, ("c++", "g++", "clang++")))


def measure_peak_flops(device: str, precision: str, seconds: float) -> float:
    """Floating-point operations per second of the fastest of the large matrix products that can be computed in that
    time."""
    side = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
    product, durations, start = torch.empty_like(a), list[float](), time.perf_counter()
    while len(durations) < 3 or time.perf_counter() - start < seconds:
        product_start = time.perf_counter()
        torch.mm(a, b, out=product)
        synchronize(device)
        durations.append(time.perf_counter() - product_start)
    return 2 * side**3 / min(durations)


def measure_training(
    plan: Plan, batches: Iterator[Batch], tokenizer: Tokenizer, autoencoder: Autoencoder, seconds: float
) -> Throughput:
    """Train throwaway weights for about `seconds`, at least two steps, after one that does not count."""
    plan = without_learning(plan)
    return measure_steps(lambda: TextToImageUpdater(plan, init_modules(plan), tokenizer, autoencoder), batches, seconds)


def measure_steps(create_updater: Callable[[], Updater], batches: Iterator[Any], seconds: float) -> Throughput:
    """The same of an updater that may be thrown away; its plan should be without_learning."""
    start = time.perf_counter()
    updater = create_updater()
    plan = updater.plan
    training_step(updater, next(batches), 1)
    synchronize(plan.compute.device)
    loop_start = time.perf_counter()
    durations: list[float] = []
    while len(durations) < 2 or time.perf_counter() - loop_start < seconds:
        step_start = time.perf_counter()
        training_step(updater, next(batches), 1)
        synchronize(plan.compute.device)
        durations.append(time.perf_counter() - step_start)
    median_seconds = sorted(durations)[len(durations) // 2]
    return Throughput(
        plan.work.batch_size / median_seconds, _peak_memory_bytes(plan.compute.device), loop_start - start
    )


def measure_autoencoder_training(plan: Plan, batches: Iterator[Batch], seconds: float) -> Throughput:
    """The same of the plan's autoencoder. The step that does not count is one of those that take the most memory."""
    assert isinstance(plan.model.autoencoder, LatentAutoencoderConfig)
    start, device = time.perf_counter(), plan.compute.device
    updater = AutoencoderUpdater(without_learning(plan), LatentAutoencoder(plan.model.autoencoder))
    training_step(updater, next(batches), COARSE_LOSS_EVERY)
    synchronize(device)
    loop_start, step_count = time.perf_counter(), 0
    while step_count < 2 or time.perf_counter() - loop_start < seconds:
        training_step(updater, next(batches), step_count + 1)
        synchronize(device)
        step_count += 1
    images_per_second = step_count * plan.work.batch_size / (time.perf_counter() - loop_start)
    return Throughput(images_per_second, _peak_memory_bytes(device), loop_start - start)


def without_learning(plan: PlanT) -> PlanT:
    """The plan with a warm-up so long that the first steps change the weights by next to nothing."""
    return plan.with_changes(optimizer={"warmup_steps": NO_LEARNING_WARMUP_STEPS})


def measure_encoding(plan: Plan, split: Split, autoencoder: Autoencoder) -> tuple[float, EncodedSplit]:
    """Seconds in which an image is encoded by itself, and a split of a batch of images with cached latents."""
    count = min(plan.work.batch_size, len(split))
    small_split = replace(split, record_indices=split.record_indices[:count], captions=split.captions[:count])
    encoded_split = encode_split(small_split, autoencoder.with_dtype(DTYPES[plan.compute.precision]))
    zeros = np.zeros(count, np.int64)
    encoded_split.crop_images(zeros[:1], zeros[:1], zeros[:1], zeros[:1] > 0)
    start = time.perf_counter()
    encoded_split.crop_images(np.arange(count), zeros, zeros, zeros > 0)
    return (time.perf_counter() - start) / max(1, count - 1), encoded_split


def _peak_memory_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        # Windows does not say.
        return 0
    # In kilobytes, except on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
