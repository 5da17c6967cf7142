"""From noise to an image: each sampler is a generator of steps under its own name.

A sampler sees (x_t, t) -> denoised and nothing else, and works on every schedule. All of them move by `ddim_step`, the
one law solved for x_s: from x_t and the denoised image x̂ at time t to x_s at the next time s. Where k-diffusion writes
sigma, this file has sigma / alpha; the two are equal where alpha = 1.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from unspeckle.denoiser import Denoise
from unspeckle.rng import NoiseFunction
from unspeckle.schedule import Schedule


class Step(NamedTuple):
    """A step of a drawing, before x moves. The last Step holds the result: its x and its denoised are the same."""

    t: Tensor  # () float64, the time of x: 1 is pure noise, 0 the image
    x: Tensor  # (B, C, H, W)
    denoised: Tensor  # (B, C, H, W), x̂ = E[x | x_t]


Steps = Iterator[Step]
# (denoise, schedule, times (N + 1,) falling, x (B, C, H, W) at times[0], noise) -> N + 1 Steps
Sampler = Callable[[Denoise, Schedule, Tensor, Tensor, NoiseFunction], Steps]


class NoiseLevel(NamedTuple):
    """A time with its alpha and sigma: scalars, float64 on the CPU, so that no GPU waits for them."""

    time: Tensor
    alpha: Tensor
    sigma: Tensor


def noise_levels(schedule: Schedule, times: Tensor) -> list[NoiseLevel]:
    """The noise levels at times (N,)."""
    times = times.double().cpu()
    return [NoiseLevel(*level) for level in zip(times, *schedule(times), strict=True)]


def log_snr_gain(t: NoiseLevel, s: NoiseLevel) -> Tensor:
    """Half the log-SNR gained from t to s: DPM-Solver's h = lambda_s - lambda_t with lambda = log(alpha / sigma).
    Infinite where t is pure noise or s the image."""
    return (s.alpha * t.sigma / (s.sigma * t.alpha)).log()


def ddim_step(
    x: Tensor, denoised: Tensor, t: NoiseLevel, s: NoiseLevel, eta: float = 0, eps: Tensor | float = 0
) -> Tensor:
    """x_s = alpha_s x̂ + kept (x_t - alpha_t x̂) / sigma_t + fresh eps, where kept² + fresh² = sigma_s²
    (Song et al. 2021, "DDIM", eq. 12 and 16).

    eta = 0 keeps the noise that is in x_t: Euler's step on the ODE. eta = 1 is the ancestral step."""
    shrink = t.alpha * s.sigma / (t.sigma * s.alpha)
    fresh = s.sigma * (eta * (1 - shrink**2).clamp(min=0).sqrt()).clamp(max=1)
    kept = (s.sigma**2 - fresh**2).sqrt()
    return s.alpha * denoised + kept / t.sigma * (x - t.alpha * denoised) + fresh * eps


def predicted_noise(x: Tensor, denoised: Tensor, t: NoiseLevel) -> Tensor:
    """eps in x_t = alpha_t x̂ + sigma_t eps."""
    return (x - t.alpha * denoised) / t.sigma


def ratio_change(t: NoiseLevel, s: NoiseLevel) -> Tensor:
    """The length of a step in sigma / alpha, scaled to x at s: x_s = (alpha_s / alpha_t) x_t + ratio_change · eps."""
    return s.sigma - s.alpha / t.alpha * t.sigma


@torch.no_grad()
def euler(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: NoiseFunction) -> Steps:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, Alg. 1 without its correction)."""
    for t, s in pairwise(noise_levels(schedule, times)):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        x = ddim_step(x, denoised, t, s)
    yield Step(s.time, x, x)


@torch.no_grad()
def euler_ancestral(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: NoiseFunction) -> Steps:
    """Euler's method with fresh noise at each step (Song et al. 2021, eq. 16 with eta = 1)."""
    for i, (t, s) in enumerate(pairwise(noise_levels(schedule, times))):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        x = ddim_step(x, denoised, t, s, eta=1, eps=noise(i, 0))
    yield Step(s.time, x, x)


@torch.no_grad()
def ddim(
    denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: NoiseFunction, *, eta: float = 0.0
) -> Steps:
    """DDIM (Song et al. 2021, "DDIM", eq. 12). eta = 0 is Euler's method; above that, part of the noise is fresh."""
    for i, (t, s) in enumerate(pairwise(noise_levels(schedule, times))):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        x = ddim_step(x, denoised, t, s, eta, noise(i, 0) if eta else 0)
    yield Step(s.time, x, x)


