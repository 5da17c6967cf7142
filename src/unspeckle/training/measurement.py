"""What this machine can do, found by doing it for some seconds."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from unspeckle.corpus import Batch, Split
from unspeckle.denoiser import Conditioning
from unspeckle.model_io.precision import is_faster_in, synchronize
from unspeckle.networks import NetworkConfig, build_network
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.autoencoder_task import AutoencoderUpdater
from unspeckle.training.encoded_corpus import EncodedSplit, encode_split
from unspeckle.training.master_weights import DTYPES, MasterWeights, TextToImageUpdater, init_modules
from unspeckle.training.plan import DistilPlan, Plan, PlanT
from unspeckle.training.reconstruction_loss import COARSE_LOSS_EVERY

PEAK_FLOPS_SECONDS = 0.5  # seconds of large products


class Throughput(NamedTuple):
    """rate in pictures/s of whole steps; memory in bytes at their peak; ready, the seconds before the first."""

    images_per_second: float
    memory_bytes: int
    startup_seconds: float


def default_device() -> str:
    """Where to work if nobody says."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_device_and_precision(device: str | None, precision: str | None) -> tuple[str, str]:
    """Where to work and in what: bfloat16 where the hardware multiplies it faster than float32."""
    device = device or default_device()
    if precision is None:
        precision = "bfloat16" if is_faster_in(device, torch.bfloat16) else "float32"
    return device, precision


def has_compiler() -> bool:
    """Is there what `torch.compile` needs?"""
    return sys.platform != "win32" and any(map(shutil.which, ("c++", "g++", "clang++")))


def count_training_flops(config: NetworkConfig, input_size: tuple[int, int], token_count: int) -> float:
    """Floating-point operations of one training picture: three times those of the forward pass."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        conditioning = Conditioning(
            torch.empty(1, token_count, config.text_width), None, torch.empty(1, config.vector_width)
        )
        build_network(config)(
            torch.empty(1, config.channels, input_size[1], input_size[0]), torch.empty(1), conditioning
        )
    return 3.0 * float(counter.get_total_flops())


def count_flops_per_image(plan: Plan) -> float:
    """Floating-point operations of the plan's network for one picture that it learns from, forward and backward, as
    they are counted on the meta device; text, autoencoder and optimiser are not. Of a student: its teacher's too."""
    with torch.device("meta"):
        network, config, (width, height) = plan.build_network(), plan.network_config, plan.input_size
        conditioning = Conditioning(
            torch.empty(1, plan.text_config.context_length, config.text_width),
            None,
            torch.empty(1, config.vector_width),
        )
        with FlopCounterMode(display=False) as forward_counter:
            out = network(torch.empty(1, config.channels, height, width), torch.empty(1), conditioning)
        with FlopCounterMode(display=False) as backward_counter:
            out.sum().backward()
    forward_flops, total_flops = (
        forward_counter.get_total_flops(),
        forward_counter.get_total_flops() + backward_counter.get_total_flops(),
    )
    if isinstance(plan, DistilPlan):
        return float(
            sum(plan.step_counts) * total_flops
            + plan.teacher_steps * (1 if plan.guidance_scale == 1 else 2) * forward_flops
        )
    return float(total_flops)


def measure_peak_flops(device: str, precision: str, seconds: float = PEAK_FLOPS_SECONDS) -> float:
    """FLOP/s of large matrix products in that precision, the quickest of those that such a time allows."""
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
    return measure_steps(
        lambda plan: TextToImageUpdater(plan, init_modules(plan), tokenizer, autoencoder), plan, batches, seconds
    )


def measure_steps(
    create_updater: Callable[[PlanT], MasterWeights], plan: PlanT, batches: Iterator[Any], seconds: float
) -> Throughput:
    """The same with whoever learns: `learns` makes one that may be thrown away."""
    start = time.perf_counter()
    updater = create_updater(replace(plan, warmup_steps=10**9))
    updater.step(next(batches), 1)
    synchronize(plan.device)
    loop_start = time.perf_counter()
    durations: list[float] = []
    while len(durations) < 2 or time.perf_counter() - loop_start < seconds:
        step_start = time.perf_counter()
        updater.step(next(batches), 1)
        synchronize(plan.device)
        durations.append(time.perf_counter() - step_start)
    median_seconds = sorted(durations)[len(durations) // 2]
    return Throughput(plan.batch_size / median_seconds, _peak_memory_bytes(plan.device), loop_start - start)


def measure_autoencoder_training(plan: Plan, batches: Iterator[Batch], seconds: float) -> Throughput:
    """The same of the plan's autoencoder. The step that does not count is one of those that take the most memory."""
    assert isinstance(plan.autoencoder_config, LatentAutoencoderConfig)
    start = time.perf_counter()
    updater = AutoencoderUpdater(replace(plan, warmup_steps=10**9), LatentAutoencoder(plan.autoencoder_config))
    updater.step(next(batches), COARSE_LOSS_EVERY)
    synchronize(plan.device)
    loop_start, step_count = time.perf_counter(), 0
    while step_count < 2 or time.perf_counter() - loop_start < seconds:
        updater.step(next(batches), step_count + 1)
        synchronize(plan.device)
        step_count += 1
    return Throughput(
        step_count * plan.batch_size / (time.perf_counter() - loop_start),
        _peak_memory_bytes(plan.device),
        loop_start - start,
    )


def measure_encoding(plan: Plan, split: Split, autoencoder: Autoencoder) -> tuple[float, EncodedSplit]:
    """Seconds that encoding a picture takes by itself, and those pictures whose latents are known thereafter."""
    count = min(plan.batch_size, len(split))
    small_split = replace(split, record_indices=split.record_indices[:count], captions=split.captions[:count])
    encoded_split, zeros = (
        encode_split(small_split, autoencoder.with_dtype(DTYPES[plan.precision])),
        np.zeros(count, np.int64),
    )
    encoded_split.crop_images(zeros[:1], zeros[:1], zeros[:1], zeros[:1] > 0)
    start = time.perf_counter()
    encoded_split.crop_images(np.arange(count), zeros, zeros, zeros > 0)
    return (time.perf_counter() - start) / max(1, count - 1), encoded_split


def _peak_memory_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return 0  # not known there
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
