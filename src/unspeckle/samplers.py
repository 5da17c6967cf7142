"""From noise to an image: each sampler is a generator of steps under its own name.

A sampler sees (x_t, t) -> denoised and nothing else, and works on every schedule. All of them move by `ddim_step`, the
one law solved for x_s. Where k-diffusion writes sigma, this file has sigma / alpha; the two are equal where alpha = 1.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from unspeckle.denoiser import Denoise
from unspeckle.rng import Noise
from unspeckle.schedule import Schedule


class Step(NamedTuple):
    """One step of a drawing, before x moves. The last Step holds the result: its x and its denoised are the same."""

    t: Tensor  # () float64, the time of x: 1 is pure noise, 0 the image
    x: Tensor  # (B, C, H, W)
    denoised: Tensor  # (B, C, H, W), the image expected at this time


Steps = Iterator[Step]
Sampler = Callable[[Denoise, Schedule, Tensor, Tensor, Noise], Steps]  # denoise, schedule, times (N + 1,), x, noise


class NoiseLevel(NamedTuple):
    """A time and what the schedule says of it: scalars, float64 on the CPU, so that no device waits for them."""

    time: Tensor
    alpha: Tensor
    sigma: Tensor


def noise_levels(schedule: Schedule, times: Tensor) -> list[NoiseLevel]:
    """The noise levels at times (N,)."""
    times = times.double().cpu()
    return [NoiseLevel(*level) for level in zip(times, *schedule(times), strict=True)]


def log_snr_gain(t: NoiseLevel, s: NoiseLevel) -> Tensor:
    """Half the log-SNR gained from t to s, DPM-Solver's h = lambda_s - lambda_t with lambda = log(alpha / sigma);
    infinite where t is pure noise or s the image."""
    return (s.alpha * t.sigma / (s.sigma * t.alpha)).log()


def ddim_step(
    x: Tensor, denoised: Tensor, t: NoiseLevel, s: NoiseLevel, eta: float = 0, eps: Tensor | float = 0
) -> Tensor:
    """x_s = alpha_s x̂ + kept (x_t - alpha_t x̂) / sigma_t + fresh eps, where kept² + fresh² = sigma_s².

    eta = 0 keeps the noise that is in x_t (the ODE); eta = 1 is the ancestral step (Song et al. 2021, eq. 16)."""
    shrink = t.alpha * s.sigma / (t.sigma * s.alpha)
    fresh = s.sigma * (eta * (1 - shrink**2).clamp(min=0).sqrt()).clamp(max=1)
    kept = (s.sigma**2 - fresh**2).sqrt()
    return s.alpha * denoised + kept / t.sigma * (x - t.alpha * denoised) + fresh * eps


def predicted_noise(x: Tensor, denoised: Tensor, t: NoiseLevel) -> Tensor:
    """eps in x_t = alpha_t x̂ + sigma_t eps."""
    return (x - t.alpha * denoised) / t.sigma


def step_length(t: NoiseLevel, s: NoiseLevel) -> Tensor:
    """The length of a step in sigma / alpha, in the units of x at s; the slope along it is eps."""
    return s.sigma - s.alpha / t.alpha * t.sigma


@torch.no_grad()
def euler(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, Alg. 1 without its correction)."""
    for t, s in pairwise(noise_levels(schedule, times)):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        x = ddim_step(x, denoised, t, s)
    yield Step(s.time, x, x)


