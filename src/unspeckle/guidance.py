"""What the estimates for several captions become: rules that combine them, wraps that bound the result."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from unspeckle.denoiser import Denoise, Denoiser, Conditioning

Predict = Callable[[int], Tensor]  # n to the estimates (n, B, C, H, W) for the first n givens, by one network call
GuidanceRule = Callable[[Predict, Tensor], Tensor]  # First, t (B,) to x̂


def guided_denoise(denoiser: Denoiser, conditionings: Sequence[Conditioning], rule: GuidanceRule) -> Denoise:
    """A Denoise that asks for all the givens that its rule needs by ONE call on the joined batch, givens[0] first.
    The givens are alike in shape and in which fields they have; what never depends on t is prepared once."""
    prepared = cache(lambda n: denoiser.prepare(concatenate(conditionings[:n])))

    def predict(x_t: Tensor, t: Tensor, n: int) -> Tensor:
        estimates: Tensor = denoiser(torch.cat([x_t] * n), t.expand(len(x_t)).repeat(n), prepared(n))
        return estimates.view(n, *x_t.shape)

    return lambda x_t, t: rule(lambda n: predict(x_t, t, n), t)


def concatenate(conditionings: Sequence[Conditioning]) -> Conditioning:
    """The rows of all the givens in one."""
    tokens, *optional = zip(*(conditioning[:4] for conditioning in conditionings), strict=True)
    mask, vector, concat = (None if field[0] is None else torch.cat(field) for field in optional)
    return Conditioning(torch.cat(tokens), mask, vector, concat, conditionings[0].prepared)


def classifier_free_guidance(guidance_scale: float, guidance_rescale: float = 0.0) -> GuidanceRule:
    """Classifier-free guidance, Ho & Salimans 2022: givens are the wanted one and the empty or negative one. Scale 1 is
    no guidance and runs the wanted one alone. rescale in [0, 1] brings an estimate's deviation back to the wanted one's
    (Lin et al. 2024, eq. 15-16)."""

    def rule(first: Predict, t: Tensor) -> Tensor:
        if guidance_scale == 1:
            return first(1)[0]
        wanted, unwanted = first(2)
        guided = unwanted + guidance_scale * (wanted - unwanted)
        back = wanted.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True).clamp(min=1e-12)
        return torch.mul(guided, 1 + guidance_rescale * (back - 1))

    return rule


def composed(rule: GuidanceRule, weights: Sequence[Sequence[float]]) -> GuidanceRule:
    """The rule on sums of estimates: its n-th is Σ_i shares[n][i] · x̂_i; the givens of shares[0] stand first.
    (w_1, …, w_k, 1 - Σ w) and (0, …, 0, 1) compose k wishes, w < 0 a NOT: Liu et al. 2022, eq. 11."""

    def summed(first: Predict, n: int) -> Tensor:
        estimates = first(1 + max(i for row in weights[:n] for i, share in enumerate(row) if share))
        rows = ([share * one for share, one in zip(row, estimates, strict=False) if share] for row in weights[:n])
        return torch.stack([torch.stack(row).sum(0) for row in rows])

    return lambda first, t: rule(lambda n: summed(first, n), t)


def adaptive_projected_guidance(rule: GuidanceRule, momentum: float = -0.5, max_rms: float = 0.06, eta: float = 0.0) -> GuidanceRule:
    """Adaptive projected guidance, Sadat et al. 2024, Alg. 1, as another unwanted estimate for the rule: the difference
    gathers momentum, has at most `threshold` as its root mean square (their r / √(C·H·W)) and keeps the share eta of
    what is parallel to the wanted estimate. Made once a drawing: the momentum lives here."""
    gathered: Tensor | float = 0.0

    def moved(wanted: Tensor, unwanted: Tensor) -> Tensor:
        nonlocal gathered
        gathered = (difference := wanted - unwanted) + momentum * gathered
        kept = gathered * (max_rms / gathered.square().mean((1, 2, 3), keepdim=True).sqrt()).clamp(max=1)
        length = wanted.square().sum((1, 2, 3), keepdim=True).clamp(min=1e-12)
        along = (kept * wanted).sum((1, 2, 3), keepdim=True) / length
        return torch.stack((wanted, unwanted + (difference - kept + (1 - eta) * along * wanted)))

    return lambda first, t: rule(lambda n: moved(*first(2)) if n == 2 else first(n), t)


def autoguidance(denoise: Denoise, guide_denoise: Denoise, rule: GuidanceRule) -> Denoise:
    """Karras et al. 2024: the guess of a weaker model is the unwanted estimate."""
    return lambda x_t, t: rule(lambda n: torch.stack([guess(x_t, t) for guess in (denoise, guide_denoise)[:n]]), t)


def guidance_interval(rule: GuidanceRule, low: float, high: float) -> GuidanceRule:
    """The rule at times low <= t <= high; elsewhere the wanted one alone is run. Kynkäänniemi et al. 2024."""
    return lambda first, t: rule(first, t) if low <= float(t.flatten()[0]) <= high else first(1)[0]


def clamp_denoised(denoise: Denoise, low: float, high: float) -> Denoise:
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
