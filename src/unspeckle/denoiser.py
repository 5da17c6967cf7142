"""The one thing that knows what its network predicts: (x_t, t, given) to the expected picture."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from unspeckle.errors import InputError
from unspeckle.schedule import VE, Schedule


class Conditioning(NamedTuple):
    """What a picture is drawn from; row i belongs to picture i."""

    tokens: Tensor  # (B, L, D), or what a network's prepare made of it
    mask: Tensor | None = None  # (B, L) bool, True = word, no row all False; None = attend to all
    vector: Tensor | None = None  # (B, P): pooled text, sizes, image embedding
    concat: Tensor | None = None  # (B, C', H, W), joined to the network's input only
    prepared: bool = False


class Network(Protocol):
    """An nn.Module, knowing nothing of schedules or predictions: F, from (B, C, H, W) and (B,) to the shape of x.
    `prepare` computes what does not depend on t (keys and values), once a drawing."""

    def prepare(self, conditioning: Conditioning) -> Conditioning: ...
    def __call__(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor: ...


Denoise = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, C, H, W), t (B,)) to x̂, all else bound
TimeConditioning = Callable[[Tensor, Schedule], Tensor]  # t (B,) to what the network is told

PREDICTIONS = ("x", "eps", "v", "flow")
TIME_CONDITIONINGS: dict[str, TimeConditioning] = {
    "t": lambda t, schedule: t,
    "index": lambda t, schedule: 1000 * t - 1,  # foreign discrete models count their 1,000 entries from 0
    "log_sigma": lambda t, schedule: -torch.div(*schedule(t)).clamp(1e-9, 1e9).log() / 4,  # EDM's c_noise, Karras 2022
}


def coefficients(prediction: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of a network that predicts x, eps, v = (alpha·eps - sigma·x) / √(alpha² + sigma²) or eps - x."""
    if prediction == "x":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction == "eps":
        return 1 / alpha, -sigma / alpha
    if prediction == "v":  # Salimans & Ho 2022, appendix D
        return alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2).sqrt()
    return 1 / (alpha + sigma), -sigma / (alpha + sigma)


class Denoiser(nn.Module):
    """E[x | x_t]: a network with its schedule, its prediction and its clock ("t", "index", "log_sigma" or a function).
    InputError where the prediction says nothing about x at t = 1 (eps with alpha_1 = 0) or a name is unknown."""

    def __init__(self, network: Network, schedule: Schedule, prediction: str, time_conditioning: str | TimeConditioning = "t") -> None:
        super().__init__()
        for name, names in ((prediction, PREDICTIONS), (time_conditioning, TIME_CONDITIONINGS)):
            if isinstance(name, str) and name not in names:
                raise InputError(f"{name!r} is unknown to a denoiser; choose one of {', '.join(names)}")
        if prediction == "eps" and schedule(torch.ones((), dtype=torch.float64))[0] == 0:
            raise InputError("prediction 'eps' is undefined where alpha is 0, as at the end of this schedule; choose v")
        self.network, self.schedule, self.prediction, self.clock = network, schedule, prediction, time_conditioning

    def prepare(self, conditioning: Conditioning) -> Conditioning:
        """What never depends on t, once a drawing; a prepared Given comes back as it is."""
        return conditioning if conditioning.prepared else self.network.prepare(self._cast(conditioning))

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """x̂ (B, C, H, W) for t (B,) or (): float32, or float64 where x_t is float64. Casts only at this border."""
        precision = torch.float64 if x_t.dtype == torch.float64 else torch.float32
        t = t.expand(x_t.shape[0])
        time_conditioning = TIME_CONDITIONINGS[self.clock] if isinstance(self.clock, str) else self.clock
        c_noise = time_conditioning(t, self.schedule).to(x_t.device, torch.float32)
        alpha, sigma = (level.to(x_t.device, precision).view(-1, 1, 1, 1) for level in self.schedule(t))
        c_skip, c_out = coefficients(self.prediction, alpha, sigma)
        x_t = x_t.to(precision)
        x = x_t * (alpha**2 + sigma**2) ** -0.5 if isinstance(self.schedule, VE) else x_t  # c_in
        output = self.network(x.to(self._dtype(precision)), c_noise, self._cast(conditioning))
        return c_skip * x_t + c_out * output.to(precision)

    def _dtype(self, default: torch.dtype) -> torch.dtype:
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), default)

    def _cast(self, conditioning: Conditioning) -> Conditioning:
        dtype = self._dtype(conditioning.tokens.dtype)
        vector, concat = (None if field is None else field.to(dtype) for field in (conditioning.vector, conditioning.concat))
        return conditioning._replace(tokens=conditioning.tokens.to(dtype), vector=vector, beside=concat)
