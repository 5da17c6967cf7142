"""Images generated to be measured: many captions in one batch, each read word by word, as training read it."""

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

AdvanceCallback = Callable[[int], None]  # called with the number of further images that are done


class GeneratedImages(NamedTuple):
    """What generate_images returns."""

    images: Tensor  # uint8 (N, 3, H, W), on the CPU
    seconds_per_image: float  # when drawn in batches


def generate_images(
    model: Model,
    captions: Sequence[str],
    seeds: Sequence[int],
    request: Request,
    advance: AdvanceCallback | None = None,
) -> GeneratedImages:
    """Image i shows captions[i] with the seed seeds[i], as `draw` would draw it up to rounding of float32.

    Everything else is taken from the request. Captions are not prompts: characters that mean something in the prompt
    language are read as they are.
    """
    batch_size = images_per_batch(resolve(model, request))
    start_time, batches = time.perf_counter(), list[Tensor]()
    for first in range(0, len(captions), batch_size):
        prompts = [escape_prompt(caption) for caption in captions[first : first + batch_size]]
        images = draw_prompts(model, prompts, seeds[first : first + batch_size], request)
        pixels = np.stack([np.asarray(image) for image in images])  # (B, H, W, 3)
        batches.append(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        if advance is not None:
            advance(len(images))
    return GeneratedImages(torch.cat(batches), (time.perf_counter() - start_time) / max(1, len(captions)))
