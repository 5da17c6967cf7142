"""The same captions and seeds drawn in many ways: how quality goes with steps, guidance scale and time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unspeckle.generation.few_step import select_network
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import ResolvedRequest
from unspeckle.model import Model
from unspeckle.scoring.distances import compute_prdc, kid
from unspeckle.scoring.drawing import generate_images
from unspeckle.scoring.features import FeatureExtractor
from unspeckle.scoring.scores import SweepPoint

STEP_FRACTIONS = (1 / 6, 1 / 3, 2 / 3, 1, 2)  # of the model's steps
EXTRA_SAMPLERS = ("ddim", "heun")  # beside the model's own
EXTRA_GUIDANCE_SCALES = (1.0, 2.0, 3.0, 5.0, 7.0)  # beside the model's own
SHOWN_IMAGES = 8  # pictures of each way that are kept
JACKKNIFE_BLOCKS = 8  # of the jackknife
TWO_CALL_SAMPLERS = ("heun", "dpmpp_sde")  # two calls of the network a step


@dataclass(frozen=True)
class ReferenceFeatures:
    """What sweeps are measured against: features of held-out pictures (N, D), by the same features."""

    extractor: FeatureExtractor
    features: Tensor


def network_calls_per_image(resolved: ResolvedRequest) -> int:
    """Of the network, for one picture; the two halves of guidance count as two."""
    return (
        resolved.steps
        * (2 if resolved.sampler in TWO_CALL_SAMPLERS else 1)
        * (1 if resolved.guidance_scale == 1 else 2)
    )


def step_count_variants(model: Model, resolved: ResolvedRequest) -> list[ResolvedRequest]:
    """The model's sampler and two others at fewer and more steps; a sampler of two calls a step takes half of them.
    Of a student, the counts of steps that it knows; of its teacher, none that the student would draw."""
    if student_steps := select_network(model, resolved).card.step_counts:
        return [replace(resolved, steps=steps) for steps in student_steps]
    step_counts = sorted({min(1000, max(1, round(resolved.steps * share))) for share in STEP_FRACTIONS})
    variants = []
    for sampler in dict.fromkeys((resolved.sampler, *EXTRA_SAMPLERS)):
        for step_count in step_counts:
            is_two_call_sampler = sampler in TWO_CALL_SAMPLERS and resolved.sampler not in TWO_CALL_SAMPLERS
            variants.append(
                replace(resolved, sampler=sampler, steps=max(1, step_count // 2) if is_two_call_sampler else step_count)
            )
    return _without_student_requests(model, dict.fromkeys(variants))


def guidance_scale_variants(model: Model, resolved: ResolvedRequest) -> list[ResolvedRequest]:
    """The same with other guidance scales; none for a student, which has but the one that it learnt."""
    if select_network(model, resolved).card.step_counts:
        return []
    return _without_student_requests(
        model,
        [
            replace(resolved, guidance_scale=guidance_scale)
            for guidance_scale in sorted({*EXTRA_GUIDANCE_SCALES, resolved.guidance_scale})
        ],
    )


_SWEPT_FIELDS = ("sampler", "timestep_spacing", "steps", "guidance_scale", "size", "negative_prompt")


def _without_student_requests(model: Model, resolved_requests: Iterable[ResolvedRequest]) -> list[ResolvedRequest]:
    """Those that the model draws itself."""
    return [resolved for resolved in resolved_requests if not select_network(model, resolved).card.step_counts]


def run_sweep(
    model: Model, resolved_requests: Sequence[ResolvedRequest], captions: Sequence[str], seeds: Sequence[int], reference: ReferenceFeatures | None,
    advance: Callable[[int], None],
) -> Iterator[tuple[SweepPoint, Tensor]]:  # fmt: skip
    """Each order's point, and its first pictures. tell: how many calls of the network were made."""
    for resolved in resolved_requests:
        request = Request(**{name: getattr(resolved, name) for name in _SWEPT_FIELDS})
        calls_per_image = network_calls_per_image(resolved)

        def advance_images(count: int, calls: int = calls_per_image) -> None:
            advance(count * calls)

        generated = generate_images(model, captions, seeds, request, advance_images)
        point = SweepPoint(resolved.sampler, resolved.steps, resolved.guidance_scale, generated.seconds_per_image)
        if reference is not None:
            point = _with_distances(point, reference.features, reference.extractor(generated.images))
        yield point, generated.images[:SHOWN_IMAGES]


def _with_distances(point: SweepPoint, reference_features: Tensor, generated_features: Tensor) -> SweepPoint:
    prdc = compute_prdc(reference_features, generated_features)
    return replace(
        point, kid=kid(reference_features, generated_features), kid_standard_error=_kid_standard_error(reference_features, generated_features), precision=prdc.precision,
        recall=prdc.recall, coverage=prdc.coverage,
    )  # fmt: skip


def _kid_standard_error(reference_features: Tensor, generated_features: Tensor) -> float:
    """The standard error of KID over the drawn pictures: the jackknife over blocks of them (Efron & Stein 1981)."""
    block_of_image = torch.arange(len(generated_features)) % JACKKNIFE_BLOCKS
    kid_without_block = torch.tensor(
        [kid(reference_features, generated_features[block_of_image != block]) for block in range(JACKKNIFE_BLOCKS)],
        dtype=torch.float64,
    )
    return float(
        (
            (JACKKNIFE_BLOCKS - 1) / JACKKNIFE_BLOCKS * (kid_without_block - kid_without_block.mean()).square().sum()
        ).sqrt()
    )
