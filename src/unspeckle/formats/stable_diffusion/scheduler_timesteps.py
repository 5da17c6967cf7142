"""Where the schedulers of foreign discrete models stop on the way, and what they tell the network there."""

from typing import NamedTuple

import torch
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.schedule import Schedule, DiscreteSchedule
from unspeckle.timesteps import table_indices, interpolate_ratios

SPACINGS = ("leading", "trailing", "linspace")  # of these schedulers' entries


class Grid(NamedTuple):
    """A drawing with it starts at scale · noise and asks Denoiser(network, table, prediction, clock=grid.clock)."""

    times: Tensor  # (N + 1,) float64, the last 0 or the first entry's
    clocks: Tensor  # (N,) float64: entries of the table, perhaps fractions
    scale: float

    def clock(self, t: Tensor, schedule: Schedule) -> Tensor:
        """What belongs to t (B,) on the grid; elsewhere (a sampler's middle) its own place in a table of 1,000."""
        distance, place = (t.unsqueeze(-1) - self.times[:-1].to(t)).abs().min(-1)
        return torch.where(distance < 1e-9, self.clocks.to(t)[place], 1000 * t - 1)


def grid(
    family: str, table: DiscreteSchedule, steps: int, spacing: str, *, offset: int = 0, karras: bool = False, end: str = "zero"
) -> Grid:
    """The grid of diffusers' schedulers: family "ddim" (DDIM, DDPM), "lcm", "euler" (Euler, Euler a, Heun) or "dpm"
    (DPM++, UniPC). spacing: leading (moved up by `offset`), trailing, linspace; end: "zero" or the "first" entry.

    They differ: DPM's leading and linspace have one entry more and drop the lowest; its Karras spans the whole table
    and rounds the clock. Euler's Karras spans the spacing's entries, its linspace falls between entries, and but for
    leading it starts at sigma · noise. LCM takes some of the 50 entries with which it was distilled (Luo et al. 2023).
    """
    if family not in ("ddim", "lcm", "euler", "dpm") or spacing not in SPACINGS:
        raise InputError(f"no scheduler is of family {family!r} with spacing {spacing!r}; choose ddim and leading, say")
    if end not in ("zero", "first") or (karras and family not in ("euler", "dpm")):
        raise InputError(f"a grid of family {family!r} cannot end at {end!r} or be of Karras; leave both out")
    more = int(family == "dpm" and spacing != "trailing")
    if not 1 <= steps <= (50 if family == "lcm" else table.num_train_timesteps - more):
        raise InputError(f"steps {steps} do not fit this model's table; choose fewer, at least 1")
    clocks = table_indices(spacing, table.num_train_timesteps, steps + more)[:steps] + (offset if spacing == "leading" else 0)
    if family == "lcm":
        clocks = (50 - (torch.arange(steps) * 50 / steps).floor()).double() * (table.num_train_timesteps // 50) - 1
    if family != "euler":
        clocks = clocks.round()
    alpha, sigma = table(torch.arange(1, table.num_train_timesteps + 1, dtype=torch.float64) / table.num_train_timesteps)
    ratios = sigma / alpha
    if family in ("euler", "dpm"):
        ratios[ratios.isinf()] = (2.0**24 - 1) ** 0.5  # these peers' stand-in for pure noise
    near, far, part = ratios[clocks.floor().long()], ratios[clocks.ceil().long()], clocks.frac()
    ratio = torch.where(part > 0, near + part * (far - near), near)
    if karras:
        first, last = ratios[[-1, 0]] if family == "dpm" else ratio[[0, -1]]
        ratio = interpolate_ratios(first, last, steps, "karras")
        clocks = table.inverse(ratio) * table.num_train_timesteps - 1
        clocks = clocks.round() if family == "dpm" else clocks
    inner = table.inverse(ratio)
    times = torch.cat((inner, inner.new_tensor([0.0 if end == "zero" else 1 / table.num_train_timesteps])))
    return Grid(times, clocks, 1.0 if family != "euler" or spacing == "leading" else float(table(inner[0])[1]))
