"""How an image turns into noise: the pair (alpha_t, sigma_t) as a function of the time t.

The one law, everywhere in this package:

    x_t = alpha_t · x + sigma_t · eps          t = 0 is the image, t = 1 is pure noise
    x̂ = c_skip · x_t + c_out · F(c_in · x_t, c_noise(t), conditioning)

x has unit variance from the autoencoder on, eps is standard normal, sigma_0 = 0 exactly. What a network predicts is
only its (c_skip, c_out), see `denoiser.py`. The ratio sigma/alpha is Karras' sigma, log(alpha/sigma) half the log-SNR.
Conventions of other programs are translated in `formats/`.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from unspeckle.errors import InputError


class Schedule(Protocol):
    """A frozen dataclass of numbers and names. `schedule(t)` is (alpha_t, sigma_t) for t in [0, 1], shaped as t and of
    its dtype; `inverse` gives the t in [0, 1] at which sigma/alpha is nearest to ratio, 0 and infinity included."""

    @property
    def scales_input(self) -> bool:
        """Whether x_t is scaled to unit variance (c_in) before a network sees it."""

    @property
    def velocity(self) -> str:
        """What a network predicts that predicts the velocity of x_t: "v" or, on straight lines, "flow"."""

    def __call__(self, t: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def inverse(self, ratio: Tensor, /) -> Tensor: ...


def alpha_sigma_from_ratio(sigma_over_alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The (alpha, sigma) of sigma/alpha = ratio with alpha² + sigma² = 1; ratio may be 0 or infinite."""
    return (1 + sigma_over_alpha**2) ** -0.5, (1 + sigma_over_alpha**-2) ** -0.5


@dataclass(frozen=True)
class LinearSchedule:
    """The variance-preserving diffusion with beta(t) linear in continuous time. Song et al. 2021, eq. 32."""

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
    """alpha = cos(angle), scaled to begin at 1; alpha_1 = 0. Nichol & Dhariwal 2021, eq. 17, in continuous time."""

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
    """alpha² falls as a sigmoid from 1 to 0 between `start` and `end`. Jabri et al. 2022, Alg. 1 (tau = 1)."""

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
    """alpha stays 1 while sigma grows as t^7: uniform t are the sigmas of Karras et al. 2022, eq. 5."""

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
    """A discrete model's betas: entry k is t = (k + 1) / count. Between entries log(sigma/alpha) is linear, below the
    first sigma/alpha is. curve: "linear" (Ho et al. 2020), "scaled_linear" (Stable Diffusion) or "cosine" (Nichol &
    Dhariwal 2021; no start and end). zero_snr: alphas rescaled to end at 0 (Lin et al. 2024, Alg. 1), where alpha/sigma
    is linear."""

    scales_input: ClassVar[bool] = False
    velocity: ClassVar[str] = "v"
    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_train_timesteps: int = 1000
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.beta_schedule not in ("linear", "scaled_linear", "cosine") or self.num_train_timesteps < 3:
            raise InputError(
                f"a table's curve is linear, scaled_linear or cosine, not {self.beta_schedule!r}; count is over 2"
            )

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ratios = sigma_alpha_ratios(self, t.device).to(t.dtype)
        place = t * self.num_train_timesteps - 1
        low = place.floor().long().clamp(0, self.num_train_timesteps - 2)
        near, far, part = ratios[low], ratios[low + 1], place - low
        ratio = torch.where(far.isinf(), near / (1 - part), torch.exp(torch.lerp(near.log(), far.log(), part)))
        return alpha_sigma_from_ratio(torch.where(place < 0, ratios[0] * (place + 1), ratio))

    def inverse(self, ratio: Tensor) -> Tensor:
        ratios = sigma_alpha_ratios(self, ratio.device).to(ratio.dtype)
        low = (torch.searchsorted(ratios, ratio.contiguous()) - 1).clamp(0, self.num_train_timesteps - 2)
        near, far = ratios[low], ratios[low + 1]
        part = torch.where(far.isinf(), 1 - near / ratio, (ratio / near).log() / (far / near).log())
        place = torch.where(ratio < ratios[0], ratio / ratios[0] - 1, low + part)
        return ((place + 1) / self.num_train_timesteps).clamp(0, 1)


STABLE_DIFFUSION = DiscreteSchedule("scaled_linear", 0.00085, 0.012)


@lru_cache(maxsize=16)
def sigma_alpha_ratios(table: DiscreteSchedule, device: torch.device) -> Tensor:
    power = 0.5 if table.beta_schedule == "scaled_linear" else 1.0
    betas = torch.linspace(
        table.beta_start**power, table.beta_end**power, table.num_train_timesteps, dtype=torch.float64
    ) ** (1 / power)
    if table.beta_schedule == "cosine":
        edges = (
            torch.linspace(0.008, 1.008, table.num_train_timesteps + 1, dtype=torch.float64)
            .div(1.008)
            .mul(math.pi / 2)
            .cos()
        )
        betas = (1 - (edges[1:] / edges[:-1]) ** 2).clamp(max=0.999)
    log_alpha = torch.log1p(-betas).cumsum(0) / 2
    alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
    if table.zero_terminal_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])  # 0 exactly at the last
        sigma = (1 - alpha**2).sqrt()
    return (sigma / alpha).to(device)


SCHEDULES: dict[str, type[Any]] = {  # by the name that model files give them
    "linear": LinearSchedule,
    "cosine": CosineSchedule,
    "sigmoid": SigmoidSchedule,
    "ve": VESchedule,
    "flow": FlowSchedule,
    "discrete": DiscreteSchedule,
}
