"""What the estimates for several captions become: rules that combine them, wraps that bound the result."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from unspeckle.denoiser import Denoise, Denoiser, Given

First = Callable[[int], Tensor]  # n to the estimates (n, B, C, H, W) for the first n givens, by one network call
Rule = Callable[[First, Tensor], Tensor]  # First, t (B,) to x̂


def combine(denoiser: Denoiser, givens: Sequence[Given], rule: Rule) -> Denoise:
    """A Denoise that asks for all the givens that its rule needs by ONE call on the joined batch, givens[0] first.
    The givens are alike in shape and in which fields they have; what never depends on t is prepared once."""
    prepared = cache(lambda n: denoiser.prepare(join(givens[:n])))

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        def first(n: int) -> Tensor:
            estimates: Tensor = denoiser(torch.cat([x_t] * n), t.expand(len(x_t)).repeat(n), prepared(n))
            return estimates.view(n, *x_t.shape)

        return rule(first, t)

    return denoise


def join(givens: Sequence[Given]) -> Given:
    """The rows of all the givens in one."""
    tokens, *others = zip(*(given[:4] for given in givens), strict=True)
    mask, vector, beside = (None if field[0] is None else torch.cat(field) for field in others)
    return Given(torch.cat(tokens), mask, vector, beside, givens[0].prepared)


def cfg(scale: float, rescale: float = 0.0) -> Rule:
    """Classifier-free guidance, Ho & Salimans 2022: givens are the wanted one and the empty or negative one. Scale 1 is
    no guidance and runs the wanted one alone. rescale in [0, 1] brings an estimate's deviation back to the wanted one's
    (Lin et al. 2024, eq. 15-16)."""

    def rule(first: First, t: Tensor) -> Tensor:
        if scale == 1:
            return first(1)[0]
        wanted, unwanted = first(2)
        guided = unwanted + scale * (wanted - unwanted)
        back = wanted.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True).clamp(min=1e-12)
        return torch.mul(guided, 1 + rescale * (back - 1))

    return rule


def interval(rule: Rule, low: float, high: float) -> Rule:
    """The rule at times low <= t <= high; elsewhere the wanted one alone is run. Kynkäänniemi et al. 2024."""
    return lambda first, t: rule(first, t) if low <= float(t.flatten()[0]) <= high else first(1)[0]


def clamp(denoise: Denoise, low: float, high: float) -> Denoise:
    """x̂ kept within what a picture can be."""
    return lambda x_t, t: denoise(x_t, t).clamp(low, high)


def dynamic_threshold(denoise: Denoise, low: float, high: float, percentile: float = 0.995) -> Denoise:
    """x̂ of each picture shrunk about the middle until that share of its values lies within [low, high], the rest cut.
    Saharia et al. 2022, section 2.3. percentile in (0, 1]."""
    middle, half = (low + high) / 2, (high - low) / 2

    def bounded(x_t: Tensor, t: Tensor) -> Tensor:
        x = (denoise(x_t, t) - middle) / half
        reach = torch.quantile(x.abs().flatten(1), percentile, dim=1).clamp(min=1).view(-1, 1, 1, 1)
        return x.clamp(-reach, reach) / reach * half + middle

    return bounded
