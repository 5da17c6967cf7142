"""Guidance: one call of the network for all predictions, and each rule against its paper or diffusers."""

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

from oracle import one_gaussian
from unspeckle.denoiser import Conditioning, Denoiser, PreparedConditioning
from unspeckle.guidance import (
    adaptive_projected_guidance,
    autoguidance,
    build_guided_denoise,
    clamp_denoised,
    classifier_free_guidance,
    dynamic_threshold,
    guidance_interval,
    weighted_predictions,
)
from unspeckle.samplers import ddim
from unspeckle.schedule import FlowSchedule

SHAPE = (2, 3, 4, 4)
T = torch.full((2,), 0.4, dtype=torch.float64)


class TokenNetwork:
    """Predicts x · (1 + vector) + the first token of its row, and counts calls and preparations."""

    def __init__(self):
        self.batch_sizes, self.prepare_calls = [], 0

    def prepare(self, conditioning):
        self.prepare_calls += 1
        return PreparedConditioning(conditioning.tokens * 2, *conditioning[1:])

    def __call__(self, x, c_noise, conditioning):
        assert isinstance(conditioning, PreparedConditioning)
        assert {len(x), len(c_noise), *(len(field) for field in conditioning[:3])} == {len(x)}
        self.batch_sizes.append(len(x))
        return (
            x * (1 + conditioning.vector[:, 0, None, None, None]) + conditioning.keys_values[:, 0, 0, None, None, None]
        )


def make_conditioning(*tokens_of_rows):
    tokens = torch.tensor(tokens_of_rows).view(-1, 1, 1)
    return Conditioning(tokens, torch.ones(len(tokens), 1, dtype=torch.bool), tokens[:, 0] / 10)


@pytest.fixture
def drawing():
    network, generator = TokenNetwork(), torch.Generator().manual_seed(0)
    x_t = torch.randn(SHAPE, generator=generator)
    conditionings = (make_conditioning(1.0, 2.0), make_conditioning(-1.0, 0.5))
    positive, negative = (
        (x_t * (1 + g.vector.view(-1, 1, 1, 1))) + 2 * g.tokens.view(-1, 1, 1, 1) for g in conditionings
    )
    return network, Denoiser(network, FlowSchedule(), "x"), conditionings, x_t, positive, negative


@pytest.mark.parametrize("scale", [0.0, 3.0, 7.5])
def test_guidance_is_one_call_on_the_joined_batch(drawing, scale):
    network, denoiser, conditionings, x_t, positive, negative = drawing
    denoise = build_guided_denoise(denoiser, conditionings, classifier_free_guidance(scale))
    for _ in range(3):
        torch.testing.assert_close(denoise(x_t, T), negative + scale * (positive - negative))
    assert network.batch_sizes == [4, 4, 4] and network.prepare_calls == 1


def test_scale_1_predicts_the_positive_one_alone(drawing):
    network, denoiser, conditionings, x_t, positive, _ = drawing
    torch.testing.assert_close(
        build_guided_denoise(denoiser, conditionings, classifier_free_guidance(1.0))(x_t, T), positive
    )
    torch.testing.assert_close(
        build_guided_denoise(denoiser, conditionings[:1], classifier_free_guidance(1.0, guidance_rescale=0.7))(x_t, T),
        positive,
    )
    assert network.batch_sizes == [2, 2]


def test_guiding_x_is_guiding_eps():
    """The rule is linear: on x̂ as on eps = (x_t - alpha x̂) / sigma."""
    positive, negative, x_t = torch.randn(3, *SHAPE, dtype=torch.float64)
    eps = [(x_t - 0.6 * x) / 0.4 for x in (positive, negative)]
    guided = classifier_free_guidance(4.0)(lambda n: torch.stack((positive, negative)), T)
    torch.testing.assert_close((x_t - 0.6 * guided) / 0.4, eps[1] + 4 * (eps[0] - eps[1]))


def test_rescale_brings_back_the_deviation(drawing):
    _, denoiser, conditionings, x_t, positive, negative = drawing
    plain = negative + 5 * (positive - negative)
    for rescale in (0.0, 0.7, 1.0):
        guided = build_guided_denoise(denoiser, conditionings, classifier_free_guidance(5.0, rescale))(x_t, T)
        for row in range(2):
            target = plain[row] * positive[row].std() / plain[row].std()
            torch.testing.assert_close(guided[row], rescale * target + (1 - rescale) * plain[row])
    torch.testing.assert_close(guided.std((1, 2, 3)), positive.std((1, 2, 3)))


