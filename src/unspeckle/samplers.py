"""From noise to a picture: samplers as generators of steps, and the times at which they stop on the way.

Every sampler sees (x_t, t) -> x̂ alone and works on every schedule. Each move but Heun's is the one law, `_move`."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from unspeckle.denoiser import Denoise
from unspeckle.errors import InputError
from unspeckle.schedule import Schedule
from unspeckle.seeds import Noise


class Step(NamedTuple):
    """x at time t, before the move, and its estimated picture; the last Step, where that is x itself, is the result."""

    t: Tensor  # () float64
    x: Tensor  # (B, C, H, W)
    estimate: Tensor


Steps = Iterator[Step]
Sampler = Callable[[Denoise, Schedule, Tensor, Tensor, Noise], Steps]  # ..., times (N + 1,) float64, x, noise


class _Level(NamedTuple):  # scalars, float64 on the CPU: exact, and no device waits for them
    t: Tensor
    alpha: Tensor
    sigma: Tensor

    def __sub__(self, other: "_Level") -> Tensor:
        """Half the log-SNR gained since the other; infinite where either is pure noise or pure picture."""
        return (self.alpha * other.sigma / (self.sigma * other.alpha)).log()


def _levels(schedule: Schedule, times: Tensor) -> list[_Level]:
    times = times.double().cpu()
    return [_Level(*level) for level in zip(times, *schedule(times), strict=True)]


def _move(x: Tensor, estimate: Tensor, here: _Level, there: _Level, eta: float = 0, eps: Tensor | float = 0) -> Tensor:
    """x_s = alpha_s x̂ + kept (x_t - alpha_t x̂) / sigma_t + fresh eps, where kept² + fresh² = sigma_s².
    eta 0 is the ODE, eta 1 the ancestral step (Song et al. 2021, eq. 16); with a huge eta all noise is fresh."""
    shrink = here.alpha * there.sigma / (here.sigma * there.alpha)
    fresh = there.sigma * (eta * (1 - shrink**2).clamp(min=0).sqrt()).clamp(max=1)
    kept = (there.sigma**2 - fresh**2).sqrt()
    return there.alpha * estimate + kept / here.sigma * (x - here.alpha * estimate) + fresh * eps


def _ahead(estimate: Tensor, older: Tensor | None, levels: list[_Level]) -> Tensor:
    """x̂ extrapolated to the middle of the last of these steps; as it is where it is the first, or ends in a picture."""
    if older is None or levels[-1].sigma == 0:
        return estimate
    return estimate + (levels[-1] - levels[-2]) / (levels[-2] - levels[-3]) / 2 * (estimate - older)


@torch.no_grad()
def ddim(
    denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise, *, eta: float = 0.0, order: int = 1
) -> Steps:
    """Song et al. 2021. With eta 0 it is Euler's method in sigma/alpha, and on a flow in t; with eta 1 ancestral Euler,
    and DDPM with its small variance (Ho et al. 2020); with a huge eta a consistency model's (Song et al. 2023).
    order 2 extrapolates x̂: DPM++ 2M (Lu et al. 2022, "DPM-Solver++", Alg. 2), with eta 1 its SDE (midpoint)."""
    levels = _levels(schedule, times)
    older = None
    for i, (here, there) in enumerate(pairwise(levels)):
        estimate = denoise(x, here.t.expand(len(x)))
        yield Step(here.t, x, estimate)
        ahead = _ahead(estimate, older, levels[: i + 2])
        x = _move(x, ahead, here, there, eta, noise(i, 0) if eta else 0)
        older = estimate if order == 2 else None
    yield Step(levels[-1].t, x, x)


@torch.no_grad()
def heun(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """Karras et al. 2022, Alg. 1, in sigma/alpha. Two calls a step, but where one end is pure noise or picture."""
    levels = _levels(schedule, times)
    for here, there in pairwise(levels):
        estimate = denoise(x, here.t.expand(len(x)))
        yield Step(here.t, x, estimate)
        guess = _move(x, estimate, here, there)
        if here.alpha > 0 and there.sigma > 0:
            again = denoise(guess, there.t.expand(len(x)))
            eps = (x - here.alpha * estimate) / here.sigma + (guess - there.alpha * again) / there.sigma
            scale = there.alpha / here.alpha
            guess = scale * x + (there.sigma - scale * here.sigma) * eps / 2
        x = guess
    yield Step(levels[-1].t, x, x)


@torch.no_grad()
def dpmpp_sde(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """k-diffusion's DPM-Solver++ SDE (r 1/2): an ancestral step to the middle, a whole one on one Brownian path."""
    levels = _levels(schedule, times)
    for i, (here, there) in enumerate(pairwise(levels)):
        estimate = denoise(x, here.t.expand(len(x)))
        yield Step(here.t, x, estimate)
        eps = noise(i, 0)
        if here.alpha > 0 and there.sigma > 0:
            start, end = here.sigma / here.alpha, there.sigma / there.alpha
            middle = _levels(schedule, schedule.inverse((start * end).sqrt())[None])[0]
            guess = _move(x, estimate, here, middle, 1, eps)
            estimate = denoise(guess, middle.t.expand(len(x)))
            share = (start - (start * end).sqrt()) / (start - end)
            eps = share.sqrt() * eps + (1 - share).sqrt() * noise(i, 1)
        x = _move(x, estimate, here, there, 1, eps)
    yield Step(levels[-1].t, x, x)


