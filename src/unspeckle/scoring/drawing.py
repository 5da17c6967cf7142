"""Pictures drawn to be measured: many captions in one batch, each taken as training took it."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unspeckle import guidance, seeds
from unspeckle.denoiser import Given
from unspeckle.draw import TOGETHER, Ask, Order, settle
from unspeckle.model import Model
from unspeckle.samplers import SAMPLERS, times

Tell = Callable[[int], None]  # so many pictures more are done


class Drawn(NamedTuple):
    """pictures: uint8 (N, 3, H, W) on the CPU; seconds: that one of them took, in batches."""

    pictures: Tensor
    seconds: float


def drawn(model: Model, captions: Sequence[str], numbers: Sequence[int], ask: Ask, tell: Tell | None = None) -> Drawn:
    """Picture i is of captions[i] with the seed numbers[i], as `draw` would draw it but for the rounding of float32;
    the ask gives the rest. A caption is no prompt: it is read word by word, as in training."""
    order = settle(model, ask)
    most = max(1, TOGETHER // math.prod(order.size))
    begun, parts = time.perf_counter(), list[Tensor]()
    for first in range(0, len(captions), most):
        parts.append(_batch(model, captions[first : first + most], numbers[first : first + most], order))
        if tell is not None:
            tell(len(parts[-1]))
    return Drawn(torch.cat(parts), (time.perf_counter() - begun) / max(1, len(captions)))


@torch.no_grad()
def _batch(model: Model, captions: Sequence[str], numbers: Sequence[int], order: Order) -> Tensor:
    width, height = (side // model.autoencoder.factor for side in order.size)
    noise = seeds.noise(numbers, (model.autoencoder.channels, height, width), model.device)
    schedule = model.denoiser.schedule
    way = times(order.grid, schedule, order.steps)
    givens = [words(model, captions)] + [words(model, [""] * len(captions))] * (order.scale != 1)
    denoise = guidance.combine(model.denoiser, givens, guidance.cfg(order.scale))
    if model.card.clamp and (bounds := model.autoencoder.bounds) is not None:
        denoise = guidance.clamp(denoise, *bounds)  # type: ignore[arg-type]
    x = float(schedule(way[0])[1]) * noise(-1, 0)  # (B, C, H, W)
    for step in SAMPLERS[order.sampler](denoise, schedule, way, x, noise):
        x = step.x
    return pixels(model, x)


def words(model: Model, captions: Sequence[str]) -> Given:
    """The captions, a row each, as the denoiser takes them."""
    given: Given = model.text(model.tokenizer.encode(list(captions)).to(model.device))
    return model.denoiser.prepare(given)


def pixels(model: Model, x: Tensor) -> Tensor:
    """x (B, C, H, W) at t = 0 as uint8 pictures on the CPU, rounded as `draw.pictures` does."""
    decoded = model.autoencoder.decode(x.float()).nan_to_num().clamp(-1, 1)
    return ((decoded + 1) * 127.5).round().to("cpu", torch.uint8)
