"""How many bits a picture costs under the model: the variational bound of Kingma et al. 2021, on any schedule.

Their eq. 11 and 18, with SNR = (alpha/sigma)², in nats:

    -log p(x) <= KL(q(x_1 | x) ‖ p(x_1))  +  E[-log p(x | x_s)]  +  ½ ∫ E‖x - x̂(x_t, t)‖² dSNR

p(x_1) is what a drawing starts from, noise of deviation sigma_1, so the first term is (alpha_1/sigma_1)² ‖x‖² / 2. The
second is the price of telling each of 256 levels from a value with noise of half a level in it (their eq. 8); the
third runs from the SNR of t = 1 to that noise's. Every x̂ makes a valid bound; the best x̂ makes the lowest.

In u = log(1 + SNR) the integrand, ½ (1 + SNR) E‖x - x̂‖², is flat for pictures that are white noise. So u is drawn
evenly: of each picture, one level of noise in each of equal shares of the way.
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

NOISE_LEVELS = 16  # of noise for each picture
BATCH_SIZE = 64  # pictures a call of the network
FINAL_NOISE_STD = (
    0.5  # deviation of the last noise, in levels: of an eighth to two, the lowest bound on the embedded model
)
_NEIGHBOR_LEVELS = 12  # levels away from the true one that are told apart
_NATS_PER_BIT = math.log(2)


@dataclass(frozen=True)
class BitsPerDim:
    """Bits a dimension (one colour of one pixel), given the caption; upper bounds, on average over the pictures."""

    total: float
    standard_error: float  # the standard error of the total, over pictures and noise
    prior: float
    reconstruction: float
    diffusion: float
    image_count: int
    log_snr: tuple[float, ...]  # at the middle of each share of the way
    bits_by_log_snr: tuple[float, ...]  # bits a dimension and unit of u there; white noise costs ½ / log 2 everywhere


class _NoiseRange(NamedTuple):
    """The levels of noise from t = 1 to a fraction of a level of a colour, in u."""

    u_min: float
    u_max: float
    final_noise_std: float  # sigma/alpha of the last noise


BindDenoiser = Callable[[int, int], Denoise]  # (first, last) to the denoiser of these pictures, captions bound


@torch.no_grad()
def measure_bits_per_dim(
    images: Tensor,
    autoencoder: PixelAutoencoder,
    schedule: Schedule,
    bind_denoiser: BindDenoiser,
    advance: Callable[[int], None] | None = None,
) -> BitsPerDim:
    """The bound for pictures (N, 3, H, W) uint8 that are what the network was made for. tell: calls times pictures."""
    level_steps = 1 / 127.5 / autoencoder.std.flatten().double().cpu()  # between two levels of each colour, in x
    noise_range = _find_noise_range(schedule, FINAL_NOISE_STD * float(level_steps.min()))
    prior_batches, diffusion_batches = [], []
    for first in range(0, len(images), BATCH_SIZE):
        x = autoencoder.encode(images[first : first + BATCH_SIZE].to(autoencoder.mean.device).float() / 127.5 - 1)
        prior_batches.append(
            math.expm1(noise_range.u_min) * x.double().square().flatten(1).mean(1).cpu() / 2 / _NATS_PER_BIT
        )
        diffusion_batches.append(
            _diffusion_bits(x, first, noise_range, schedule, bind_denoiser(first, first + len(x)), advance)
        )
    reconstruction_bits, prior_bits, diffusion_bits = (
        _reconstruction_bits(images, level_steps / noise_range.final_noise_std),
        torch.cat(prior_batches),
        torch.cat(diffusion_batches),
    )  # spent (N, LEVELS)
    total = prior_bits + reconstruction_bits + diffusion_bits.mean(1) * (noise_range.u_max - noise_range.u_min)
    u_centers = noise_range.u_min + (torch.arange(NOISE_LEVELS, dtype=torch.float64) + 0.5) / NOISE_LEVELS * (
        noise_range.u_max - noise_range.u_min
    )
    return BitsPerDim(
        total=float(total.mean()), standard_error=float(total.std() / len(total) ** 0.5) if len(total) > 1 else math.inf,
        prior=float(prior_bits.mean()), reconstruction=float(reconstruction_bits.mean()),
        diffusion=float(diffusion_bits.mean()) * (noise_range.u_max - noise_range.u_min), image_count=len(images),
        log_snr=tuple(torch.expm1(u_centers).log().tolist()), bits_by_log_snr=tuple(diffusion_bits.mean(0).tolist()),
    )  # fmt: skip


def _find_noise_range(schedule: Schedule, final_noise_std: float) -> _NoiseRange:
    alpha, sigma = schedule(torch.ones((), dtype=torch.float64))
    return _NoiseRange(math.log1p(float(alpha / sigma) ** 2), math.log1p(final_noise_std**-2), final_noise_std)


def _diffusion_bits(
    x: Tensor,
    first_index: int,
    noise_range: _NoiseRange,
    schedule: Schedule,
    denoise: Denoise,
    advance: Callable[[int], None] | None,
) -> Tensor:
    """(B, LEVELS) float64: the integrand, bits a dimension, at a random u in each equal share of the way."""
    rng = ExampleRNG(0, torch.arange(first_index, first_index + len(x), device=x.device))
    offset = rng.uniform(NOISE_LEVELS).double()
    bits_by_level = []
    for level in range(NOISE_LEVELS):
        u = noise_range.u_min + (noise_range.u_max - noise_range.u_min) * (level + offset) / NOISE_LEVELS
        t = schedule.inverse(torch.expm1(u) ** -0.5)
        alpha, sigma = (value.to(x.dtype).view(-1, 1, 1, 1) for value in schedule(t))
        denoised = denoise(alpha * x + sigma * rng.normal(level, x.shape[1:]).to(x.dtype), t)
        squared_error = (denoised - x).double().square().flatten(1).mean(1)
        bits_by_level.append((u.exp() * squared_error / 2 / _NATS_PER_BIT).cpu())
        if advance is not None:
            advance(len(x))
    return torch.stack(bits_by_level, 1)


def _reconstruction_bits(images: Tensor, level_steps: Tensor) -> Tensor:
    """(N,) bits a dimension: of each level given itself plus unit noise, where neighbours are `steps` (3,) apart and
    p(level | value) is in proportion to the noise's density there. Exact but for the quadrature over the noise."""
    eps = torch.special.ndtri((torch.arange(2**14, dtype=torch.float64) + 0.5) / 2**14)
    level_offsets = torch.arange(-_NEIGHBOR_LEVELS, _NEIGHBOR_LEVELS + 1, dtype=torch.float64)
    log_ratios = (
        -(eps[None, :, None] - level_offsets * level_steps[:, None, None]).square() / 2
        + eps.square()[None, :, None] / 2
    )
    inner_bits = torch.logsumexp(log_ratios, 2).mean(1) / _NATS_PER_BIT  # (3,)
    edge_bits = (
        torch.logsumexp(log_ratios[:, :, _NEIGHBOR_LEVELS:], 2).mean(1) / _NATS_PER_BIT
    )  # of black and of white, which lack one side
    edge_fraction = ((images == 0) | (images == 255)).double().flatten(2).mean(2)  # (N, 3)
    return (edge_fraction * edge_bits + (1 - edge_fraction) * inner_bits).mean(1)
