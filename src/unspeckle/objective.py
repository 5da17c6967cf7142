"""The training objective of a denoiser: the weighted squared error of x̂ at random times."""

from dataclasses import dataclass

from torch import Tensor

from unspeckle.denoiser import AnyConditioning, Denoiser, coefficients
from unspeckle.errors import InputError
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import Schedule

TIME_DISTRIBUTIONS = ("uniform", "logit_normal", "edm")
LOSS_WEIGHTINGS = ("plain", "v", "min_snr", "soft")
# Purposes of an ExampleRNG; the trainer uses others
_TIME, _NOISE, _DROP = 0, 1, 2


@dataclass(frozen=True)
class Objective:
    """The squared error of x̂ at random times t, weighted. Below, ratio = sigma_t/alpha_t."""

    # The distribution of t: "uniform"; "logit_normal", t = sigmoid(mean + std · n) (Esser et al. 2024, eq. 19); "edm",
    # where log(ratio) = mean + std · n (Karras et al. 2022, Table 1; their mean -1.2 and std 1.2 are -0.5 and 1.2 for x
    # of unit variance). n is standard normal.
    time_distribution: str = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    # The weight of the squared error of x̂:
    #   plain    1 / c_out²: the squared error of the network's output (for eps, DDPM's simple loss)
    #   v        1 / c_out² of a network that predicts v, or on a flow its velocity (Salimans & Ho 2022)
    #   min_snr  min(1 / ratio², gamma) (Hang et al. 2023, eq. 8)
    #   soft     1 / (ratio² + 1 / gamma) (Crowson et al. 2024, eq. 13), the sigmoid weighting with bias log(gamma)
    loss_weighting: str = "v"
    gamma: float = 5.0
    # |c_out| is taken as at least this, so that no weight is infinite.
    min_c_out: float = 0.05
    # Share of the examples that are trained without their captions, for classifier-free guidance.
    caption_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name, names in ((self.time_distribution, TIME_DISTRIBUTIONS), (self.loss_weighting, LOSS_WEIGHTINGS)):
            if name not in names:
                raise InputError(f"{name!r} is not an option of the objective; choose one of {', '.join(names)}")

    def __call__(self, denoiser: Denoiser, x: Tensor, conditioning: AnyConditioning, rng: ExampleRNG) -> Tensor:
        """The loss of each example, (B,) float32, at a time and with noise of its own. x is (B, C, H, W)."""
        t = self.sample_times(rng, denoiser.schedule)
        return self.loss_at(denoiser, x, conditioning, t, rng.normal(_NOISE, x.shape[1:]))

    def loss_at(self, denoiser: Denoiser, x: Tensor, conditioning: AnyConditioning, t: Tensor, eps: Tensor) -> Tensor:
        """The loss (B,) of x (B, C, H, W) at times t (B,) with noise eps (B, C, H, W)."""
        alpha, sigma = (level.to(x.dtype).view(-1, 1, 1, 1) for level in denoiser.schedule(t))
        error = denoiser(alpha * x + sigma * eps, t, conditioning) - x
        loss: Tensor = self.loss_weight(t, denoiser.schedule, denoiser.prediction) * error.square().mean((1, 2, 3))
        return loss

    def sample_times(self, rng: ExampleRNG, schedule: Schedule) -> Tensor:
        """Random times (B,) in [0, 1]."""
        if self.time_distribution == "uniform":
            return rng.uniform(_TIME)
        n = self.mean + self.std * rng.normal(_TIME)
        return n.sigmoid() if self.time_distribution == "logit_normal" else schedule.inverse(n.exp())

    def loss_weight(self, t: Tensor, schedule: Schedule, prediction: str) -> Tensor:
        """The weight (B,) of the squared error of x̂."""
        alpha, sigma = schedule(t)
        if self.loss_weighting == "min_snr":
            return (alpha / sigma).square().clamp(max=self.gamma)
        if self.loss_weighting == "soft":
            return alpha**2 / (sigma**2 + alpha**2 / self.gamma)
        if self.loss_weighting == "v":
            prediction = schedule.velocity
        return coefficients(prediction, alpha, sigma)[1].abs().clamp(min=self.min_c_out) ** -2

    def dropped_captions(self, rng: ExampleRNG, share: float | None = None) -> Tensor:
        """(B,) bool: which examples are trained without their captions, each chosen by itself. share: instead of
        caption_dropout; the examples of a smaller share are among those of a larger one."""
        return rng.uniform(_DROP) < (self.caption_dropout if share is None else share)
