"""Pictures drawn to be measured: many captions in one batch, each taken as training took it."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unspeckle.generation.pipeline import draw_prompts, images_per_batch
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.model import Model
from unspeckle.prompts import escape_prompt

AdvanceCallback = Callable[[int], None]  # so many pictures more are done


class GeneratedImages(NamedTuple):
    """pictures: uint8 (N, 3, H, W) on the CPU; seconds: that one of them took, in batches."""

    images: Tensor
    seconds_per_image: float


def generate_images(
    model: Model,
    captions: Sequence[str],
    seeds: Sequence[int],
    request: Request,
    advance: AdvanceCallback | None = None,
) -> GeneratedImages:
    """Picture i is of captions[i] with the seed numbers[i], as `draw` would draw it but for the rounding of float32;
    the ask gives the rest. A caption is no prompt: it is read word by word, as in training."""
    batch_size = images_per_batch(resolve(model, request))
    start_time, batches = time.perf_counter(), list[Tensor]()
    for first in range(0, len(captions), batch_size):
        prompts = [escape_prompt(caption) for caption in captions[first : first + batch_size]]
        images = draw_prompts(model, prompts, seeds[first : first + batch_size], request)
        batches.append(torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2))
        if advance is not None:
            advance(len(images))
    return GeneratedImages(torch.cat(batches), (time.perf_counter() - start_time) / max(1, len(captions)))