@torch.no_grad()
def euler_ancestral(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """Euler's method with fresh noise at each step (Song et al. 2021, eq. 16 with eta = 1)."""
    for i, (t, s) in enumerate(pairwise(noise_levels(schedule, times))):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        x = ddim_step(x, denoised, t, s, eta=1, eps=noise(i, 0))
    yield Step(s.time, x, x)


@torch.no_grad()
def ddim(
    denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise, *, eta: float = 0.0
) -> Steps:  # fmt: skip
    """DDIM (Song et al. 2021, eq. 12). eta = 0 is Euler's method; between 0 and 1 part of the noise is fresh."""
    for i, (t, s) in enumerate(pairwise(noise_levels(schedule, times))):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        x = ddim_step(x, denoised, t, s, eta, noise(i, 0) if eta else 0)
    yield Step(s.time, x, x)


@torch.no_grad()
def ddpm(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """Ancestral sampling with the smaller posterior variance (Ho et al. 2020, Alg. 2): DDIM with eta = 1."""
    yield from ddim(denoise, schedule, times, x, noise, eta=1.0)


@torch.no_grad()
def lcm(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """Multistep consistency sampling (Song et al. 2023, Alg. 1; Luo et al. 2023): all noise is fresh at each step."""
    for i, (t, s) in enumerate(pairwise(noise_levels(schedule, times))):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        x = s.alpha * denoised + s.sigma * noise(i, 0)
    yield Step(s.time, x, x)


@torch.no_grad()
def heun(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """Heun's method (Karras et al. 2022, Alg. 1). Two network calls a step, one where an end is pure noise or image."""
    for t, s in pairwise(noise_levels(schedule, times)):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        x_t, x = x, ddim_step(x, denoised, t, s)  # Euler's step, which the slope at its end corrects
        if t.alpha > 0 and s.sigma > 0:
            slope_t, slope_s = predicted_noise(x_t, denoised, t), predicted_noise(x, denoise(x, s.time), s)
            x = x + step_length(t, s) / 2 * (slope_s - slope_t)
    yield Step(s.time, x, x)


@torch.no_grad()
def lms(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """Linear multistep (Adams-Bashforth) of up to fourth order in sigma / alpha (Crowson 2022, k-diffusion)."""
    levels = noise_levels(schedule, times)
    nodes = torch.stack([level.sigma / level.alpha for level in levels])
    past: list[Tensor] = []  # eps of up to three earlier steps, the newest last
    for i, (t, s) in enumerate(pairwise(levels)):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        eps = predicted_noise(x, denoised, t) if t.alpha > 0 else None
        x = ddim_step(x, denoised, t, s)
        if eps is not None:
            x = x + _multistep_correction(eps, past, nodes[i - len(past) : i + 2], step_length(t, s))
            past = [*past[-2:], eps]
    yield Step(s.time, x, x)


@torch.no_grad()
def plms(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """Pseudo linear multistep (Liu et al. 2022, eq. 9 and 12): LMS with weights as though steps were equal; the first
    step is Heun's."""
    levels = noise_levels(schedule, times)
    nodes = -torch.arange(len(levels), dtype=torch.float64)
    past: list[Tensor] = []  # eps of up to three earlier steps, the newest last
    for i, (t, s) in enumerate(pairwise(levels)):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        eps = predicted_noise(x, denoised, t) if t.alpha > 0 else None
        x = ddim_step(x, denoised, t, s)
        if eps is not None:
            if i == 0 and len(levels) > 2:
                x = x + step_length(t, s) * ((predicted_noise(x, denoise(x, s.time), s) - eps) / 2)
            else:
                x = x + _multistep_correction(eps, past, nodes[i - len(past) : i + 2], step_length(t, s))
            past = [*past[-2:], eps]
    yield Step(s.time, x, x)


def _multistep_correction(eps: Tensor, past: Sequence[Tensor], nodes: Tensor, length: Tensor) -> Tensor | float:
    """What earlier slopes change in Euler's step: length · Σ w_i (past_i - eps). nodes: the places of the past slopes,
    of eps, and of the step's end."""
    if not past:
        return 0.0
    weights = _adams_bashforth_weights(nodes)
    return length * torch.stack([weight * (old - eps) for weight, old in zip(weights[:-1], past, strict=True)]).sum(0)


def _adams_bashforth_weights(nodes: Tensor) -> Tensor:
    """The weights of a curve's values at all nodes but the last, so that their sum is its mean over the last step."""
    shares = (nodes[:-1] - nodes[-2]) / (nodes[-1] - nodes[-2])
    powers = torch.arange(len(shares), dtype=torch.float64)
    weights: Tensor = torch.linalg.solve(shares ** powers[:, None], 1 / (powers + 1))
    return weights


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", Alg. 2)."""
    levels = noise_levels(schedule, times)
    previous = None
    for i, (t, s) in enumerate(pairwise(levels)):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        x = ddim_step(x, _extrapolate(denoised, previous, levels[: i + 2]), t, s)
        previous = denoised
    yield Step(s.time, x, x)


@torch.no_grad()
def dpmpp_2m_sde(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """SDE-DPM-Solver++(2M), its midpoint form (Lu et al. 2022, "DPM-Solver++", appendix; k-diffusion)."""
    levels = noise_levels(schedule, times)
    previous = None
    for i, (t, s) in enumerate(pairwise(levels)):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        x = ddim_step(x, _extrapolate(denoised, previous, levels[: i + 2]), t, s, eta=1, eps=noise(i, 0))
        previous = denoised
    yield Step(s.time, x, x)


def _extrapolate(denoised: Tensor, previous: Tensor | None, levels: Sequence[NoiseLevel]) -> Tensor:
    """denoised, extrapolated in log-SNR to the middle of the last step; unchanged in a first step and in one that ends
    in the image. levels: up to the end of the step."""
    if previous is None or levels[-1].sigma == 0:
        return denoised
    ratio = log_snr_gain(levels[-2], levels[-1]) / log_snr_gain(levels[-3], levels[-2])
    return denoised + ratio / 2 * (denoised - previous)


@torch.no_grad()
def dpmpp_sde(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """DPM-Solver++ SDE, r = 1/2 (k-diffusion): an ancestral step to the middle, a whole one on one Brownian path."""
    for i, (t, s) in enumerate(pairwise(noise_levels(schedule, times))):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        eps = noise(i, 0)
        if t.alpha > 0 and s.sigma > 0:
            ratio_t, ratio_s = t.sigma / t.alpha, s.sigma / s.alpha
            ratio_m = (ratio_t * ratio_s).sqrt()
            m = noise_levels(schedule, schedule.inverse(ratio_m[None]))[0]
            denoised = denoise(ddim_step(x, denoised, t, m, eta=1, eps=eps), m.time)
            share = (ratio_t - ratio_m) / (ratio_t - ratio_s)  # of the Brownian path that the first half has used
            eps = share.sqrt() * eps + (1 - share).sqrt() * noise(i, 1)
        x = ddim_step(x, denoised, t, s, eta=1, eps=eps)
    yield Step(s.time, x, x)


@torch.no_grad()
def unipc(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """UniPC-2 with B_2(h) (Zhao et al. 2023): DPM++ 2M's step, corrected by the denoised image found where it led."""
    levels = noise_levels(schedule, times)
    past: list[Tensor] = []  # denoised at the last two levels
    x_start = x  # the x from which the last step set out
    for i, (t, s) in enumerate(pairwise(levels)):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        if past and levels[i - 1].alpha > 0:
            x = _unipc_correct(x_start, [*past, denoised], levels[: i + 1])
        ahead = _extrapolate(denoised, past[-1] if past else None, levels[: i + 2])
        x_start, x, past = x, ddim_step(x, ahead, t, s), [*past[-1:], denoised]
    yield Step(s.time, x, x)


def _unipc_correct(x: Tensor, denoised: Sequence[Tensor], levels: Sequence[NoiseLevel]) -> Tensor:
    """UniC (Zhao et al. 2023, Alg. 1): the last step again, with the curve of denoised through its end as well."""
    h = log_snr_gain(levels[-2], levels[-1])
    reach = -torch.expm1(-h)
    bend = 0.5 * (denoised[-1] - denoised[-2])
    if len(denoised) > 2:
        r = -log_snr_gain(levels[-3], levels[-2]) / h
        b_1, b_2 = (1 - reach / h) / reach, (1 - 2 * (1 - reach / h) / h) / reach
        rho = (b_2 - b_1) / (r - 1)
        bend = rho / r * (denoised[-3] - denoised[-2]) + (b_1 - rho) * (denoised[-1] - denoised[-2])
    return ddim_step(x, denoised[-2], levels[-2], levels[-1]) + levels[-1].alpha * reach * bend


SAMPLERS: dict[str, Sampler] = {
    sampler.__name__: sampler
    for sampler in (
        ddpm, ddim, euler, euler_ancestral, heun, lms, plms, dpmpp_2m, dpmpp_2m_sde, dpmpp_sde, unipc, lcm,
    )
}  # fmt: skip
