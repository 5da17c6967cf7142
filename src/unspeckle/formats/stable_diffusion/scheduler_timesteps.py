"""The timesteps of the schedulers that discrete models are sampled with elsewhere, and what the network sees there."""

from typing import NamedTuple

import torch
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.schedule import DiscreteSchedule, Schedule
from unspeckle.timesteps import discrete_timesteps, interpolate_ratios

SCHEDULER_SPACINGS = ("leading", "trailing", "linspace")
FAMILIES = ("ddim", "lcm", "euler", "dpm")
LCM_TIMESTEPS = 50  # those with which latent consistency models were distilled (Luo et al. 2023)


class SchedulerTimesteps(NamedTuple):
    """Where a drawing stops: it starts at init_noise_sigma · noise, and its denoiser's time conditioning is c_noise."""

    # (N + 1,) float64, decreasing; the last is 0, or that of the first training timestep
    times: Tensor
    # (N,) float64, the training timesteps at all times but the last, counted from 0; perhaps between two of them
    table_indices: Tensor
    # by what the initial noise is multiplied
    init_noise_sigma: float

    def c_noise(self, t: Tensor, schedule: Schedule) -> Tensor:
        """The training timestep for t (B,): that of these times, elsewhere (between a sampler's steps) its own among
        1,000."""
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
    """The timesteps of the schedulers of diffusers.

    family: "ddim" (DDIM, DDPM, PNDM), "lcm", "euler" (Euler, Euler ancestral, Heun, LMS) or "dpm" (DPM-Solver++,
    UniPC). timestep_spacing: "leading" (moved up by steps_offset), "trailing" or "linspace". use_karras_sigmas: the
    noise levels of Karras et al. 2022, for "euler" and "dpm". end_at: "zero" = without noise, or "first" = at the first
    training timestep. InputError where there is no such scheduler, or there are too many steps.

    The families differ: DPM's leading and linspace spacings have one timestep more and drop the lowest; its Karras
    levels span the whole table, and their timesteps are rounded. Euler's Karras levels span those of the spacing, its
    linspace falls between training timesteps, and but for leading it starts at sigma · noise. LCM takes some of 50
    timesteps.
    """
    _check_options(family, schedule, steps, timestep_spacing, use_karras_sigmas, end_at)
    indices = _spaced_indices(family, schedule, steps, timestep_spacing, steps_offset)
    table_ratios = _training_ratios(family, schedule)
    lower, upper, fraction = table_ratios[indices.floor().long()], table_ratios[indices.ceil().long()], indices.frac()
    ratios = torch.where(fraction > 0, lower + fraction * (upper - lower), lower)
    if use_karras_sigmas:
        largest, smallest = table_ratios[[-1, 0]] if family == "dpm" else ratios[[0, -1]]
        ratios = interpolate_ratios(largest, smallest, steps, "karras")
        indices = schedule.inverse(ratios) * schedule.num_train_timesteps - 1
        indices = indices.round() if family == "dpm" else indices
    times = schedule.inverse(ratios)
    last = 0.0 if end_at == "zero" else 1 / schedule.num_train_timesteps
    starts_at_sigma = family == "euler" and timestep_spacing != "leading"
    init_noise_sigma = float(schedule(times[0])[1]) if starts_at_sigma else 1.0
    return SchedulerTimesteps(torch.cat((times, times.new_tensor([last]))), indices, init_noise_sigma)


def _check_options(
    family: str, schedule: DiscreteSchedule, steps: int, timestep_spacing: str, use_karras_sigmas: bool, end_at: str
) -> None:
    if family not in FAMILIES or timestep_spacing not in SCHEDULER_SPACINGS:
        raise InputError(
            f"there is no scheduler {family!r} with spacing {timestep_spacing!r}; choose one of {', '.join(FAMILIES)} "
            f"and one of {', '.join(SCHEDULER_SPACINGS)}"
        )
    if end_at not in ("zero", "first") or (use_karras_sigmas and family not in ("euler", "dpm")):
        raise InputError(f"the timesteps of {family!r} cannot end at {end_at!r} or have Karras noise levels")
    most = (
        LCM_TIMESTEPS if family == "lcm" else schedule.num_train_timesteps - _extra_timesteps(family, timestep_spacing)
    )
    if not 1 <= steps <= most:
        raise InputError(f" {steps}: must lie between 1 and {most} for this model and timestep spacing", "steps")


def _extra_timesteps(family: str, timestep_spacing: str) -> int:
    return int(family == "dpm" and timestep_spacing != "trailing")


def _spaced_indices(
    family: str, schedule: DiscreteSchedule, steps: int, timestep_spacing: str, steps_offset: int
) -> Tensor:
    """(steps,) float64, decreasing: the training timesteps, counted from 0."""
    train_timesteps = schedule.num_train_timesteps
    if family == "lcm":
        distilled = LCM_TIMESTEPS - (torch.arange(steps) * LCM_TIMESTEPS / steps).floor()
        return (distilled.double() * (train_timesteps // LCM_TIMESTEPS) - 1).round()
    spaced = discrete_timesteps(timestep_spacing, train_timesteps, steps + _extra_timesteps(family, timestep_spacing))
    indices = spaced[:steps] + (steps_offset if timestep_spacing == "leading" else 0)
    return indices if family == "euler" else indices.round()


def _training_ratios(family: str, schedule: DiscreteSchedule) -> Tensor:
    """(num_train_timesteps,) float64: sigma / alpha of all training timesteps."""
    count = schedule.num_train_timesteps
    alpha, sigma = schedule(torch.arange(1, count + 1, dtype=torch.float64) / count)
    ratios = sigma / alpha
    if family in ("euler", "dpm"):
        ratios[ratios.isinf()] = (2.0**24 - 1) ** 0.5  # what these schedulers take for pure noise
    return ratios