@torch.no_grad()
def ddpm(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: NoiseFunction) -> Steps:
    """Ancestral sampling with the smaller posterior variance (Ho et al. 2020, Alg. 2): DDIM with eta = 1."""
    yield from ddim(denoise, schedule, times, x, noise, eta=1.0)


@torch.no_grad()
def lcm(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: NoiseFunction) -> Steps:
    """Multistep consistency sampling (Song et al. 2023, Alg. 1; Luo et al. 2023): at each step all noise is fresh."""
    for i, (t, s) in enumerate(pairwise(noise_levels(schedule, times))):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        x = s.alpha * denoised + s.sigma * noise(i, 0)
    yield Step(s.time, x, x)


@torch.no_grad()
def heun(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: NoiseFunction) -> Steps:
    """Heun's method (Karras et al. 2022, Alg. 1). A step calls the network twice, or once from pure noise or to the
    image, where a slope is undefined."""
    for t, s in pairwise(noise_levels(schedule, times)):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        x_t, x = x, ddim_step(x, denoised, t, s)
        if t.alpha > 0 and s.sigma > 0:  # correct Euler's step by the slope at its end
            slope_t, slope_s = predicted_noise(x_t, denoised, t), predicted_noise(x, denoise(x, s.time), s)
            x = x + ratio_change(t, s) / 2 * (slope_s - slope_t)
    yield Step(s.time, x, x)


@torch.no_grad()
def lms(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: NoiseFunction) -> Steps:
    """Linear multistep (Adams-Bashforth) of up to fourth order in sigma / alpha (k-diffusion, sample_lms)."""
    levels = noise_levels(schedule, times)
    nodes = torch.stack([level.sigma / level.alpha for level in levels])
    past: list[Tensor] = []  # eps of up to three earlier steps, the newest last
    for i, (t, s) in enumerate(pairwise(levels)):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        eps = predicted_noise(x, denoised, t) if t.alpha > 0 else None  # sigma / alpha is infinite at pure noise
        x = ddim_step(x, denoised, t, s)
        if eps is not None:
            x = x + _multistep_correction(eps, past, nodes[i - len(past) : i + 2], ratio_change(t, s))
            past = [*past[-2:], eps]
    yield Step(s.time, x, x)


@torch.no_grad()
def plms(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: NoiseFunction) -> Steps:
    """Pseudo linear multistep (Liu et al. 2022, eq. 9 and 12): LMS with the weights of equal steps, whatever the steps
    are; the first step is Heun's."""
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
                x = x + ratio_change(t, s) * ((predicted_noise(x, denoise(x, s.time), s) - eps) / 2)
            else:
                x = x + _multistep_correction(eps, past, nodes[i - len(past) : i + 2], ratio_change(t, s))
            past = [*past[-2:], eps]
    yield Step(s.time, x, x)


def _multistep_correction(eps: Tensor, past: Sequence[Tensor], nodes: Tensor, length: Tensor) -> Tensor | float:
    """What earlier slopes add to Euler's step: length · Σ w_i (past_i - eps).

    nodes: where the past slopes, eps and the end of the step lie on the axis of integration."""
    if not past:
        return 0.0
    weights = _adams_bashforth_weights(nodes)
    differences = [weight * (old - eps) for weight, old in zip(weights[:-1], past, strict=True)]
    return length * torch.stack(differences).sum(0)


def _adams_bashforth_weights(nodes: Tensor) -> Tensor:
    """Weights w of the values at all nodes but the last, so that Σ w_i f(node_i) is the mean of a polynomial f between
    the last two nodes."""
    positions = (nodes[:-1] - nodes[-2]) / (nodes[-1] - nodes[-2])  # that stretch is 0 to 1
    powers = torch.arange(len(positions), dtype=torch.float64)
    # Σ_i w_i position_i^p = ∫ u^p du from 0 to 1 = 1 / (p + 1) for every power p
    weights: Tensor = torch.linalg.solve(positions ** powers[:, None], 1 / (powers + 1))
    return weights


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: NoiseFunction) -> Steps:
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
def dpmpp_2m_sde(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: NoiseFunction) -> Steps:
    """SDE-DPM-Solver++(2M), midpoint form (Lu et al. 2022, "DPM-Solver++", appendix; k-diffusion)."""
    levels = noise_levels(schedule, times)
    previous = None
    for i, (t, s) in enumerate(pairwise(levels)):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        x = ddim_step(x, _extrapolate(denoised, previous, levels[: i + 2]), t, s, eta=1, eps=noise(i, 0))
        previous = denoised
    yield Step(s.time, x, x)


