"""Painting where a mask says, with a network that knows nothing of masks: a wrap of its Denoise."""

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from unspeckle.denoiser import Denoise
from unspeckle.samplers import Step
from unspeckle.schedule import Schedule


def masked(denoise: Denoise, schedule: Schedule, known: Tensor, noise: Tensor, mask: Tensor, first: float) -> Denoise:
    """x̂ where the mask is, the known picture elsewhere; and there the network sees that picture with one noise at every
    time, alpha_t · known + sigma_t · noise (Lugmayr et al. 2022, "RePaint", eq. 8, without its returns), but for the
    time `first`, at which it sees the drawing's start as it is.

    diffusers blends x itself after each step. That is the same: what the mask covers moves place by place, by x̂ at
    that place alone, so it depends on the rest only through what the network sees. It differs in the last step of a way
    that ends above t = 0 (see `settled`), and where a step asks the network in its middle (dpmpp_sde), which diffusers'
    blending does not reach.
    """

    def painted(x_t: Tensor, t: Tensor) -> Tensor:
        if float(t.flatten()[0]) < first:
            alpha, sigma = (float(level) for level in schedule(t.flatten()[0].double().cpu()))
            x_t = torch.where(mask, x_t, alpha * known + sigma * noise)
        return torch.where(mask, denoise(x_t, t), known)

    return painted


def settled(steps: Iterator[Step], known: Tensor, mask: Tensor) -> Iterator[Step]:
    """The steps, the last one's x that of the known picture outside the mask: exactly, wherever the sampler ends."""
    before = next(steps)
    for step in steps:
        yield before
        before = step
    yield Step(before.t, *[torch.where(mask, before.x, known)] * 2)


def pasted(drawn: Image.Image, picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The drawn picture where the mask (L) is white, the other where it is black, mixed where it is grey."""
    return Image.composite(drawn, picture, mask)
