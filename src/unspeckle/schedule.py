"""How an image turns into noise: the pair (alpha_t, sigma_t) as a function of the time t.

The one law, everywhere in this package:

    x_t = alpha_t · x + sigma_t · eps          t = 0 is the image, t = 1 is pure noise
    x̂ = c_skip · x_t + c_out · F(c_in · x_t, c_noise(t), conditioning)

x is an image or its latents, of unit variance; eps is standard normal; sigma_0 = 0 exactly. The ratio sigma/alpha is
the sigma of Karras et al., and log(alpha/sigma) is half the log-SNR. What a network predicts decides only (c_skip,
c_out), see `denoiser.py`. Conventions of other programs are translated in `formats/`.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from unspeckle.errors import InputError


class Schedule(Protocol):
    """A frozen dataclass of numbers and names, which model files store.

    schedule(t) is (alpha_t, sigma_t) for t in [0, 1], each of the shape and dtype of t. schedule.inverse(ratio) is the
    t in [0, 1] at which sigma/alpha is nearest to the ratio, which may be 0 or infinite."""

    @property
    def scales_input(self) -> bool:
        """Whether x_t is scaled to unit variance (c_in) before a network sees it."""

    @property
    def velocity(self) -> str:
        """The name of the prediction that is the velocity of x_t: "flow" on straight lines, else "v"."""

    def __call__(self, t: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def inverse(self, ratio: Tensor, /) -> Tensor: ...


def alpha_sigma_from_ratio(sigma_over_alpha: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) with alpha² + sigma² = 1, from their ratio, which may be 0 or infinite."""
    return (1 + sigma_over_alpha**2) ** -0.5, (1 + sigma_over_alpha**-2) ** -0.5


