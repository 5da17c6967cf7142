"""The denoiser x̂ = E[x | x_t], the only place that knows what its network predicts, and its conditioning."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from unspeckle.errors import InputError
from unspeckle.schedule import Schedule


class Conditioning(NamedTuple):
    """What a network predicts from besides x_t, as text encoders and models give it; row i belongs to image i."""

    tokens: Tensor  # (B, L, D), embeddings of the text's tokens
    mask: Tensor | None = None  # (B, L) bool, True = attend to it, no row all False; None = attend to all
    vector: Tensor | None = None  # (B, P), such as pooled text and image sizes
    concat: Tensor | None = None  # (B, C', H, W), concatenated to the network's input


class PreparedConditioning(NamedTuple):
    """A Conditioning after `Network.prepare`, which computes once a drawing what does not depend on the time."""

    # (B, L, Σ 2·C), the keys and values of all layers that attend to the text, side by side; a network whose text
    # tokens change with the time, as in an MMDiT, puts the tokens themselves here
    keys_values: Tensor
    mask: Tensor | None = None  # (B, L) bool
    vector: Tensor | None = None  # (B, P)
    concat: Tensor | None = None  # (B, C', H, W)
    coarse_image: Tensor | None = None  # (B, C, h, w), predicted from the text by a CoarseImagePredictor


AnyConditioning = Conditioning | PreparedConditioning
SomeConditioning = TypeVar("SomeConditioning", bound=AnyConditioning)


def map_fields(conditioning: SomeConditioning, function: Callable[[Tensor], Tensor]) -> SomeConditioning:
    """The conditioning with the function applied to each of its tensors."""
    return type(conditioning)(*(None if field is None else function(field) for field in conditioning))  # type: ignore[arg-type]


def with_fields(conditioning: SomeConditioning, **fields: Tensor | None) -> SomeConditioning:
    """The conditioning with these fields replaced."""
    return conditioning._replace(**fields)  # type: ignore[arg-type,return-value]


def concatenate(conditionings: Sequence[SomeConditioning]) -> SomeConditioning:
    """The rows of all conditionings in one. They must have the same fields and the same number of tokens."""
    fields = zip(*conditionings, strict=True)
    return type(conditionings[0])(*(None if field[0] is None else torch.cat(field) for field in fields))  # type: ignore[arg-type]


class Network(Protocol):
    """An nn.Module F(x (B, C, H, W), c_noise (B,), conditioning) -> (B, C, H, W), which knows neither the schedule nor
    what it predicts. `prepare` computes, once a drawing, what does not depend on the time."""

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning: ...
    def __call__(self, x: Tensor, c_noise: Tensor, conditioning: AnyConditioning) -> Tensor: ...


# (x_t (B, C, H, W), t () or (B,)) -> x̂ (B, C, H, W); the conditioning is bound
Denoise = Callable[[Tensor, Tensor], Tensor]
# (t (B,), schedule) -> c_noise (B,), what the network sees of the time
TimeConditioning = Callable[[Tensor, Schedule], Tensor]

PREDICTIONS = ("x", "eps", "v", "flow")
TIME_CONDITIONINGS: dict[str, TimeConditioning] = {
    "t": lambda t, schedule: t,
    "index": lambda t, schedule: 1000 * t - 1,  # discrete models count their 1,000 training timesteps from 0
    "log_sigma": lambda t, schedule: -torch.div(*schedule(t)).clamp(1e-9, 1e9).log() / 4,  # EDM (Karras et al. 2022)
}


def coefficients(prediction: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of a network that predicts x, eps, v = (alpha eps - sigma x) / √(alpha² + sigma²), or for "flow"
    eps - x. They follow from the law x_t = alpha x + sigma eps."""
    if prediction == "x":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction == "eps":
        return 1 / alpha, -sigma / alpha
    if prediction == "v":  # Salimans & Ho 2022, appendix D
        return alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2).sqrt()
    return 1 / (alpha + sigma), -sigma / (alpha + sigma)


class Denoiser(nn.Module):
    """x̂ = E[x | x_t] = c_skip · x_t + c_out · F(c_in · x_t, c_noise(t), conditioning). c_in is 1 / √(alpha² + sigma²)
    where the schedule scales its input, else 1.

    network: F. prediction: what it predicts, one of PREDICTIONS. time_conditioning: what it sees of the time, a name of
    TIME_CONDITIONINGS or a function. InputError where a name is unknown, or for eps with alpha_1 = 0: there eps = x_t
    says nothing about x."""

    def __init__(
        self, network: Network, schedule: Schedule, prediction: str, time_conditioning: str | TimeConditioning = "t"
    ) -> None:
        super().__init__()
        for option, name, names in (
            ("prediction", prediction, PREDICTIONS),
            ("time_conditioning", time_conditioning, TIME_CONDITIONINGS),
        ):
            if isinstance(name, str) and name not in names:
                raise InputError(f"{option} {name!r}: unknown; choose one of {', '.join(names)}")
        if prediction == "eps" and schedule(torch.ones((), dtype=torch.float64))[0] == 0:
            raise InputError("prediction 'eps' is undefined where alpha is 0, as at the end of this schedule; choose v")
        self.network, self.schedule, self.prediction = network, schedule, prediction
        self.time_conditioning = time_conditioning

    def prepare(self, conditioning: AnyConditioning) -> PreparedConditioning:
        """Compute what does not depend on the time. A PreparedConditioning is returned as it is."""
        if isinstance(conditioning, PreparedConditioning):
            return conditioning
        return self.network.prepare(self._cast(conditioning))

    def forward(self, x_t: Tensor, t: Tensor, conditioning: AnyConditioning) -> Tensor:
        """x̂ (B, C, H, W) at t (B,) or (): float32, or float64 where x_t is float64. The network computes in the dtype
        of its parameters; this is the only place that casts."""
        precision = torch.float64 if x_t.dtype == torch.float64 else torch.float32
        t = t.expand(x_t.shape[0])
        to_c_noise = self.time_conditioning
        to_c_noise = TIME_CONDITIONINGS[to_c_noise] if isinstance(to_c_noise, str) else to_c_noise
        c_noise = to_c_noise(t, self.schedule)
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
