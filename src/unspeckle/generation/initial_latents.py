"""Where a drawing starts: at pure noise, or later on the way, at a picture with some noise in it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from unspeckle.generation.codec import encode_images, decode_to_images
from unspeckle.generation.request import ResolvedRequest
from unspeckle.model import Model, SamplingSetup
from unspeckle.rng import Noise

Others = Sequence[int | None]  # the seed of each row's variation


class InitialLatents(NamedTuple):
    """A drawing's first x, and what it goes on from."""

    setup: SamplingSetup  # its times begin where the drawing does
    x: Tensor  # (B, C, h, w) at the first of them
    noise: Tensor  # (B, C, h, w) standard normal: the noise in it
    step_noise: Noise  # what is drawn on the way
    init_latents: Tensor | None = None  # (B or 1, C, h, w): the picture that it goes on from
    mask: Tensor | None = None  # (1, 1, h, w) bool, True = paint, False = keep
    mask_conditioning: Tensor | None = None  # (B or 1, 1 + C, h, w): for networks that learnt what a mask is


def initial_latents(
    model: Model, resolved: ResolvedRequest, seeds: Sequence[int], variation_seeds: Others
) -> InitialLatents:
    """The start of an order, or of its first part where it is enlarged later. others: the seeds of variations.

    The ecosystem's generators are asked in the order in which diffusers' pipelines ask them: for the picture's latents,
    the noise, and the latents of what a mask leaves.
    """
    setup = model.sampling_setup(resolved.sampler, resolved.timestep_spacing, resolved.steps)
    step_noise, shape = drawing_noise(model, resolved.size, seeds)
    if resolved.image is None:
        noise = vary_noise(model, step_noise(-1, 0), variation_seeds, resolved.variation_strength)
        return InitialLatents(setup, setup.initial_scale * noise, noise, step_noise)
    image = image_to_tensor(fit_image(resolved.image.convert("RGB"), resolved.size)).to(model.device)  # (1, 3, H, W)
    from_noise_alone = resolved.mask is not None and resolved.strength == 1  # then diffusers starts at noise alone
    init_latents = (
        None
        if from_noise_alone and model.takes_mask
        else encode_images(model, image, lambda: step_noise(-2, 0), resolved.tile_size)
    )
    noise = vary_noise(model, step_noise(-1, 0), variation_seeds, resolved.variation_strength)
    setup, x = (
        (setup, setup.initial_scale * noise)
        if from_noise_alone or init_latents is None
        else noised_to_strength(setup, resolved, init_latents, noise)
    )
    if resolved.mask is None:
        return InitialLatents(setup, x, noise, step_noise, init_latents)
    white = image_to_tensor(fit_image(resolved.mask.convert("L"), resolved.size)).to(model.device) >= 0  # (1, 1, H, W)
    mask = F.interpolate(white.float(), shape[1:], mode="nearest") > 0
    if not model.takes_mask:
        return InitialLatents(setup, x, noise, step_noise, init_latents, mask)
    masked_latents = encode_images(model, image * ~white, lambda: step_noise(-3, 0), resolved.tile_size)
    return InitialLatents(
        setup,
        x,
        noise,
        step_noise,
        mask_conditioning=torch.cat(
            [mask.to(masked_latents).expand(len(masked_latents), -1, -1, -1), masked_latents], 1
        ),
    )


def hires_latents(
    model: Model, resolved: ResolvedRequest, seeds: Sequence[int], variation_seeds: Others, x: Tensor
) -> InitialLatents:
    """The start of an order's second part: from the first part's x, enlarged to the final size."""
    step_noise, shape = drawing_noise(model, resolved.final_size, seeds)
    if resolved.upscaler == "latent":
        grow = max(shape[1] / x.shape[2], shape[2] / x.shape[3])
        sides = [max(want, round(have * grow)) for want, have in zip(shape[1:], x.shape[2:], strict=True)]
        init_latents = F.interpolate(x, sides, mode="bilinear")
        top, left = ((have - want) // 2 for have, want in zip(sides, shape[1:], strict=True))
        init_latents = init_latents[:, :, top : top + shape[1], left : left + shape[2]]
    else:
        small = decode_to_images(model, x, resolved.tile_size)
        large = torch.cat([image_to_tensor(fit_image(one, resolved.final_size)) for one in small]).to(model.device)
        init_latents = encode_images(model, large, lambda: step_noise(-2, 0), resolved.tile_size)
    noise = vary_noise(model, step_noise(-1, 0), variation_seeds, resolved.variation_strength)
    setup, x = noised_to_strength(
        model.sampling_setup(resolved.sampler, resolved.timestep_spacing, resolved.steps), resolved, init_latents, noise
    )
    return InitialLatents(setup, x, noise, step_noise, init_latents)


def drawing_noise(model: Model, size: tuple[int, int], seeds: Sequence[int]) -> tuple[Noise, tuple[int, int, int]]:
    width, height = (side // model.autoencoder.downsampling_factor for side in size)
    shape = (model.autoencoder.latent_channels, height, width)
    return model.noise(seeds, shape), shape


def noised_to_strength(
    setup: SamplingSetup, resolved: ResolvedRequest, init_latents: Tensor, noise: Tensor
) -> tuple[SamplingSetup, Tensor]:
    """The last steps of the way, as many as the order takes, and the picture with the noise that is left there."""
    setup = setup._replace(times=setup.times[resolved.steps - resolved.img2img_steps :])
    alpha, sigma = (float(level) for level in setup.denoiser.schedule(setup.times[0]))
    return setup, alpha * init_latents + sigma * noise


def vary_noise(model: Model, noise: Tensor, variation_seeds: Others, strength: float) -> Tensor:
    """The noise (B, C, h, w), each row turned toward that of another seed: by 0 not at all, by 1 wholly. On the sphere
    (Shoemake 1985), as the mean of two noises is less than noise; as A1111's variation seed, which turns each column of
    the latents on its own."""
    seeds = [seed for seed in variation_seeds if seed is not None]
    if not seeds:
        return noise
    variation_noise = model.noise(seeds, noise.shape[1:])(-1, 0)
    cosine = F.cosine_similarity(noise.flatten(1), variation_noise.flatten(1)).clamp(-1, 1)
    angle = cosine.acos().view(-1, 1, 1, 1)
    turned = ((1 - strength) * angle).sin() * noise + (strength * angle).sin() * variation_noise
    return torch.where(angle.sin() < 1e-4, noise, turned / angle.sin().clamp(min=1e-4))


def fit_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture scaled (Lanczos) until it covers the size, the middle of it."""
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def image_to_tensor(image: Image.Image) -> Tensor:
    """(1, channels, H, W) in [-1, 1]."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*reversed(image.size), -1)
    return (data.permute(2, 0, 1)[None].float() / 127.5 - 1).contiguous()