@dataclass(frozen=True)
class LinearSchedule:
    """Variance-preserving diffusion with beta(t) linear in continuous time. Song et al. 2021, "Score-based", eq. 32."""

    scales_input: ClassVar[bool] = False
    velocity: ClassVar[str] = "v"
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = -t * (self.beta_min / 2 + t * (self.beta_max - self.beta_min) / 4)
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    def inverse(self, ratio: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return (((self.beta_min**2 + 2 * slope * torch.log1p(ratio**2)).sqrt() - self.beta_min) / slope).clamp(0, 1)


@dataclass(frozen=True)
class CosineSchedule:
    """alpha is a cosine with alpha_0 = 1 and alpha_1 = 0. Nichol & Dhariwal 2021, eq. 17, in continuous time."""

    scales_input: ClassVar[bool] = False
    velocity: ClassVar[str] = "v"
    offset: float = 0.008

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = math.pi / 2 / (1 + self.offset) * t
        sigma = (torch.sin(angle) * torch.sin(angle + self.offset * math.pi / (1 + self.offset))).sqrt()
        return alpha_sigma_from_ratio(sigma / torch.sin(math.pi / 2 / (1 + self.offset) * (1 - t)))

    def inverse(self, ratio: Tensor) -> Tensor:
        quarter = math.pi / 2 / (1 + self.offset)
        first = quarter * self.offset
        angle = torch.atan((ratio**2 + math.sin(first) ** 2).sqrt() / math.cos(first))
        return ((angle - first) / quarter).clamp(0, 1)


@dataclass(frozen=True)
class SigmoidSchedule:
    """alpha² falls from 1 to 0 as a sigmoid does between `start` and `end`. Jabri et al. 2022, Alg. 1 (tau = 1)."""

    scales_input: ClassVar[bool] = False
    velocity: ClassVar[str] = "v"
    start: float = -3.0
    end: float = 3.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        width = self.end - self.start
        noise = torch.sinh(width / 2 * t) * math.cosh(self.end / 2)
        return alpha_sigma_from_ratio((noise / (torch.sinh(width / 2 * (1 - t)) * math.cosh(self.start / 2))).sqrt())

    def inverse(self, ratio: Tensor) -> Tensor:
        width = self.end - self.start
        quotient = ratio**2 * math.cosh(self.start / 2) / math.cosh(self.end / 2)
        return torch.log1p(math.expm1(width) / (1 + math.exp(width / 2) / quotient)) / width


@dataclass(frozen=True)
class VESchedule:
    """alpha is 1 and sigma = sigma_max · t^7: uniform times have the sigmas of Karras et al. 2022, eq. 5."""

    scales_input: ClassVar[bool] = True
    velocity: ClassVar[str] = "v"
    sigma_max: float = 80.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_max * t**7

    def inverse(self, ratio: Tensor) -> Tensor:
        return (ratio / self.sigma_max).clamp(0, 1) ** (1 / 7)


@dataclass(frozen=True)
class FlowSchedule:
    """Straight lines from image to noise: alpha = 1 - t, sigma = t. Lipman et al. 2023; Liu et al. 2023."""

    scales_input: ClassVar[bool] = False
    velocity: ClassVar[str] = "flow"

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def inverse(self, ratio: Tensor) -> Tensor:
        return 1 / (1 + 1 / ratio)


@dataclass(frozen=True)
class DiscreteSchedule:
    """The betas of a discrete model: training timestep k has the time t = (k + 1) / num_train_timesteps. Between two of
    them log(sigma/alpha) is linear in t, below the first sigma/alpha is."""

    scales_input: ClassVar[bool] = False
    velocity: ClassVar[str] = "v"
    # "linear" (Ho et al. 2020), "scaled_linear" (linear in √beta, Stable Diffusion), or "cosine" (Nichol & Dhariwal
    # 2021), which has no beta_start and beta_end.
    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_train_timesteps: int = 1000
    # Whether the alphas are rescaled so that the last is 0 (Lin et al. 2024, Alg. 1). Between the last two timesteps
    # alpha/sigma is then linear in t.
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.beta_schedule not in ("linear", "scaled_linear", "cosine") or self.num_train_timesteps < 3:
            raise InputError(
                f"beta_schedule {self.beta_schedule!r} with num_train_timesteps {self.num_train_timesteps}: choose "
                "linear, scaled_linear or cosine, and at least 3 timesteps"
            )

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ratios = sigma_alpha_ratios(self, t.device).to(t.dtype)
        timestep = t * self.num_train_timesteps - 1
        low = timestep.floor().long().clamp(0, self.num_train_timesteps - 2)
        lower, upper, part = ratios[low], ratios[low + 1], timestep - low
        ratio = torch.where(upper.isinf(), lower / (1 - part), torch.exp(torch.lerp(lower.log(), upper.log(), part)))
        return alpha_sigma_from_ratio(torch.where(timestep < 0, ratios[0] * (timestep + 1), ratio))

    def inverse(self, ratio: Tensor) -> Tensor:
        ratios = sigma_alpha_ratios(self, ratio.device).to(ratio.dtype)
        low = (torch.searchsorted(ratios, ratio.contiguous()) - 1).clamp(0, self.num_train_timesteps - 2)
        lower, upper = ratios[low], ratios[low + 1]
        part = torch.where(upper.isinf(), 1 - lower / ratio, (ratio / lower).log() / (upper / lower).log())
        timestep = torch.where(ratio < ratios[0], ratio / ratios[0] - 1, low + part)
        return ((timestep + 1) / self.num_train_timesteps).clamp(0, 1)


STABLE_DIFFUSION = DiscreteSchedule("scaled_linear", 0.00085, 0.012)


@lru_cache(maxsize=16)
def sigma_alpha_ratios(schedule: DiscreteSchedule, device: torch.device) -> Tensor:
    """sigma/alpha (num_train_timesteps,) float64 at the training timesteps; infinite at the last with
    zero_terminal_snr."""
    power = 0.5 if schedule.beta_schedule == "scaled_linear" else 1.0
    betas = torch.linspace(
        schedule.beta_start**power, schedule.beta_end**power, schedule.num_train_timesteps, dtype=torch.float64
    ) ** (1 / power)
    if schedule.beta_schedule == "cosine":
        angles = torch.linspace(0.008, 1.008, schedule.num_train_timesteps + 1, dtype=torch.float64)
        alphas = angles.div(1.008).mul(math.pi / 2).cos()
        betas = (1 - (alphas[1:] / alphas[:-1]) ** 2).clamp(max=0.999)
    log_alpha = torch.log1p(-betas).cumsum(0) / 2
    alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
    if schedule.zero_terminal_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])  # the last is exactly 0
        sigma = (1 - alpha**2).sqrt()
    return (sigma / alpha).to(device)


# By the names in model files
SCHEDULES: dict[str, type[Any]] = {
    "linear": LinearSchedule,
    "cosine": CosineSchedule,
    "sigmoid": SigmoidSchedule,
    "ve": VESchedule,
    "flow": FlowSchedule,
    "discrete": DiscreteSchedule,
}