@pytest.mark.parametrize(("t", "calls"), [(0.19, 2), (0.2, 4), (0.5, 4), (0.8, 4), (0.81, 2)])
def test_outside_its_interval_there_is_no_guidance_and_half_the_work(drawing, t, calls):
    network, denoiser, conditionings, x_t, positive, negative = drawing
    found = build_guided_denoise(denoiser, conditionings, guidance_interval(classifier_free_guidance(3.0), 0.2, 0.8))(
        x_t, torch.full((2,), t, dtype=torch.float64)
    )
    torch.testing.assert_close(found, positive if calls == 2 else negative + 3 * (positive - negative))
    assert network.batch_sizes == [calls]


def test_and_of_two_gaussians_is_the_gaussian_of_their_product():
    """Liu et al. 2022, eq. 11: p(x|a) p(x|b) / p(x) of Gaussians is a Gaussian, whose noise scores add up exactly where
    all share one deviation: its mean is a + b - prior, at every time."""
    prior, a, b = (one_gaussian(mean, 0.4) for mean in (0.1, 0.9, -0.3))
    both, neither = one_gaussian(0.9 - 0.3 - 0.1, 0.4), one_gaussian(0.1 - 0.5 * (0.9 - 0.1) - 2 * (-0.3 - 0.1), 0.4)
    x_t = torch.randn(5, 2, 1, 1, dtype=torch.float64)
    for weights, product in (((1.0, 1.0, -1.0), both), ((-0.5, -2.0, 3.5), neither)):
        rule = weighted_predictions(classifier_free_guidance(1.0), (weights, (0.0, 0.0, 1.0)))
        for t in (0.2, 0.7):
            at = torch.full((5,), t, dtype=torch.float64)
            denoised = torch.stack([gaussian.denoiser(FlowSchedule())(x_t, at) for gaussian in (a, b, prior)])
            torch.testing.assert_close(
                rule(lambda n, found=denoised: found[:n], at), product.denoiser(FlowSchedule())(x_t, at)
            )


def test_sums_of_denoised_are_guided_as_one_and_request_for_no_more_than_they_need(drawing):
    network, denoiser, conditionings, x_t, positive, negative = drawing
    third = make_conditioning(0.3, -0.7)
    denoised = [positive, negative, x_t * (1 + third.vector.view(-1, 1, 1, 1)) + 2 * third.tokens.view(-1, 1, 1, 1)]
    rule = weighted_predictions(classifier_free_guidance(3.0), ((0.25, 0.75, 0.0), (0.0, 0.0, 1.0)))
    half = 0.25 * denoised[0] + 0.75 * denoised[1]
    found = build_guided_denoise(denoiser, [*conditionings, third], rule)(x_t, T)
    torch.testing.assert_close(found, denoised[2] + 3 * (half - denoised[2]))
    alone = build_guided_denoise(
        denoiser,
        [*conditionings, third],
        weighted_predictions(classifier_free_guidance(1.0), ((0.25, 0.75, 0.0), (0.0, 0.0, 1.0))),
    )(x_t, T)
    torch.testing.assert_close(alone, half)
    assert network.batch_sizes == [6, 4]
    plain = weighted_predictions(classifier_free_guidance(3.0), ((1.0, 0.0), (0.0, 1.0)))
    assert torch.equal(
        build_guided_denoise(denoiser, conditionings, plain)(x_t, T),
        build_guided_denoise(denoiser, conditionings, classifier_free_guidance(3.0))(x_t, T),
    )


NEUTRAL = {"momentum": 0.0, "max_rms": float("inf"), "eta": 1.0}


@pytest.mark.parametrize(
    "rule",
    [
        classifier_free_guidance(4.0),
        classifier_free_guidance(4.0, 0.7),
        guidance_interval(classifier_free_guidance(4.0), 0.0, 0.3),
    ],
)
def test_neutral_projected_guidance_is_the_rule_itself(drawing, rule):
    _, denoiser, conditionings, x_t, *_ = drawing
    plain, neutral = (
        build_guided_denoise(denoiser, conditionings, one)
        for one in (rule, adaptive_projected_guidance(rule, **NEUTRAL))
    )
    for _ in range(3):
        assert torch.equal(plain(x_t, T), neutral(x_t, T))


