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
from unspeckle.networks.autoencoder import Identity
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import Schedule

LEVELS = 16  # of noise for each picture
SHARE = 64  # pictures a call of the network
NARROW = 0.5  # deviation of the last noise, in levels: of an eighth to two, the lowest bound on the embedded model
_REACH = 12  # levels away from the true one that are told apart
_NATS = math.log(2)


@dataclass(frozen=True)
class Bits:
    """Bits a dimension (one colour of one pixel), given the caption; upper bounds, on average over the pictures."""

    total: float
    error: float  # the standard error of the total, over pictures and noise
    prior: float
    reconstruction: float
    diffusion: float
    pictures: int
    log_snr: tuple[float, ...]  # at the middle of each share of the way
    curve: tuple[float, ...]  # bits a dimension and unit of u there; white noise costs ½ / log 2 everywhere


class _Way(NamedTuple):
    """The levels of noise from t = 1 to a fraction of a level of a colour, in u."""

    low: float
    high: float
    last: float  # sigma/alpha of the last noise


Rows = Callable[[int, int], Denoise]  # (first, last) to the denoiser of these pictures, captions bound


@torch.no_grad()
def bits(
    pictures: Tensor, autoencoder: Identity, schedule: Schedule, rows: Rows, tell: Callable[[int], None] | None = None
) -> Bits:
    """The bound for pictures (N, 3, H, W) uint8 that are what the network was made for. tell: calls times pictures."""
    step = 1 / 127.5 / autoencoder.deviation.flatten().double().cpu()  # between two levels of each colour, in x
    way = _way(schedule, NARROW * float(step.min()))
    prior, diffusion = [], []
    for first in range(0, len(pictures), SHARE):
        x = autoencoder.encode(pictures[first : first + SHARE].to(autoencoder.mean.device).float() / 127.5 - 1)
        prior.append(math.expm1(way.low) * x.double().square().flatten(1).mean(1).cpu() / 2 / _NATS)
        diffusion.append(_diffusion(x, first, way, schedule, rows(first, first + len(x)), tell))
    told, begun, spent = (
        _telling(pictures, step / way.last),
        torch.cat(prior),
        torch.cat(diffusion),
    )  # spent (N, LEVELS)
    total = begun + told + spent.mean(1) * (way.high - way.low)
    middles = way.low + (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS * (way.high - way.low)
    return Bits(
        total=float(total.mean()), error=float(total.std() / len(total) ** 0.5) if len(total) > 1 else math.inf,
        prior=float(begun.mean()), reconstruction=float(told.mean()),
        diffusion=float(spent.mean()) * (way.high - way.low), pictures=len(pictures),
        log_snr=tuple(torch.expm1(middles).log().tolist()), curve=tuple(spent.mean(0).tolist()),
    )  # fmt: skip


def _way(schedule: Schedule, last: float) -> _Way:
    alpha, sigma = schedule(torch.ones((), dtype=torch.float64))
    return _Way(math.log1p(float(alpha / sigma) ** 2), math.log1p(last**-2), last)


def _diffusion(
    x: Tensor, first: int, way: _Way, schedule: Schedule, denoise: Denoise, tell: Callable[[int], None] | None
) -> Tensor:
    """(B, LEVELS) float64: the integrand, bits a dimension, at a random u in each equal share of the way."""
    stream = ExampleRNG(0, torch.arange(first, first + len(x), device=x.device))
    place = stream.uniform(LEVELS).double()
    costs = []
    for level in range(LEVELS):
        u = way.low + (way.high - way.low) * (level + place) / LEVELS
        t = schedule.inverse(torch.expm1(u) ** -0.5)
        alpha, sigma = (value.to(x.dtype).view(-1, 1, 1, 1) for value in schedule(t))
        estimate = denoise(alpha * x + sigma * stream.normal(level, x.shape[1:]).to(x.dtype), t)
        error = (estimate - x).double().square().flatten(1).mean(1)
        costs.append((u.exp() * error / 2 / _NATS).cpu())
        if tell is not None:
            tell(len(x))
    return torch.stack(costs, 1)


def _telling(pictures: Tensor, steps: Tensor) -> Tensor:
    """(N,) bits a dimension: of each level given itself plus unit noise, where neighbours are `steps` (3,) apart and
    p(level | value) is in proportion to the noise's density there. Exact but for the quadrature over the noise."""
    eps = torch.special.ndtri((torch.arange(2**14, dtype=torch.float64) + 0.5) / 2**14)
    away = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64)
    log = -(eps[None, :, None] - away * steps[:, None, None]).square() / 2 + eps.square()[None, :, None] / 2
    inner = torch.logsumexp(log, 2).mean(1) / _NATS  # (3,)
    edge = torch.logsumexp(log[:, :, _REACH:], 2).mean(1) / _NATS  # of black and of white, which lack one side
    share = ((pictures == 0) | (pictures == 255)).double().flatten(2).mean(2)  # (N, 3)
    return (share * edge + (1 - share) * inner).mean(1)
