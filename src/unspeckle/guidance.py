"""Classifier-free guidance and its relatives: rules that combine predictions, and wrappers that bound the result.

A rule sees only `predict`: predict(n) gives the first n predictions, stacked: x̂ with the prompt, then x̂ with the
negative or empty prompt. So rules compose, and samplers see nothing of them."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from unspeckle.denoiser import AnyConditioning, Denoise, Denoiser, concatenate

# n -> x̂ (n, B, C, H, W) for the first n conditionings, by one call of the network
Predict = Callable[[int], Tensor]
# (predict, t () or (B,)) -> x̂ (B, C, H, W)
GuidanceRule = Callable[[Predict, Tensor], Tensor]


def build_guided_denoise(denoiser: Denoiser, conditionings: Sequence[AnyConditioning], rule: GuidanceRule) -> Denoise:
    """A Denoise that combines its predictions by the rule; those that the rule needs come from one call of the network
    on the joined batch.

    conditionings: the positive one first; all with the same fields and shapes. They are prepared once."""
    prepared = cache(lambda n: denoiser.prepare(concatenate(conditionings[:n])))

    def predict_first(x_t: Tensor, t: Tensor, n: int) -> Tensor:
        denoised: Tensor = denoiser(torch.cat([x_t] * n), t.expand(len(x_t)).repeat(n), prepared(n))
        return denoised.view(n, *x_t.shape)

    return lambda x_t, t: rule(lambda n: predict_first(x_t, t, n), t)


def classifier_free_guidance(guidance_scale: float, guidance_rescale: float = 0.0) -> GuidanceRule:
    """Ho & Salimans 2022: x̂ = negative + guidance_scale · (positive - negative). At scale 1, which is no guidance, only
    the positive one is predicted.

    guidance_rescale: 0 to 1, how far the standard deviation of each image is brought back to that of the positive
    prediction (Lin et al. 2024, eq. 15-16)."""

    def rule(predict: Predict, t: Tensor) -> Tensor:
        if guidance_scale == 1:
            return predict(1)[0]
        positive, negative = predict(2)
        guided = negative + guidance_scale * (positive - negative)
        ratio = positive.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True).clamp(min=1e-12)
        return torch.mul(guided, 1 + guidance_rescale * (ratio - 1))

    return rule


def weighted_predictions(rule: GuidanceRule, weights: Sequence[Sequence[float]]) -> GuidanceRule:
    """The rule applied to weighted sums of predictions: the n-th prediction that it sees is Σ_i weights[n][i] · x̂_i.
    The conditionings of which weights[0] is not 0 stand first.

    Weights (w_1, …, w_k, 1 - Σ w) and (0, …, 0, 1) compose k prompts; w < 0 is a NOT (Liu et al. 2022, eq. 11)."""

    def weighted_sums(predict: Predict, n: int) -> Tensor:
        denoised = predict(1 + max(i for row in weights[:n] for i, weight in enumerate(row) if weight))
        rows = ([weight * x for weight, x in zip(row, denoised, strict=False) if weight] for row in weights[:n])
        return torch.stack([torch.stack(row).sum(0) for row in rows])

    return lambda predict, t: rule(lambda n: weighted_sums(predict, n), t)


def adaptive_projected_guidance(
    rule: GuidanceRule, momentum: float = -0.5, max_rms: float = 0.06, eta: float = 0.0
) -> GuidanceRule:
    """Adaptive projected guidance (Sadat et al. 2024, Alg. 1), as a change of the negative prediction of the rule.

    The difference of the predictions is replaced by one with momentum, whose root mean square is at most max_rms (their
    r / √(C·H·W)), and of which only the share eta of what is parallel to the positive prediction stays. The momentum is
    kept in this rule, so each drawing needs one of its own."""
    running: Tensor | float = 0.0  # the differences so far, each step weighted by momentum

    def projected(positive: Tensor, negative: Tensor) -> Tensor:
        nonlocal running
        running = (difference := positive - negative) + momentum * running
        bounded = running * (max_rms / running.square().mean((1, 2, 3), keepdim=True).sqrt()).clamp(max=1)
        norm = positive.square().sum((1, 2, 3), keepdim=True).clamp(min=1e-12)
        parallel = (bounded * positive).sum((1, 2, 3), keepdim=True) / norm
        return torch.stack((positive, negative + (difference - bounded + (1 - eta) * parallel * positive)))

    return lambda predict, t: rule(lambda n: projected(*predict(2)) if n == 2 else predict(n), t)


def autoguidance(denoise: Denoise, guide_denoise: Denoise, rule: GuidanceRule) -> Denoise:
    """Autoguidance (Karras et al. 2024): a weaker model's prediction takes the place of the negative prompt's."""
    both = (denoise, guide_denoise)
    return lambda x_t, t: rule(lambda n: torch.stack([model(x_t, t) for model in both[:n]]), t)


def guidance_interval(rule: GuidanceRule, low: float, high: float) -> GuidanceRule:
    """The rule at times low <= t <= high, and no guidance at others (Kynkäänniemi et al. 2024)."""
    return lambda predict, t: rule(predict, t) if low <= float(t.flatten()[0]) <= high else predict(1)[0]


def clamp_denoised(denoise: Denoise, low: Tensor | float, high: Tensor | float) -> Denoise:
    """x̂ clamped to [low, high], the values that images have."""
    return lambda x_t, t: denoise(x_t, t).clamp(low, high)  # type: ignore[arg-type]


def dynamic_threshold(
    denoise: Denoise, low: Tensor | float, high: Tensor | float, percentile: float = 0.995
) -> Denoise:
    """x̂ of each image scaled toward the middle of [low, high] until the share `percentile` (over 0 to 1) of its values
    lies within, and the rest clamped (Saharia et al. 2022, section 2.3)."""
    middle, half = (low + high) / 2, (high - low) / 2

    def bounded(x_t: Tensor, t: Tensor) -> Tensor:
        x = (denoise(x_t, t) - middle) / half
        bound = torch.quantile(x.abs().flatten(1), percentile, dim=1).clamp(min=1).view(-1, 1, 1, 1)
        return x.clamp(-bound, bound) / bound * half + middle

    return bounded