@pytest.mark.parametrize("threshold", [0.0, 2.0])  # the peer's 0 is none
@pytest.mark.parametrize(("momentum", "eta"), [(-0.5, 0.0), (0.3, 0.5), (0.0, 1.0)])
def test_projected_guidance_is_the_code_of_its_paper(threshold, momentum, eta):
    """Step after step, so that the momentum gathers; the peer's `use_original_formulation` starts from the positive one
    with scale - 1."""
    generator, theirs = torch.Generator().manual_seed(0), MomentumBuffer(momentum)
    bound = threshold / (3 * 4 * 4) ** 0.5 if threshold else float("inf")
    rule = adaptive_projected_guidance(classifier_free_guidance(6.0), momentum, bound, eta)
    for _ in range(4):
        pair = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
        peer = normalized_guidance(*pair, 5.0, theirs, eta, threshold, use_original_formulation=True)
        torch.testing.assert_close(rule(lambda n, pair=pair: pair[:n], T), peer)


def test_projected_guidance_of_a_image_of_zeros_is_finite():
    assert (
        adaptive_projected_guidance(classifier_free_guidance(3.0))(lambda n: torch.zeros(2, *SHAPE)[:n], T).abs().max()
        == 0
    )


def test_scale_1_needs_no_projection(drawing):
    network, denoiser, conditionings, x_t, positive, _ = drawing
    torch.testing.assert_close(
        build_guided_denoise(denoiser, conditionings[:1], adaptive_projected_guidance(classifier_free_guidance(1.0)))(
            x_t, T
        ),
        positive,
    )
    assert network.batch_sizes == [2]


def test_a_model_that_guides_itself_changes_nothing(drawing):
    _, denoiser, conditionings, x_t, *_ = drawing
    denoise = build_guided_denoise(denoiser, conditionings[:1], classifier_free_guidance(1.0))
    assert torch.equal(autoguidance(denoise, denoise, classifier_free_guidance(3.0))(x_t, T), denoise(x_t, T))


def test_a_worse_guide_sharpens_what_the_model_knows():
    """Karras et al. 2024: where the guide is the same Gaussian blurred, the guided drawing is narrower than both, by
    the ODE that holds for the difference of their scores; guided outside an interval it is not."""
    sharp, blurred = one_gaussian(0.5, 0.4), one_gaussian(0.5, 0.6)

    def drawn(rule):
        denoise = autoguidance(sharp.denoiser(FlowSchedule()), blurred.denoiser(FlowSchedule()), rule)
        x = torch.randn(4000, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        *_, last = ddim(denoise, FlowSchedule(), torch.linspace(1, 0, 101, dtype=torch.float64), x, None)
        return last.x

    plain, guided = drawn(classifier_free_guidance(1.0)), drawn(classifier_free_guidance(2.0))
    assert abs(float(plain.std()) - 0.4) < 0.01
    assert float(guided.std()) < 0.3 and abs(float(guided.mean()) - 0.5) < 0.01
    assert torch.equal(drawn(guidance_interval(classifier_free_guidance(2.0), 2.0, 3.0)), plain)


def test_clamp():
    x = torch.linspace(-3, 3, 96).view(SHAPE)
    assert torch.equal(clamp_denoised(lambda x_t, t: x_t, -1.5, 2.0)(x, T), x.clip(-1.5, 2.0))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-2.0, 3.0)])
def test_dynamic_threshold_is_imagens_rule(low, high):
    """Saharia et al. 2022, section 2.3, image by image; an image within bounds is left alone."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64) * torch.tensor([4.0, 0.1]).view(2, 1, 1, 1)
    found = dynamic_threshold(lambda x_t, t: x_t, low, high, 0.9)(x, T)
    unit = [(value - (low + high) / 2) / ((high - low) / 2) for value in x[0].flatten().tolist()]
    ordered = sorted(abs(value) for value in unit)
    place = 0.9 * (len(ordered) - 1)
    below = ordered[int(place)]
    s = below + (place - int(place)) * (ordered[int(place) + 1] - below)
    assert s > 1
    expected = [max(-s, min(s, value)) / s * (high - low) / 2 + (low + high) / 2 for value in unit]
    torch.testing.assert_close(found[0].flatten(), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(found[1], x[1])
    assert found.min() >= low and found.max() <= high
