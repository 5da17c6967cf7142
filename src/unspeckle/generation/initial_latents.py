"""Where a drawing starts: at pure noise, or later on the way, at a picture with some noise in it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from unspeckle.generation.codec import encoded, pictures
from unspeckle.generation.request import Order
from unspeckle.model import Model, Way
from unspeckle.rng import Noise

Others = Sequence[int | None]  # the seed of each row's variation


class Start(NamedTuple):
    """A drawing's first x, and what it goes on from."""

    way: Way  # its times begin where the drawing does
    x: Tensor  # (B, C, h, w) at the first of them
    noise: Tensor  # (B, C, h, w) standard normal: the noise in it
    fresh: Noise  # what is drawn on the way
    known: Tensor | None = None  # (B or 1, C, h, w): the picture that it goes on from
    mask: Tensor | None = None  # (1, 1, h, w) bool, True = paint, False = keep
    beside: Tensor | None = None  # (B or 1, 1 + C, h, w): for networks that learnt what a mask is


def begin(model: Model, order: Order, seeds: Sequence[int], others: Others) -> Start:
    """The start of an order, or of its first part where it is enlarged later. others: the seeds of variations.

    The ecosystem's generators are asked in the order in which diffusers' pipelines ask them: for the picture's latents,
    the noise, and the latents of what a mask leaves.
    """
    way = model.way(order.sampler, order.grid, order.steps)
    fresh, shape = _noise(model, order.size, seeds)
    if order.image is None:
        noise = varied(model, fresh(-1, 0), others, order.variation_strength)
        return Start(way, way.start * noise, noise, fresh)
    picture = tensor(fitted(order.image.convert("RGB"), order.size)).to(model.device)  # (1, 3, H, W)
    anew = order.mask is not None and order.strength == 1  # then diffusers starts at noise alone
    known = None if anew and model.masks else encoded(model, picture, lambda: fresh(-2, 0), order.tiles)
    noise = varied(model, fresh(-1, 0), others, order.variation_strength)
    way, x = (way, way.start * noise) if anew or known is None else _later(way, order, known, noise)
    if order.mask is None:
        return Start(way, x, noise, fresh, known)
    white = tensor(fitted(order.mask.convert("L"), order.size)).to(model.device) >= 0  # (1, 1, H, W)
    mask = F.interpolate(white.float(), shape[1:], mode="nearest") > 0
    if not model.masks:
        return Start(way, x, noise, fresh, known, mask)
    left = encoded(model, picture * ~white, lambda: fresh(-3, 0), order.tiles)
    return Start(way, x, noise, fresh, beside=torch.cat([mask.to(left).expand(len(left), -1, -1, -1), left], 1))


def again(model: Model, order: Order, seeds: Sequence[int], others: Others, x: Tensor) -> Start:
    """The start of an order's second part: from the first part's x, enlarged to the final size."""
    fresh, shape = _noise(model, order.sides, seeds)
    if order.upscaler == "latent":
        grow = max(shape[1] / x.shape[2], shape[2] / x.shape[3])
        sides = [max(want, round(have * grow)) for want, have in zip(shape[1:], x.shape[2:], strict=True)]
        known = F.interpolate(x, sides, mode="bilinear")
        top, left = ((have - want) // 2 for have, want in zip(sides, shape[1:], strict=True))
        known = known[:, :, top : top + shape[1], left : left + shape[2]]
    else:
        small = pictures(model, x, order.tiles)
        large = torch.cat([tensor(fitted(one, order.sides)) for one in small]).to(model.device)
        known = encoded(model, large, lambda: fresh(-2, 0), order.tiles)
    noise = varied(model, fresh(-1, 0), others, order.variation_strength)
    way, x = _later(model.way(order.sampler, order.grid, order.steps), order, known, noise)
    return Start(way, x, noise, fresh, known)


def _noise(model: Model, size: tuple[int, int], seeds: Sequence[int]) -> tuple[Noise, tuple[int, int, int]]:
    width, height = (side // model.autoencoder.factor for side in size)
    shape = (model.autoencoder.channels, height, width)
    return model.noise(seeds, shape), shape


def _later(way: Way, order: Order, known: Tensor, noise: Tensor) -> tuple[Way, Tensor]:
    """The last steps of the way, as many as the order takes, and the picture with the noise that is left there."""
    way = way._replace(times=way.times[order.steps - order.later :])
    alpha, sigma = (float(level) for level in way.denoiser.schedule(way.times[0]))
    return way, alpha * known + sigma * noise


def varied(model: Model, noise: Tensor, others: Others, strength: float) -> Tensor:
    """The noise (B, C, h, w), each row turned toward that of another seed: by 0 not at all, by 1 wholly. On the sphere
    (Shoemake 1985), as the mean of two noises is less than noise; as A1111's variation seed, which turns each column of
    the latents on its own."""
    seeds = [seed for seed in others if seed is not None]
    if not seeds:
        return noise
    there = model.noise(seeds, noise.shape[1:])(-1, 0)
    cosine = F.cosine_similarity(noise.flatten(1), there.flatten(1)).clamp(-1, 1)
    angle = cosine.acos().view(-1, 1, 1, 1)
    turned = ((1 - strength) * angle).sin() * noise + (strength * angle).sin() * there
    return torch.where(angle.sin() < 1e-4, noise, turned / angle.sin().clamp(min=1e-4))


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture scaled (Lanczos) until it covers the size, the middle of it."""
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def tensor(picture: Image.Image) -> Tensor:
    """(1, channels, H, W) in [-1, 1]."""
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(*reversed(picture.size), -1)
    return (data.permute(2, 0, 1)[None].float() / 127.5 - 1).contiguous()
