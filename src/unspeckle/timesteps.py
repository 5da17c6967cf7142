"""The times at which a drawing stops on its way from noise to picture."""

import torch
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.schedule import Schedule

TIMESTEP_SPACINGS = ("uniform", "leading", "trailing", "linspace", "karras", "exponential", "shifted")


def timesteps(spacing: str, schedule: Schedule, steps: int, start: float = 1.0) -> Tensor:
    """(steps + 1,) float64 times from about `start` in (0, 1] to exactly 0; picture to picture is a later start.
    uniform in t; shifted to noise (Esser et al. 2024, eq. 23, by 3); leading, trailing, linspace as discrete models
    space their 1,000 entries (Lin et al. 2024, Table 2); karras, exponential in sigma/alpha down to t = 1/1000, at
    least 0.002, beginning below t = 1 where alpha_1 is 0."""
    if spacing not in TIMESTEP_SPACINGS:
        raise InputError(f"time grid {spacing!r} is unknown; choose one of {', '.join(TIMESTEP_SPACINGS)}")
    if not 1 <= steps <= 1000 * start <= 1000:
        raise InputError(f"{steps} steps from time {start} do not fit; choose 1 to 1000 · start steps, start up to 1")
    if spacing in ("uniform", "shifted"):
        even = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
        return even if spacing == "uniform" else 3 * even / (1 + 2 * even / start)
    if spacing in ("karras", "exponential"):
        alpha, sigma = schedule(torch.tensor([start, start - 1e-3, 1e-3], dtype=torch.float64))
        ratio = sigma / alpha
        inner = schedule.inverse(interpolate_ratios(ratio[0 if alpha[0] > 0 else 1], ratio[2].clamp(min=0.002), steps, spacing))
    else:
        inner = (table_indices(spacing, round(1000 * start), steps) + 1) / 1000
    return torch.cat((inner, inner.new_zeros(1)))


def interpolate_ratios(first: Tensor, last: Tensor, steps: int, spacing: str) -> Tensor:
    """(steps,) ratios, uniform in their logarithm (exponential) or seventh root (Karras et al. 2022, eq. 5)."""
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    if spacing == "exponential":
        return torch.lerp(first.log(), last.log(), share).exp()
    return torch.lerp(first ** (1 / 7), last ** (1 / 7), share) ** 7


def table_indices(spacing: str, num_train_timesteps: int, steps: int) -> Tensor:
    """(steps,) falling entries of a table of `count`; those of linspace are fractions."""
    down = torch.arange(steps, dtype=torch.float64)
    if spacing == "linspace":
        return torch.linspace(num_train_timesteps - 1, 0, steps, dtype=torch.float64)
    return (steps - 1 - down) * (num_train_timesteps // steps) if spacing == "leading" else (num_train_timesteps - down * num_train_timesteps / steps).round() - 1
