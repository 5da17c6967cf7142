"""Where the schedulers of foreign discrete models stop on the way, and what they tell the network there."""

from typing import NamedTuple

import torch
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.schedule import DiscreteSchedule, Schedule
from unspeckle.timesteps import interpolate_ratios, table_indices

SCHEDULER_SPACINGS = ("leading", "trailing", "linspace")  # of these schedulers' entries


class SchedulerTimesteps(NamedTuple):
    """A drawing with it starts at scale · noise and asks Denoiser(network, table, prediction, clock=grid.clock)."""

    times: Tensor  # (N + 1,) float64, the last 0 or the first entry's
    table_indices: Tensor  # (N,) float64: entries of the table, perhaps fractions
    init_noise_sigma: float

    def c_noise(self, t: Tensor, schedule: Schedule) -> Tensor:
        """What belongs to t (B,) on the grid; elsewhere (a sampler's middle) its own place in a table of 1,000."""
        distance, index = (t.unsqueeze(-1) - self.times[:-1].to(t)).abs().min(-1)
        return torch.where(distance < 1e-9, self.table_indices.to(t)[index], 1000 * t - 1)


def build_scheduler_timesteps(
    family: str,
    schedule: DiscreteSchedule,
    steps: int,
    timestep_spacing: str,
    *,
    steps_offset: int = 0,
    use_karras_sigmas: bool = False,
    end_at: str = "zero",
) -> SchedulerTimesteps:
    """The grid of diffusers' schedulers: family "ddim" (DDIM, DDPM), "lcm", "euler" (Euler, Euler a, Heun) or "dpm"
    (DPM++, UniPC). spacing: leading (moved up by `offset`), trailing, linspace; end: "zero" or the "first" entry.

    They differ: DPM's leading and linspace have one entry more and drop the lowest; its Karras spans the whole table
    and rounds the clock. Euler's Karras spans the spacing's entries, its linspace falls between entries, and but for
    leading it starts at sigma · noise. LCM takes some of the 50 entries with which it was distilled (Luo et al. 2023).
    """
    if family not in ("ddim", "lcm", "euler", "dpm") or timestep_spacing not in SCHEDULER_SPACINGS:
        raise InputError(
            f"no scheduler is of family {family!r} with spacing {timestep_spacing!r}; choose ddim and leading, say"
        )
    if end_at not in ("zero", "first") or (use_karras_sigmas and family not in ("euler", "dpm")):
        raise InputError(f"a grid of family {family!r} cannot end at {end_at!r} or be of Karras; leave both out")
    extra = int(family == "dpm" and timestep_spacing != "trailing")
    if not 1 <= steps <= (50 if family == "lcm" else schedule.num_train_timesteps - extra):
        raise InputError(f"steps {steps} do not fit this model's table; choose fewer, at least 1")
    indices = table_indices(timestep_spacing, schedule.num_train_timesteps, steps + extra)[:steps] + (
        steps_offset if timestep_spacing == "leading" else 0
    )
    if family == "lcm":
        indices = (50 - (torch.arange(steps) * 50 / steps).floor()).double() * (schedule.num_train_timesteps // 50) - 1
    if family != "euler":
        indices = indices.round()
    alpha, sigma = schedule(
        torch.arange(1, schedule.num_train_timesteps + 1, dtype=torch.float64) / schedule.num_train_timesteps
    )
    table_ratios = sigma / alpha
    if family in ("euler", "dpm"):
        table_ratios[table_ratios.isinf()] = (2.0**24 - 1) ** 0.5  # these peers' stand-in for pure noise
    lower, upper, fraction = (
        table_ratios[indices.floor().long()],
        table_ratios[indices.ceil().long()],
        indices.frac(),
    )
    step_ratios = torch.where(fraction > 0, lower + fraction * (upper - lower), lower)
    if use_karras_sigmas:
        largest, smallest = table_ratios[[-1, 0]] if family == "dpm" else step_ratios[[0, -1]]
        step_ratios = interpolate_ratios(largest, smallest, steps, "karras")
        indices = schedule.inverse(step_ratios) * schedule.num_train_timesteps - 1
        indices = indices.round() if family == "dpm" else indices
    inner_times = schedule.inverse(step_ratios)
    times = torch.cat(
        (inner_times, inner_times.new_tensor([0.0 if end_at == "zero" else 1 / schedule.num_train_timesteps]))
    )
    return SchedulerTimesteps(
        times,
        indices,
        1.0 if family != "euler" or timestep_spacing == "leading" else float(schedule(inner_times[0])[1]),
    )
