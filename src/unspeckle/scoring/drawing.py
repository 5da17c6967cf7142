"""Pictures drawn to be measured: many captions in one batch, each taken as training took it."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unspeckle.generation.pipeline import Request, draw_prompts, resolve, images_per_batch
from unspeckle.model import Model
from unspeckle.prompts import escape

Tell = Callable[[int], None]  # so many pictures more are done


class Drawn(NamedTuple):
    """pictures: uint8 (N, 3, H, W) on the CPU; seconds: that one of them took, in batches."""

    pictures: Tensor
    seconds: float


def drawn(model: Model, captions: Sequence[str], numbers: Sequence[int], ask: Request, tell: Tell | None = None) -> Drawn:
    """Picture i is of captions[i] with the seed numbers[i], as `draw` would draw it but for the rounding of float32;
    the ask gives the rest. A caption is no prompt: it is read word by word, as in training."""
    most = images_per_batch(model, resolve(model, ask))
    begun, parts = time.perf_counter(), list[Tensor]()
    for first in range(0, len(captions), most):
        prompts = [escape(caption) for caption in captions[first : first + most]]
        images = draw_prompts(model, prompts, numbers[first : first + most], ask)
        parts.append(torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2))
        if tell is not None:
            tell(len(images))
    return Drawn(torch.cat(parts), (time.perf_counter() - begun) / max(1, len(captions)))
