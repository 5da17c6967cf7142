"""Painting where a mask says, with a network that knows nothing of masks: a wrap of its Denoise."""

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from unspeckle.denoiser import Denoise
from unspeckle.samplers import Step
from unspeckle.schedule import Schedule


def inpainting_denoise(
    denoise: Denoise, schedule: Schedule, init_latents: Tensor, noise: Tensor, mask: Tensor, first_time: float
) -> Denoise:
    """x̂ where the mask is, the known picture elsewhere; and there the network sees that picture with one noise at every
    time, alpha_t · known + sigma_t · noise (Lugmayr et al. 2022, "RePaint", eq. 8, without its returns), but for the
    time `first`, at which it sees the drawing's start as it is.

    diffusers blends x itself after each step. That is the same: what the mask covers moves place by place, by x̂ at
    that place alone, so it depends on the rest only through what the network sees. It differs in the last step of a way
    that ends above t = 0 (see `settled`), and where a step asks the network in its middle (dpmpp_sde), which diffusers'
    blending does not reach.
    """

    def inpaint(x_t: Tensor, t: Tensor) -> Tensor:
        if float(t.flatten()[0]) < first_time:
            alpha, sigma = (float(level) for level in schedule(t.flatten()[0].double().cpu()))
            x_t = torch.where(mask, x_t, alpha * init_latents + sigma * noise)
        return torch.where(mask, denoise(x_t, t), init_latents)

    return inpaint


def restore_unmasked(steps: Iterator[Step], init_latents: Tensor, mask: Tensor) -> Iterator[Step]:
    """The steps, the last one's x that of the known picture outside the mask: exactly, wherever the sampler ends."""
    previous = next(steps)
    for step in steps:
        yield previous
        previous = step
    yield Step(previous.t, *[torch.where(mask, previous.x, init_latents)] * 2)


def paste_original(generated: Image.Image, original: Image.Image, mask: Image.Image) -> Image.Image:
    """The drawn picture where the mask (L) is white, the other where it is black, mixed where it is grey."""
    return Image.composite(generated, original, mask)
