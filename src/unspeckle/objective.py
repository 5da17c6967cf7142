"""What a denoiser is trained for: the squared error of x̂, at which times, with which weight."""

from dataclasses import dataclass

from torch import Tensor

from unspeckle.denoiser import Denoiser, Conditioning, coefficients
from unspeckle.errors import InputError
from unspeckle.rng import Stream
from unspeckle.schedule import Flow, Schedule

TIMES = ("uniform", "logit_normal", "edm")
WEIGHTS = ("plain", "v", "min_snr", "soft")
_TIME, _NOISE, _DROP = 0, 1, 2  # a Stream's purposes; the others are free


@dataclass(frozen=True)
class Objective:
    """times: uniform in t; logit_normal, sigmoid(mean + std·n) (Esser et al. 2024, eq. 19); edm, log(sigma/alpha) is
    normal (Karras et al. 2022, Table 1; their mean -1.2 is -0.5 for x of unit variance, std 1.2).
    weight of the error of x̂, ratio = sigma/alpha:
      plain    1 / c_out²: the error of what the network itself puts out (DDPM's simple loss for eps)
      v        the same as though it put out v, or the flow's velocity on a flow (Salimans & Ho 2022)
      min_snr  min(1 / ratio², gamma) (Hang et al. 2023, eq. 8)
      soft     1 / (ratio² + 1 / gamma) (Crowson et al. 2024, eq. 13): also the sigmoid weighting with bias log(gamma)
    |c_out| counts as at least `floor`. `drop` is the share of examples that lose their captions."""

    times: str = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    weight: str = "v"
    gamma: float = 5.0
    floor: float = 0.05
    drop: float = 0.1

    def __post_init__(self) -> None:
        for name, names in ((self.times, TIMES), (self.weight, WEIGHTS)):
            if name not in names:
                raise InputError(f"{name!r} is no objective; choose one of {', '.join(names)}")

    def __call__(self, denoiser: Denoiser, x: Tensor, given: Conditioning, rng: Stream) -> Tensor:
        """The loss of each example, (B,) float32, at its own time and noise. x is (B, C, H, W)."""
        return self.at(denoiser, x, given, self.draw(rng, denoiser.schedule), rng.normal(_NOISE, x.shape[1:]))

    def at(self, denoiser: Denoiser, x: Tensor, given: Conditioning, t: Tensor, eps: Tensor) -> Tensor:
        """The loss (B,) at times t (B,) with noise eps."""
        alpha, sigma = (level.to(x.dtype).view(-1, 1, 1, 1) for level in denoiser.schedule(t))
        error = denoiser(alpha * x + sigma * eps, t, given) - x
        loss: Tensor = self.weigh(t, denoiser.schedule, denoiser.prediction) * error.square().mean((1, 2, 3))
        return loss

    def draw(self, rng: Stream, schedule: Schedule) -> Tensor:
        """Times (B,) in [0, 1]."""
        if self.times == "uniform":
            return rng.uniform(_TIME)
        n = self.mean + self.std * rng.normal(_TIME)
        return n.sigmoid() if self.times == "logit_normal" else schedule.inverse(n.exp())

    def weigh(self, t: Tensor, schedule: Schedule, prediction: str) -> Tensor:
        """The weight (B,) of the squared error of x̂."""
        alpha, sigma = schedule(t)
        if self.weight == "min_snr":
            return (alpha / sigma).square().clamp(max=self.gamma)
        if self.weight == "soft":
            return alpha**2 / (sigma**2 + alpha**2 / self.gamma)
        if self.weight == "v":
            prediction = "flow" if isinstance(schedule, Flow) else "v"
        return coefficients(prediction, alpha, sigma)[1].abs().clamp(min=self.floor) ** -2

    def drops(self, rng: Stream) -> Tensor:
        """(B,) bool: whose captions to leave out, each example by itself."""
        return rng.uniform(_DROP) < self.drop
