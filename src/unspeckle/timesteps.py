"""Timestep spacings: the times at which a sampler evaluates the denoiser, from noise to image."""

import torch
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.schedule import Schedule

TIMESTEP_SPACINGS = ("uniform", "leading", "trailing", "linspace", "karras", "exponential", "shifted")


def timesteps(spacing: str, schedule: Schedule, steps: int, start: float = 1.0) -> Tensor:
    """(steps + 1,) float64 times that fall from about `start` in (0, 1] to exactly 0; image-to-image starts below 1.

    spacing: one of TIMESTEP_SPACINGS:
      uniform                      equal steps of t
      shifted                      more steps near the noise (Esser et al. 2024, eq. 23, with shift 3)
      leading, trailing, linspace  as discrete models space their 1,000 training timesteps (Lin et al. 2024, Table 2)
      karras, exponential          in sigma/alpha, down to that of t = 1/1000 but at least 0.002, and then 0; they start
                                   just below t = 1 where alpha_1 is 0
    InputError where the spacing is unknown, or where there are more than 1000 · start steps."""
    if spacing not in TIMESTEP_SPACINGS:
        raise InputError(f"timestep spacing {spacing!r} is unknown; choose one of {', '.join(TIMESTEP_SPACINGS)}")
    if not 1 <= steps <= 1000 * start <= 1000:
        raise InputError(f"{steps} steps from time {start} do not fit; choose 1 to 1000 · start steps, start up to 1")
    if spacing in ("uniform", "shifted"):
        even = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
        return even if spacing == "uniform" else 3 * even / (1 + 2 * even / start)
    if spacing in ("karras", "exponential"):
        alpha, sigma = schedule(torch.tensor([start, start - 1e-3, 1e-3], dtype=torch.float64))
        ratio = sigma / alpha
        first, last = ratio[0 if alpha[0] > 0 else 1], ratio[2].clamp(min=0.002)
        times = schedule.inverse(interpolate_ratios(first, last, steps, spacing))
    else:
        times = (discrete_timesteps(spacing, round(1000 * start), steps) + 1) / 1000
    return torch.cat((times, times.new_zeros(1)))


def interpolate_ratios(first: Tensor, last: Tensor, steps: int, spacing: str) -> Tensor:
    """(steps,) values of sigma/alpha from first to last, uniform in their logarithm ("exponential") or in their seventh
    root ("karras"; Karras et al. 2022, eq. 5)."""
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    if spacing == "exponential":
        return torch.lerp(first.log(), last.log(), share).exp()
    return torch.lerp(first ** (1 / 7), last ** (1 / 7), share) ** 7


def discrete_timesteps(spacing: str, num_train_timesteps: int, steps: int) -> Tensor:
    """(steps,) falling training timesteps, from num_train_timesteps - 1 to 0; those of "linspace" may be fractions."""
    count = torch.arange(steps, dtype=torch.float64)
    if spacing == "linspace":
        return torch.linspace(num_train_timesteps - 1, 0, steps, dtype=torch.float64)
    if spacing == "leading":
        return (steps - 1 - count) * (num_train_timesteps // steps)
    return (num_train_timesteps - count * num_train_timesteps / steps).round() - 1
