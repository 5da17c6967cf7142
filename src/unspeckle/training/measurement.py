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
from unspeckle.networks import Config, build
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.latent_autoencoder import LatentConfig, Latents
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.autoencoder_task import LatentLearner
from unspeckle.training.encoded_corpus import EncodedSplit, encoded
from unspeckle.training.master_weights import DTYPES, Learner, Masters, fresh
from unspeckle.training.plan import AnyPlan, DistilPlan, Plan
from unspeckle.training.reconstruction_loss import COARSE_EVERY

PEAK = 0.5  # seconds of large products


class Measured(NamedTuple):
    """rate in pictures/s of whole steps; memory in bytes at their peak; ready, the seconds before the first."""

    rate: float
    memory: int
    ready: float


def usual_device() -> str:
    """Where to work if nobody says."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_and_precision(device: str | None, precision: str | None) -> tuple[str, str]:
    """Where to work and in what: bfloat16 where the hardware multiplies it faster than float32."""
    device = device or usual_device()
    if precision is None:
        precision = "bfloat16" if is_faster_in(device, torch.bfloat16) else "float32"
    return device, precision


def compiler() -> bool:
    """Is there what `torch.compile` needs?"""
    return sys.platform != "win32" and any(map(shutil.which, ("c++", "g++", "clang++")))


def flops(config: Config, size: tuple[int, int], length: int) -> float:
    """Floating-point operations of one training picture: three times those of the forward pass."""
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        given = Conditioning(torch.empty(1, length, config.text_width), None, torch.empty(1, config.vector_width))
        build(config)(torch.empty(1, config.channels, size[1], size[0]), torch.empty(1), given)
    return 3.0 * float(counted.get_total_flops())


def work(plan: Plan) -> float:
    """Floating-point operations of the plan's network for one picture that it learns from, forward and backward, as
    they are counted on the meta device; text, autoencoder and optimiser are not. Of a student: its teacher's too."""
    with torch.device("meta"):
        network, config, (width, height) = plan.built(), plan.network, plan.extent
        given = Conditioning(torch.empty(1, plan.text.length, config.text_width), None, torch.empty(1, config.vector_width))
        with FlopCounterMode(display=False) as there:
            out = network(torch.empty(1, config.channels, height, width), torch.empty(1), given)
        with FlopCounterMode(display=False) as back:
            out.sum().backward()
    forward, both = there.get_total_flops(), there.get_total_flops() + back.get_total_flops()
    if isinstance(plan, DistilPlan):
        return float(sum(plan.counts) * both + plan.moves * (1 if plan.scale == 1 else 2) * forward)
    return float(both)


def peak(device: str, precision: str, seconds: float = PEAK) -> float:
    """FLOP/s of large matrix products in that precision, the quickest of those that such a time allows."""
    side = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
    out, taken, begun = torch.empty_like(a), list[float](), time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - begun < seconds:
        before = time.perf_counter()
        torch.mm(a, b, out=out)
        synchronize(device)
        taken.append(time.perf_counter() - before)
    return 2 * side**3 / min(taken)


def training(
    plan: Plan, data: Iterator[Batch], tokenizer: Tokenizer, autoencoder: Autoencoder, seconds: float
) -> Measured:
    """Train throwaway weights for about `seconds`, at least two steps, after one that does not count."""
    return steps(lambda plan: Learner(plan, fresh(plan), tokenizer, autoencoder), plan, data, seconds)


def steps(learns: Callable[[AnyPlan], Masters], plan: AnyPlan, data: Iterator[Any], seconds: float) -> Measured:
    """The same with whoever learns: `learns` makes one that may be thrown away."""
    start = time.perf_counter()
    learner = learns(replace(plan, warmup=10**9))
    learner.step(next(data), 1)
    synchronize(plan.device)
    begun = time.perf_counter()
    taken: list[float] = []
    while len(taken) < 2 or time.perf_counter() - begun < seconds:
        before = time.perf_counter()
        learner.step(next(data), 1)
        synchronize(plan.device)
        taken.append(time.perf_counter() - before)
    median = sorted(taken)[len(taken) // 2]
    return Measured(plan.batch / median, _peak(plan.device), begun - start)


def latents(plan: Plan, data: Iterator[Batch], seconds: float) -> Measured:
    """The same of the plan's autoencoder. The step that does not count is one of those that take the most memory."""
    assert isinstance(plan.autoencoder, LatentConfig)
    start = time.perf_counter()
    learner = LatentLearner(replace(plan, warmup=10**9), Latents(plan.autoencoder))
    learner.step(next(data), COARSE_EVERY)
    synchronize(plan.device)
    begun, taken = time.perf_counter(), 0
    while taken < 2 or time.perf_counter() - begun < seconds:
        learner.step(next(data), taken + 1)
        synchronize(plan.device)
        taken += 1
    return Measured(taken * plan.batch / (time.perf_counter() - begun), _peak(plan.device), begun - start)


def encoding(plan: Plan, split: Split, autoencoder: Autoencoder) -> tuple[float, EncodedSplit]:
    """Seconds that encoding a picture takes by itself, and those pictures whose latents are known thereafter."""
    count = min(plan.batch, len(split))
    few = replace(split, places=split.places[:count], wordings=split.wordings[:count])
    kept, zeros = encoded(few, autoencoder.at(DTYPES[plan.precision])), np.zeros(count, np.int64)
    kept.crops(zeros[:1], zeros[:1], zeros[:1], zeros[:1] > 0)
    begun = time.perf_counter()
    kept.crops(np.arange(count), zeros, zeros, zeros > 0)
    return (time.perf_counter() - begun) / max(1, count - 1), kept


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return 0  # not known there
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