def _extrapolate(denoised: Tensor, previous: Tensor | None, levels: Sequence[NoiseLevel]) -> Tensor:
    """x̂ extrapolated in log-SNR from t and the time before to the middle of the step (D_i of DPM-Solver++, Alg. 2);
    unchanged in the first step, and in one that ends in the image. levels: up to the end of the step."""
    if previous is None or levels[-1].sigma == 0:
        return denoised
    h_last, h = log_snr_gain(levels[-3], levels[-2]), log_snr_gain(levels[-2], levels[-1])
    return denoised + h / h_last / 2 * (denoised - previous)


@torch.no_grad()
def dpmpp_sde(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: NoiseFunction) -> Steps:
    """DPM-Solver++ SDE (k-diffusion, sample_dpmpp_sde with r = 1/2): an ancestral step to the middle m in log-SNR, then
    the whole step with x̂ from there. Both take their noise from one Brownian path."""
    for i, (t, s) in enumerate(pairwise(noise_levels(schedule, times))):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        eps = noise(i, 0)
        if t.alpha > 0 and s.sigma > 0:
            ratio_t, ratio_s = t.sigma / t.alpha, s.sigma / s.alpha
            ratio_m = (ratio_t * ratio_s).sqrt()
            m = noise_levels(schedule, schedule.inverse(ratio_m[None]))[0]
            denoised = denoise(ddim_step(x, denoised, t, m, eta=1, eps=eps), m.time)
            used = (ratio_t - ratio_m) / (ratio_t - ratio_s)  # share of the path that the first half has taken
            eps = used.sqrt() * eps + (1 - used).sqrt() * noise(i, 1)
        x = ddim_step(x, denoised, t, s, eta=1, eps=eps)
    yield Step(s.time, x, x)


@torch.no_grad()
def unipc(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: NoiseFunction) -> Steps:
    """UniPC-2 with B_2(h) (Zhao et al. 2023): DPM++ 2M's step as the predictor; the next step first corrects it by the
    x̂ at its end."""
    levels = noise_levels(schedule, times)
    past: list[Tensor] = []  # denoised at the last two levels
    x_start = x  # x at the start of the last step
    for i, (t, s) in enumerate(pairwise(levels)):
        denoised = denoise(x, t.time)
        yield Step(t.time, x, denoised)
        if past and levels[i - 1].alpha > 0:
            x = _unipc_correct(x_start, [*past, denoised], levels[: i + 1])
        extrapolated = _extrapolate(denoised, past[-1] if past else None, levels[: i + 2])
        x_start, x = x, ddim_step(x, extrapolated, t, s)
        past = [*past[-1:], denoised]
    yield Step(s.time, x, x)


def _unipc_correct(x: Tensor, denoised: Sequence[Tensor], levels: Sequence[NoiseLevel]) -> Tensor:
    """UniC (Zhao et al. 2023, Alg. 1): the last step again, with a polynomial for x̂ through its end as well.

    x: at the start of that step. denoised: at the level before its start, if any, at its start, and at its end."""
    h = log_snr_gain(levels[-2], levels[-1])
    reach = -torch.expm1(-h)  # 1 - e^(-h): how far the step moves from x_t to x̂
    correction = 0.5 * (denoised[-1] - denoised[-2])  # its first coefficient alone
    if len(denoised) > 2:
        r = -log_snr_gain(levels[-3], levels[-2]) / h
        # The coefficients of both differences: rho + rho_2 = b_1 and r rho + rho_2 = b_2
        b_1, b_2 = (1 - reach / h) / reach, (1 - 2 * (1 - reach / h) / h) / reach
        rho = (b_2 - b_1) / (r - 1)
        correction = rho / r * (denoised[-3] - denoised[-2]) + (b_1 - rho) * (denoised[-1] - denoised[-2])
    return ddim_step(x, denoised[-2], levels[-2], levels[-1]) + levels[-1].alpha * reach * correction


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "lms": lms,
    "plms": plms,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_sde": dpmpp_sde,
    "unipc": unipc,
    "lcm": lcm,
}
