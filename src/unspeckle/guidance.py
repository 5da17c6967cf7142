"""Classifier-free guidance and its relatives: rules that combine predictions, wrappers that bound the result.

A rule sees only `predict`: predict(1) is x̂ with the prompt, predict(2) is that and x̂ without it. So rules compose, and
no sampler knows of them."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from unspeckle.denoiser import AnyConditioning, Denoise, Denoiser, concatenate

Predict = Callable[[int], Tensor]  # n -> x̂ (n, B, C, H, W) for the first n conditionings, by one call of the network
GuidanceRule = Callable[[Predict, Tensor], Tensor]  # Predict, t () or (B,) -> x̂ (B, C, H, W)


def guided_denoise(denoiser: Denoiser, conditionings: Sequence[AnyConditioning], rule: GuidanceRule) -> Denoise:
    """A Denoise that predicts for all conditionings that its rule needs by ONE call on the joined batch.

    conditionings: the positive one first; alike in shape and in which fields they have. What does not depend on the
    time is prepared once."""
    prepared = cache(lambda n: denoiser.prepare(concatenate(conditionings[:n])))

    def predict(x_t: Tensor, t: Tensor, n: int) -> Tensor:
        denoised: Tensor = denoiser(torch.cat([x_t] * n), t.expand(len(x_t)).repeat(n), prepared(n))
        return denoised.view(n, *x_t.shape)

    return lambda x_t, t: rule(lambda n: predict(x_t, t, n), t)


def classifier_free_guidance(guidance_scale: float, guidance_rescale: float = 0.0) -> GuidanceRule:
    """Ho & Salimans 2022: x̂ = negative + guidance_scale · (positive - negative). Scale 1 is no guidance and predicts
    the positive one alone. guidance_rescale in [0, 1] brings the deviation of each image back to that of the positive
    prediction (Lin et al. 2024, eq. 15-16)."""

    def rule(predict: Predict, t: Tensor) -> Tensor:
        if guidance_scale == 1:
            return predict(1)[0]
        positive, negative = predict(2)
        guided = negative + guidance_scale * (positive - negative)
        back = positive.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True).clamp(min=1e-12)
        return torch.mul(guided, 1 + guidance_rescale * (back - 1))

    return rule


def composed(rule: GuidanceRule, weights: Sequence[Sequence[float]]) -> GuidanceRule:
    """The rule on weighted sums of predictions: its n-th is Σ_i weights[n][i] · x̂_i; the conditionings that weights[0]
    needs stand first. Weights (w_1, …, w_k, 1 - Σ w) and (0, …, 0, 1) compose k prompts, w < 0 is a NOT (Liu et al.
    2022, eq. 11)."""

    def weighted_sums(predict: Predict, n: int) -> Tensor:
        denoised = predict(1 + max(i for row in weights[:n] for i, weight in enumerate(row) if weight))
        rows = ([weight * x for weight, x in zip(row, denoised, strict=False) if weight] for row in weights[:n])
        return torch.stack([torch.stack(row).sum(0) for row in rows])

    return lambda predict, t: rule(lambda n: weighted_sums(predict, n), t)


def adaptive_projected_guidance(
    rule: GuidanceRule, momentum: float = -0.5, max_rms: float = 0.06, eta: float = 0.0
) -> GuidanceRule:
    """Sadat et al. 2024, Alg. 1, as another negative prediction for the rule: the difference gathers momentum, has at
    most max_rms as its root mean square (their r / √(C·H·W)) and keeps the share eta of what is parallel to the
    positive prediction. Made once a drawing: the momentum lives here."""
    running: Tensor | float = 0.0

    def projected(positive: Tensor, negative: Tensor) -> Tensor:
        nonlocal running
        running = (difference := positive - negative) + momentum * running
        bounded = running * (max_rms / running.square().mean((1, 2, 3), keepdim=True).sqrt()).clamp(max=1)
        norm = positive.square().sum((1, 2, 3), keepdim=True).clamp(min=1e-12)
        parallel = (bounded * positive).sum((1, 2, 3), keepdim=True) / norm
        return torch.stack((positive, negative + (difference - bounded + (1 - eta) * parallel * positive)))

    return lambda predict, t: rule(lambda n: projected(*predict(2)) if n == 2 else predict(n), t)


def autoguidance(denoise: Denoise, guide_denoise: Denoise, rule: GuidanceRule) -> Denoise:
    """Karras et al. 2024: the prediction of a weaker model takes the place of the negative prompt's."""
    both = (denoise, guide_denoise)
    return lambda x_t, t: rule(lambda n: torch.stack([predict(x_t, t) for predict in both[:n]]), t)


def guidance_interval(rule: GuidanceRule, low: float, high: float) -> GuidanceRule:
    """The rule at times low <= t <= high; elsewhere no guidance (Kynkäänniemi et al. 2024)."""
    return lambda predict, t: rule(predict, t) if low <= float(t.flatten()[0]) <= high else predict(1)[0]


def clamp_denoised(denoise: Denoise, low: Tensor | float, high: Tensor | float) -> Denoise:
    """x̂ clamped to what an image can be."""
    return lambda x_t, t: denoise(x_t, t).clamp(low, high)  # type: ignore[arg-type]


def dynamic_threshold(
    denoise: Denoise, low: Tensor | float, high: Tensor | float, percentile: float = 0.995
) -> Denoise:  # fmt: skip
    """x̂ of each image shrunk about the middle until that share of its values lies within [low, high], the rest cut
    (Saharia et al. 2022, section 2.3). percentile in (0, 1]."""
    middle, half = (low + high) / 2, (high - low) / 2

    def bounded(x_t: Tensor, t: Tensor) -> Tensor:
        x = (denoise(x_t, t) - middle) / half
        reach = torch.quantile(x.abs().flatten(1), percentile, dim=1).clamp(min=1).view(-1, 1, 1, 1)
        return x.clamp(-reach, reach) / reach * half + middle

    return bounded
