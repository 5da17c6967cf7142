"""Inpainting with a network that takes no mask as an input: a wrapper around its Denoise."""

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from unspeckle.denoiser import Denoise
from unspeckle.samplers import Step
from unspeckle.schedule import Schedule


def build_inpainting_denoise(
    denoise: Denoise, schedule: Schedule, init_latents: Tensor, noise: Tensor, mask: Tensor, *, first_time: float
) -> Denoise:
    """x̂ where the mask is True (redraw), the initial latents where it is False (keep).

    Where the mask is False, the network sees the initial latents with the same noise at every time,
    alpha_t · init_latents + sigma_t · noise (Lugmayr et al. 2022, "RePaint", eq. 8, without its resampling); at
    first_time it sees x as the pass starts.

    diffusers blends x itself after each step, which is the same: a sampler moves every place of x by x̂ at that place
    alone, so the rest of x matters only through what the network sees. It differs in the last step of times that end
    above t = 0 (see `restore_unmasked`), and where a sampler calls the network in the middle of a step (dpmpp_sde),
    which diffusers' blending does not reach."""

    def inpaint(x_t: Tensor, t: Tensor) -> Tensor:
        if float(t.flatten()[0]) < first_time:
            alpha, sigma = (float(level) for level in schedule(t.flatten()[0].double().cpu()))
            x_t = torch.where(mask, x_t, alpha * init_latents + sigma * noise)
        return torch.where(mask, denoise(x_t, t), init_latents)

    return inpaint


def restore_unmasked(steps: Iterator[Step], init_latents: Tensor, mask: Tensor) -> Iterator[Step]:
    """The steps, with the last one's x set to the initial latents where the mask is False."""
    previous = next(steps)
    for step in steps:
        yield previous
        previous = step
    x = torch.where(mask, previous.x, init_latents)
    yield Step(previous.t, x, x)


def paste_original(generated: Image.Image, original: Image.Image, mask: Image.Image) -> Image.Image:
    """The generated image where the mask (L) is white, the original where it is black, mixed where it is gray."""
    return Image.composite(generated, original, mask)
