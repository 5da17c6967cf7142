"""How many bits an image costs under the model: the variational bound of Kingma et al. 2021, on any noise schedule.

Their eq. 11 and 18, with SNR = (alpha/sigma)², in nats:

    -log p(x) <= KL(q(x_1 | x) ‖ p(x_1))  +  E[-log p(x | x_s)]  +  ½ ∫ E‖x - x̂(x_t, t)‖² dSNR

prior           p(x_1) is what sampling starts from, noise of standard deviation sigma_1, so the first term is
                (alpha_1/sigma_1)² ‖x‖² / 2
reconstruction  the second term is the cost of telling each of 256 color levels from a value with noise of half a level
                (their eq. 8)
diffusion       the integral runs from the SNR at t = 1 to that of this last noise

Every x̂ gives a valid bound; the best x̂ gives the lowest.

In u = log(1 + SNR) the integrand, ½ (1 + SNR) E‖x - x̂‖², is constant for images of white noise. So u is sampled
uniformly: for each image, one noise level in each of NOISE_LEVELS equal parts of its range.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unspeckle.denoiser import Denoise
from unspeckle.networks.autoencoder import PixelAutoencoder
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import Schedule

NOISE_LEVELS = 16  # noise levels for each image
BATCH_SIZE = 64  # images in one call of the network
# Standard deviation of the last noise, in color levels: of 1/8 to 2, the lowest bound on the embedded model.
FINAL_NOISE_STD = 0.5
_NEIGHBOR_LEVELS = 12  # levels on either side of the true one that the reconstruction takes into account
_NATS_PER_BIT = math.log(2)


@dataclass(frozen=True)
class BitsPerDim:
    """Upper bounds in bits per dimension (one color of one pixel), given the caption, averaged over the images."""

    total: float  # the sum of prior, reconstruction and diffusion
    standard_error: float  # the standard error of the total, over images and noise
    prior: float
    reconstruction: float
    diffusion: float
    image_count: int
    log_snr: tuple[float, ...]  # the log-SNR in the middle of each of the NOISE_LEVELS parts
    # Bits per dimension and unit of u in each part; white noise costs ½ / log 2 everywhere.
    bits_by_log_snr: tuple[float, ...]


class _NoiseRange(NamedTuple):
    """The noise levels from t = 1 to a fraction of a color level, as u = log(1 + SNR)."""

    u_min: float
    u_max: float
    final_noise_std: float  # sigma/alpha of the last noise

    @property
    def width(self) -> float:
        return self.u_max - self.u_min


# Called with (first, last): the denoiser of images[first:last], with their captions as its conditioning.
BindDenoiser = Callable[[int, int], Denoise]


@torch.no_grad()
def measure_bits_per_dim(
    images: Tensor,
    autoencoder: PixelAutoencoder,
    schedule: Schedule,
    bind_denoiser: BindDenoiser,
    advance: Callable[[int], None] | None = None,
) -> BitsPerDim:
    """The bound for images (N, 3, H, W) uint8 of the size that the network was trained for.

    advance is called with the number of further calls of the network, times images.
    """
    level_steps = 1 / 127.5 / autoencoder.std.flatten().double().cpu()  # (3,): one color level in units of x
    noise = _find_noise_range(schedule, FINAL_NOISE_STD * float(level_steps.min()))
    prior_batches, diffusion_batches = [], []
    for first in range(0, len(images), BATCH_SIZE):
        x = autoencoder.encode(images[first : first + BATCH_SIZE].to(autoencoder.mean.device).float() / 127.5 - 1)
        mean_square = x.double().square().flatten(1).mean(1).cpu()  # (B,)
        prior_batches.append(math.expm1(noise.u_min) * mean_square / 2 / _NATS_PER_BIT)
        denoise = bind_denoiser(first, first + len(x))
        diffusion_batches.append(_diffusion_bits(x, denoise, noise, schedule, first_index=first, advance=advance))
    reconstruction = _reconstruction_bits(images, level_steps / noise.final_noise_std)  # (N,)
    prior, diffusion = torch.cat(prior_batches), torch.cat(diffusion_batches)  # (N,), (N, NOISE_LEVELS)
    total = prior + reconstruction + diffusion.mean(1) * noise.width
    centers = (torch.arange(NOISE_LEVELS, dtype=torch.float64) + 0.5) / NOISE_LEVELS
    u_centers = noise.u_min + centers * noise.width
    return BitsPerDim(
        total=float(total.mean()),
        standard_error=float(total.std() / len(total) ** 0.5) if len(total) > 1 else math.inf,
        prior=float(prior.mean()),
        reconstruction=float(reconstruction.mean()),
        diffusion=float(diffusion.mean()) * noise.width,
        image_count=len(images),
        log_snr=tuple(torch.expm1(u_centers).log().tolist()),
        bits_by_log_snr=tuple(diffusion.mean(0).tolist()),
    )


def _find_noise_range(schedule: Schedule, final_noise_std: float) -> _NoiseRange:
    alpha, sigma = schedule(torch.ones((), dtype=torch.float64))
    return _NoiseRange(math.log1p(float(alpha / sigma) ** 2), math.log1p(final_noise_std**-2), final_noise_std)


def _diffusion_bits(
    x: Tensor,
    denoise: Denoise,
    noise: _NoiseRange,
    schedule: Schedule,
    *,
    first_index: int,
    advance: Callable[[int], None] | None,
) -> Tensor:
    """(B, NOISE_LEVELS) float64: the integrand in bits per dimension, at a random u in each part of the range."""
    rng = ExampleRNG(0, torch.arange(first_index, first_index + len(x), device=x.device))
    offset = rng.uniform(NOISE_LEVELS).double()  # (B,)
    bits_by_level = []
    for level in range(NOISE_LEVELS):
        u = noise.u_min + (noise.u_max - noise.u_min) * (level + offset) / NOISE_LEVELS
        t = schedule.inverse(torch.expm1(u) ** -0.5)
        alpha, sigma = (value.to(x.dtype).view(-1, 1, 1, 1) for value in schedule(t))
        denoised = denoise(alpha * x + sigma * rng.normal(level, x.shape[1:]).to(x.dtype), t)
        squared_error = (denoised - x).double().square().flatten(1).mean(1)
        bits_by_level.append((u.exp() * squared_error / 2 / _NATS_PER_BIT).cpu())
        if advance is not None:
            advance(len(x))
    return torch.stack(bits_by_level, 1)


def _reconstruction_bits(images: Tensor, level_steps: Tensor) -> Tensor:
    """(N,) bits per dimension for each color level, given the level plus noise of standard deviation 1.

    Neighboring levels are level_steps (3,) apart, and p(level | value) is proportional to the noise's density there.
    Exact but for the quadrature over the noise.
    """
    eps = torch.special.ndtri((torch.arange(2**14, dtype=torch.float64) + 0.5) / 2**14)
    level_offsets = torch.arange(-_NEIGHBOR_LEVELS, _NEIGHBOR_LEVELS + 1, dtype=torch.float64)
    distances = eps[None, :, None] - level_offsets * level_steps[:, None, None]  # (3, eps, levels)
    log_ratios = -distances.square() / 2 + eps.square()[None, :, None] / 2
    inner_bits = torch.logsumexp(log_ratios, 2).mean(1) / _NATS_PER_BIT  # (3,)
    # Black and white have neighbors on one side only
    edge_bits = torch.logsumexp(log_ratios[:, :, _NEIGHBOR_LEVELS:], 2).mean(1) / _NATS_PER_BIT
    edge_fraction = ((images == 0) | (images == 255)).double().flatten(2).mean(2)  # (N, 3)
    return (edge_fraction * edge_bits + (1 - edge_fraction) * inner_bits).mean(1)
