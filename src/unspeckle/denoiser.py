"""The one thing that knows what its network predicts: (x_t, t, conditioning) to the image that is expected, x̂."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from unspeckle.errors import InputError
from unspeckle.schedule import Schedule


class Conditioning(NamedTuple):
    """What an image is drawn from, as text encoders and models give it; row i belongs to image i."""

    tokens: Tensor  # (B, L, D), embeddings of the words
    mask: Tensor | None = None  # (B, L) bool, True = attend to it, no row all False; None = attend to all
    vector: Tensor | None = None  # (B, P): pooled text, sizes, image embedding
    concat: Tensor | None = None  # (B, C', H, W), concatenated to the network's input only


class PreparedConditioning(NamedTuple):
    """The same after `Network.prepare`: all that a network computes of it once a drawing, whatever the time is."""

    keys_values: Tensor  # (B, L, Σ 2·C), the keys and values of all its attention layers to words, side by side
    mask: Tensor | None = None  # (B, L) bool
    vector: Tensor | None = None  # (B, P)
    concat: Tensor | None = None  # (B, C', H, W)
    coarse_image: Tensor | None = None  # (B, C, h, w), what a CoarseImagePredictor expects of such words


AnyConditioning = Conditioning | PreparedConditioning
SomeConditioning = TypeVar("SomeConditioning", bound=AnyConditioning)


def map_fields(conditioning: SomeConditioning, function: Callable[[Tensor], Tensor]) -> SomeConditioning:
    """The conditioning with the function applied to every tensor that it holds."""
    return type(conditioning)(*(None if field is None else function(field) for field in conditioning))  # type: ignore[arg-type]


def with_fields(conditioning: SomeConditioning, **fields: Tensor | None) -> SomeConditioning:
    """The conditioning with these fields changed."""
    return conditioning._replace(**fields)  # type: ignore[arg-type,return-value]


def concatenate(conditionings: Sequence[SomeConditioning]) -> SomeConditioning:
    """The rows of all of them in one; they have the same fields and the same number of tokens."""
    fields = zip(*conditionings, strict=True)
    return type(conditionings[0])(*(None if field[0] is None else torch.cat(field) for field in fields))  # type: ignore[arg-type]


class Network(Protocol):
    """An nn.Module, F(x (B, C, H, W), c_noise (B,), conditioning) -> (B, C, H, W), that knows nothing of schedules or
    of what it predicts. `prepare` computes what does not depend on the time, once a drawing."""

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning: ...
    def __call__(self, x: Tensor, c_noise: Tensor, conditioning: AnyConditioning) -> Tensor: ...


Denoise = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, C, H, W), t () or (B,)) to x̂, all else bound
TimeConditioning = Callable[[Tensor, Schedule], Tensor]  # t (B,) to c_noise (B,), what the network sees of the time

PREDICTIONS = ("x", "eps", "v", "flow")
TIME_CONDITIONINGS: dict[str, TimeConditioning] = {
    "t": lambda t, schedule: t,
    "index": lambda t, schedule: 1000 * t - 1,  # discrete models count their 1,000 training timesteps from 0
    "log_sigma": lambda t, schedule: -torch.div(*schedule(t)).clamp(1e-9, 1e9).log() / 4,  # EDM (Karras et al. 2022)
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
    """x̂ = E[x | x_t] = c_skip · x_t + c_out · F(c_in · x_t, c_noise(t), conditioning).

    network: F. prediction: what it predicts, one of PREDICTIONS. time_conditioning: what it sees of the time, a name of
    TIME_CONDITIONINGS or a function. InputError where a name is unknown, or where the prediction says nothing about x
    at t = 1 (eps with alpha_1 = 0)."""

    def __init__(
        self, network: Network, schedule: Schedule, prediction: str, time_conditioning: str | TimeConditioning = "t"
    ) -> None:
        super().__init__()
        for name, names in ((prediction, PREDICTIONS), (time_conditioning, TIME_CONDITIONINGS)):
            if isinstance(name, str) and name not in names:
                raise InputError(f"{name!r} is unknown to a denoiser; choose one of {', '.join(names)}")
        if prediction == "eps" and schedule(torch.ones((), dtype=torch.float64))[0] == 0:
            raise InputError("prediction 'eps' is undefined where alpha is 0, as at the end of this schedule; choose v")
        self.network, self.schedule, self.prediction = network, schedule, prediction
        self.time_conditioning = time_conditioning

    def prepare(self, conditioning: AnyConditioning) -> PreparedConditioning:
        """What does not depend on the time, computed once a drawing; what is prepared already comes back as it is."""
        if isinstance(conditioning, PreparedConditioning):
            return conditioning
        return self.network.prepare(self._cast(conditioning))

    def forward(self, x_t: Tensor, t: Tensor, conditioning: AnyConditioning) -> Tensor:
        """x̂ (B, C, H, W) for t (B,) or (): float32, or float64 where x_t is float64. Precision is cast only here."""
        precision = torch.float64 if x_t.dtype == torch.float64 else torch.float32
        t = t.expand(x_t.shape[0])
        named = self.time_conditioning
        c_noise = (TIME_CONDITIONINGS[named] if isinstance(named, str) else named)(t, self.schedule)
        alpha, sigma = (level.to(x_t.device, precision).view(-1, 1, 1, 1) for level in self.schedule(t))
        c_skip, c_out = coefficients(self.prediction, alpha, sigma)
        x_t = x_t.to(precision)
        x = x_t * (alpha**2 + sigma**2) ** -0.5 if self.schedule.scales_input else x_t  # c_in · x_t
        cast = self._cast(conditioning)
        output = self.network(x.to(self._dtype(precision)), c_noise.to(x_t.device, torch.float32), cast)
        return c_skip * x_t + c_out * output.to(precision)

    def _dtype(self, default: torch.dtype) -> torch.dtype:
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), default)

    def _cast(self, conditioning: SomeConditioning) -> SomeConditioning:
        """The conditioning in the network's precision."""
        dtype = self._dtype(conditioning[0].dtype)
        return map_fields(conditioning, lambda field: field.to(dtype) if field.is_floating_point() else field)