@torch.no_grad()
def unipc(denoise: Denoise, schedule: Schedule, times: Tensor, x: Tensor, noise: Noise) -> Steps:
    """Zhao et al. 2023, UniPC-2 with B_2(h) on x̂: DPM++ 2M's move, corrected by the x̂ found where it led."""
    levels = _levels(schedule, times)
    past: list[Tensor] = []  # x̂ at the last two levels
    left = x  # the x from which the last move set out
    for i, (here, there) in enumerate(pairwise(levels)):
        estimate = denoise(x, here.t.expand(len(x)))
        yield Step(here.t, x, estimate)
        if past and levels[i - 1].alpha > 0:
            x = _correct(left, [*past, estimate], levels[: i + 1])
        ahead = _ahead(estimate, past[-1] if past else None, levels[: i + 2])
        left, x, past = x, _move(x, ahead, here, there), [*past[-1:], estimate]
    yield Step(levels[-1].t, x, x)


def _correct(x: Tensor, estimates: list[Tensor], levels: list[_Level]) -> Tensor:
    """UniC, Zhao et al. 2023, Alg. 1: the last move again, with the curve of x̂ through its end as well."""
    h = levels[-1] - levels[-2]
    reach = -torch.expm1(-h)
    bend = 0.5 * (estimates[-1] - estimates[-2])
    if len(estimates) > 2:
        r = (levels[-3] - levels[-2]) / h
        b_1, b_2 = (1 - reach / h) / reach, (1 - 2 * (1 - reach / h) / h) / reach
        rho = (b_2 - b_1) / (r - 1)
        bend = rho / r * (estimates[-3] - estimates[-2]) + (b_1 - rho) * (estimates[-1] - estimates[-2])
    return _move(x, estimates[-2], levels[-2], levels[-1]) + levels[-1].alpha * reach * bend


SAMPLERS: dict[str, Sampler] = {
    "ddpm": partial(ddim, eta=1.0),
    "ddim": ddim,
    "euler": ddim,
    "euler_a": partial(ddim, eta=1.0),
    "heun": heun,
    "dpmpp_2m": partial(ddim, order=2),
    "dpmpp_2m_sde": partial(ddim, eta=1.0, order=2),
    "dpmpp_sde": dpmpp_sde,
    "unipc": unipc,
    "lcm": partial(ddim, eta=1e9),
}
GRIDS = ("uniform", "leading", "trailing", "linspace", "karras", "exponential", "shifted")


def sampler(name: str) -> Sampler:
    """The sampler of that name, or InputError with the names there are."""
    if name not in SAMPLERS:
        raise InputError(f"sampler {name!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def times(grid: str, schedule: Schedule, steps: int, start: float = 1.0) -> Tensor:
    """(steps + 1,) float64 times from about `start` in (0, 1] to exactly 0. uniform in t; shifted to noise (Esser et
    al. 2024, eq. 23, by 3); leading, trailing, linspace as discrete models space entries (Lin et al. 2024, Table 2);
    karras, exponential in sigma/alpha to t = 1/1000, at least 0.002, beginning below t = 1 where alpha_1 is 0."""
    if grid not in GRIDS:
        raise InputError(f"time grid {grid!r} is unknown; choose one of {', '.join(GRIDS)}")
    if not 1 <= steps <= 1000 * start <= 1000:
        raise InputError(f"{steps} steps from time {start} do not fit; choose 1 to 1000 · start steps, start up to 1")
    if grid in ("uniform", "shifted"):
        even = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
        return even if grid == "uniform" else 3 * even / (1 + 2 * even / start)
    if grid in ("karras", "exponential"):
        alpha, sigma = schedule(torch.tensor([start, start - 1e-3, 1e-3], dtype=torch.float64))
        ratio = sigma / alpha
        inner = schedule.inverse(ramp(ratio[0 if alpha[0] > 0 else 1], ratio[2].clamp(min=0.002), steps, grid))
    else:
        inner = (entries(grid, round(1000 * start), steps) + 1) / 1000
    return torch.cat((inner, inner.new_zeros(1)))


def ramp(first: Tensor, last: Tensor, steps: int, grid: str) -> Tensor:
    """(steps,) ratios, uniform in their logarithm (exponential) or seventh root (Karras et al. 2022, eq. 5)."""
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    if grid == "exponential":
        return torch.lerp(first.log(), last.log(), share).exp()
    return torch.lerp(first ** (1 / 7), last ** (1 / 7), share) ** 7


def entries(spacing: str, count: int, steps: int) -> Tensor:
    """(steps,) falling entries of a table of `count`; those of linspace are fractions."""
    down = torch.arange(steps, dtype=torch.float64)
    if spacing == "linspace":
        return torch.linspace(count - 1, 0, steps, dtype=torch.float64)
    return (steps - 1 - down) * (count // steps) if spacing == "leading" else (count - down * count / steps).round() - 1
