"""The same captions and seeds drawn with different sampling setups: how quality depends on steps, guidance and time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Self

import torch
from torch import Tensor

from unspeckle.generation.few_step import select_network
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import ResolvedRequest
from unspeckle.model import Model
from unspeckle.scoring.distances import compute_prdc, kid
from unspeckle.scoring.features import FeatureExtractor
from unspeckle.scoring.image_generation import generate_images
from unspeckle.scoring.scores import SweepPoint

STEP_FRACTIONS = (1 / 6, 1 / 3, 2 / 3, 1, 2)  # the step counts that are compared, as multiples of the model's own
EXTRA_SAMPLERS = ("ddim", "heun")  # compared with the model's own sampler
EXTRA_GUIDANCE_SCALES = (1.0, 2.0, 3.0, 5.0, 7.0)  # compared with the model's own guidance scale
SHOWN_IMAGES = 8  # images of each sampling setup that the report shows
JACKKNIFE_BLOCKS = 8
TWO_CALL_SAMPLERS = ("heun", "dpmpp_sde")  # samplers that call the network twice a step


@dataclass(frozen=True)
class SweepSetup:
    """What a sweep varies, and what all its images share."""

    sampler: str
    timestep_spacing: str
    steps: int
    guidance_scale: float
    size: tuple[int, int]  # (width, height) in pixels
    negative_prompt: str

    @classmethod
    def of_request(cls, resolved: ResolvedRequest) -> Self:
        """That of a request."""
        return cls(
            resolved.sampler,
            resolved.timestep_spacing,
            resolved.steps,
            resolved.guidance_scale,
            resolved.size,
            resolved.negative_prompt,
        )

    def request(self) -> Request:
        """The request that draws with this setup; without a prompt."""
        return Request(**asdict(self))

    @property
    def network_calls_per_image(self) -> int:
        """Calls of the network for one image; guidance doubles them."""
        calls_per_step = 2 if self.sampler in TWO_CALL_SAMPLERS else 1
        return self.steps * calls_per_step * (1 if self.guidance_scale == 1 else 2)


@dataclass(frozen=True)
class ReferenceFeatures:
    """The validation images that a sweep is compared with."""

    extractor: FeatureExtractor
    features: Tensor  # (N, D), by this extractor


def step_count_variants(model: Model, own: SweepSetup) -> list[SweepSetup]:
    """The model's sampler and two others, each with fewer and with more steps.

    A sampler that calls the network twice a step takes half as many steps. A distilled student has the step counts that
    it was trained for; its teacher none that the student would draw.
    """
    if student_steps := select_network(model, own.request()).card.step_counts:
        return [replace(own, steps=steps) for steps in student_steps]
    step_counts = sorted({min(1000, max(1, round(own.steps * fraction))) for fraction in STEP_FRACTIONS})
    variants = []
    for sampler in dict.fromkeys((own.sampler, *EXTRA_SAMPLERS)):
        halve = sampler in TWO_CALL_SAMPLERS and own.sampler not in TWO_CALL_SAMPLERS
        for step_count in step_counts:
            variants.append(replace(own, sampler=sampler, steps=max(1, step_count // 2) if halve else step_count))
    return _without_student_setups(model, dict.fromkeys(variants))


def guidance_scale_variants(model: Model, own: SweepSetup) -> list[SweepSetup]:
    """The same with other guidance scales; none for a distilled student, which has one scale built in."""
    if select_network(model, own.request()).card.step_counts:
        return []
    guidance_scales = sorted({*EXTRA_GUIDANCE_SCALES, own.guidance_scale})
    variants = [replace(own, guidance_scale=guidance_scale) for guidance_scale in guidance_scales]
    return _without_student_setups(model, variants)


def _without_student_setups(model: Model, variants: Iterable[SweepSetup]) -> list[SweepSetup]:
    """Those that the full model draws, not its student."""
    return [setup for setup in variants if not select_network(model, setup.request()).card.step_counts]


def run_sweep(
    model: Model,
    variants: Sequence[SweepSetup],
    captions: Sequence[str],
    seeds: Sequence[int],
    *,
    reference: ReferenceFeatures | None,
    advance: Callable[[int], None],
) -> Iterator[tuple[SweepPoint, Tensor]]:
    """For each variant its point and its first images, uint8 (SHOWN_IMAGES, 3, H, W).

    advance is called with the number of further calls of the network. Without a reference no distances are measured.
    """
    for setup in variants:
        calls_per_image = setup.network_calls_per_image

        def advance_images(count: int, calls: int = calls_per_image) -> None:
            advance(count * calls)

        generated = generate_images(model, captions, seeds, setup.request(), advance_images)
        point = SweepPoint(setup.sampler, setup.steps, setup.guidance_scale, generated.seconds_per_image)
        if reference is not None:
            point = _with_distances(point, reference.features, reference.extractor(generated.images))
        yield point, generated.images[:SHOWN_IMAGES]


def _with_distances(point: SweepPoint, reference_features: Tensor, generated_features: Tensor) -> SweepPoint:
    prdc = compute_prdc(reference_features, generated_features)
    return replace(
        point,
        kid=kid(reference_features, generated_features),
        kid_standard_error=_kid_standard_error(reference_features, generated_features),
        precision=prdc.precision,
        recall=prdc.recall,
        coverage=prdc.coverage,
    )


def _kid_standard_error(reference_features: Tensor, generated_features: Tensor) -> float:
    """The standard error of KID over the generated images, by the jackknife over blocks (Efron & Stein 1981)."""
    block_of_image = torch.arange(len(generated_features)) % JACKKNIFE_BLOCKS
    kid_without_block = torch.tensor(
        [kid(reference_features, generated_features[block_of_image != block]) for block in range(JACKKNIFE_BLOCKS)],
        dtype=torch.float64,
    )
    squared_deviations = (kid_without_block - kid_without_block.mean()).square().sum()
    return float(((JACKKNIFE_BLOCKS - 1) / JACKKNIFE_BLOCKS * squared_deviations).sqrt())
