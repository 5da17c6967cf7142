"""What a sampling pass starts from: pure noise, or an image with some noise at a later time."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from unspeckle.generation.codec import decode_to_images, encode_images
from unspeckle.generation.resolve import ResolvedRequest
from unspeckle.model import Model, SamplingSetup
from unspeckle.rng import NoiseFunction

VariationSeeds = Sequence[int | None]  # the variation seed of each row
# (step, draw) of the noise that is drawn before the first step
FIRST_NOISE, INIT_IMAGE, MASKED_IMAGE, SMALL_IMAGE = (-1, 0), (-2, 0), (-3, 0), (-4, 0)


class InitialLatents(NamedTuple):
    """The first x of a sampling pass, and what it continues from."""

    setup: SamplingSetup  # its times start where the pass does
    x: Tensor  # (B, C, h, w) at the first of these times
    noise: Tensor  # (B, C, h, w) standard normal: the noise in x
    step_noise: NoiseFunction  # the noise that samplers add later
    init_latents: Tensor | None = None  # (B or 1, C, h, w), of the image that the pass continues from
    mask: Tensor | None = None  # (1, 1, h, w) bool, True = redraw, False = keep
    mask_conditioning: Tensor | None = None  # (B or 1, 1 + C, h, w), for networks that take a mask as an input
    image_embeddings: Tensor | None = None  # (B, D) unit vectors, for networks that take them as an input
    small_images: Tensor | None = None  # (B, C, h, w), encoded small images, for networks that enlarge them


def initial_latents(resolved: ResolvedRequest, seeds: Sequence[int], variation_seeds: VariationSeeds) -> InitialLatents:
    """The start of a request's first or only pass.

    Noise is drawn in the same order as in diffusers' pipelines, on whose random generators the noise of Stable
    Diffusion depends: for the image's latents, for x, and for the latents of the masked image."""
    model, setup = resolved.drawing_model, resolved.setup
    step_noise, shape = _drawing_noise(model, resolved.size, seeds)
    variation_strength = resolved.variation_strength
    if resolved.image is None:
        noise = vary_noise(model, step_noise(*FIRST_NOISE), variation_seeds, variation_strength)
        return InitialLatents(setup, setup.initial_scale * noise, noise, step_noise)
    image = image_to_tensor(fit_image(resolved.image.convert("RGB"), resolved.size)).to(model.device)  # (1, 3, H, W)
    starts_from_noise = resolved.mask is not None and resolved.strength == 1  # as diffusers does
    init = None
    if not (starts_from_noise and model.takes_mask):
        init = encode_images(model, image, lambda: step_noise(*INIT_IMAGE), resolved.tile_size)
    noise = vary_noise(model, step_noise(*FIRST_NOISE), variation_seeds, variation_strength)
    if starts_from_noise or init is None:
        x = setup.initial_scale * noise
    else:
        setup, x = _noise_to_strength(resolved, init, noise)
    if resolved.mask is None:
        return InitialLatents(setup, x, noise, step_noise, init)
    white = image_to_tensor(fit_image(resolved.mask.convert("L"), resolved.size)).to(model.device) >= 0  # (1, 1, H, W)
    mask = F.interpolate(white.float(), shape[1:], mode="nearest") > 0
    if not model.takes_mask:
        return InitialLatents(setup, x, noise, step_noise, init, mask)
    masked = encode_images(model, image * ~white, lambda: step_noise(*MASKED_IMAGE), resolved.tile_size)
    mask_conditioning = torch.cat([mask.to(masked).expand(len(masked), -1, -1, -1), masked], 1)
    return InitialLatents(setup, x, noise, step_noise, mask_conditioning=mask_conditioning)


def hires_latents(
    resolved: ResolvedRequest, seeds: Sequence[int], variation_seeds: VariationSeeds, x: Tensor
) -> InitialLatents:
    """The start of a request's second pass: the first pass's x (B, C, h, w), enlarged to the final size."""
    model = resolved.drawing_model
    step_noise, shape = _drawing_noise(model, resolved.final_size, seeds)
    if resolved.upscaler == "latent":
        init = _enlarge_latents(x, shape[1], shape[2])
    else:
        small = decode_to_images(model, x, resolved.tile_size)
        large = torch.cat([image_to_tensor(fit_image(image, resolved.final_size)) for image in small]).to(model.device)
        init = encode_images(model, large, lambda: step_noise(*INIT_IMAGE), resolved.tile_size)
    noise = vary_noise(model, step_noise(*FIRST_NOISE), variation_seeds, resolved.variation_strength)
    setup, x = _noise_to_strength(resolved, init, noise)
    return InitialLatents(setup, x, noise, step_noise, init)


def _enlarge_latents(x: Tensor, height: int, width: int) -> Tensor:
    """x scaled until it covers height × width, and cropped to its center."""
    scale = max(height / x.shape[2], width / x.shape[3])
    scaled_height, scaled_width = (
        max(target, round(side * scale)) for target, side in zip((height, width), x.shape[2:], strict=True)
    )
    top, left = (scaled_height - height) // 2, (scaled_width - width) // 2
    scaled = F.interpolate(x, [scaled_height, scaled_width], mode="bilinear")
    return scaled[:, :, top : top + height, left : left + width]


def _drawing_noise(
    model: Model, size: tuple[int, int], seeds: Sequence[int]
) -> tuple[NoiseFunction, tuple[int, int, int]]:
    """The noise of a drawing of that size in pixels, and the shape (C, h, w) of its latents."""
    width, height = (side // model.autoencoder.downsampling_factor for side in size)
    shape = (model.autoencoder.latent_channels, height, width)
    return model.noise(seeds, shape), shape


def _noise_to_strength(resolved: ResolvedRequest, init: Tensor, noise: Tensor) -> tuple[SamplingSetup, Tensor]:
    """The setup with the last times only, as many as the request takes, and x at the first of them:
    alpha · init + sigma · noise."""
    setup = resolved.setup._replace(times=resolved.setup.times[resolved.steps - resolved.steps_after_strength :])
    alpha, sigma = (float(level) for level in setup.denoiser.schedule(setup.times[0]))
    return setup, alpha * init + sigma * noise


def vary_noise(model: Model, noise: Tensor, variation_seeds: VariationSeeds, strength: float) -> Tensor:
    """The noise (B, C, h, w), each row turned toward the noise of its variation seed: by strength 0 not at all, by 1
    fully. The noise itself where there are no variation seeds.

    Spherical interpolation (Shoemake 1985) of whole images, as the mean of two noises has a smaller deviation than
    noise. A1111's variation seed interpolates each column of the latents by itself."""
    seeds = [seed for seed in variation_seeds if seed is not None]
    if not seeds:
        return noise
    other = model.noise(seeds, noise.shape[1:])(*FIRST_NOISE)
    cosine = F.cosine_similarity(noise.flatten(1), other.flatten(1)).clamp(-1, 1)
    angle = cosine.acos().view(-1, 1, 1, 1)
    turned = ((1 - strength) * angle).sin() * noise + (strength * angle).sin() * other
    return torch.where(angle.sin() < 1e-4, noise, turned / angle.sin().clamp(min=1e-4))


def fit_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image scaled (Lanczos) until it covers the size (width, height), and cropped to its center."""
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def image_to_tensor(image: Image.Image) -> Tensor:
    """The image as (1, channels, H, W) in [-1, 1]."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*reversed(image.size), -1)
    return (data.permute(2, 0, 1)[None].float() / 127.5 - 1).contiguous()
