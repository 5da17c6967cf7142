import pytest
import torch

from unspeckle.denoiser import Denoiser, Given
from unspeckle.guidance import cfg, clamp, combine, dynamic_threshold, interval
from unspeckle.schedule import Flow

SHAPE = (2, 3, 4, 4)
T = torch.full((2,), 0.4, dtype=torch.float64)


class Told:
    """Puts out x + the first token of its row, and counts calls and preparations."""

    def __init__(self):
        self.calls, self.prepared = [], 0

    def prepare(self, given):
        self.prepared += 1
        return given._replace(tokens=given.tokens * 2, prepared=True)

    def __call__(self, x, clock, given):
        assert given.prepared and len(x) == len(clock) == len(given.tokens) == len(given.vector) == len(given.mask)
        self.calls.append(len(x))
        return x * (1 + given.vector[:, 0, None, None, None]) + given.tokens[:, 0, 0, None, None, None]


def given(*words):
    tokens = torch.tensor(words).view(-1, 1, 1)
    return Given(tokens, torch.ones(len(words), 1, dtype=torch.bool), tokens[:, 0] / 10)


@pytest.fixture
def drawing():
    network, generator = Told(), torch.Generator().manual_seed(0)
    x_t = torch.randn(SHAPE, generator=generator)
    givens = (given(1.0, 2.0), given(-1.0, 0.5))
    wanted, unwanted = ((x_t * (1 + g.vector.view(-1, 1, 1, 1))) + 2 * g.tokens.view(-1, 1, 1, 1) for g in givens)
    return network, Denoiser(network, Flow(), "x"), givens, x_t, wanted, unwanted


@pytest.mark.parametrize("scale", [0.0, 3.0, 7.5])
def test_guidance_is_one_call_on_the_joined_batch(drawing, scale):
    network, denoiser, givens, x_t, wanted, unwanted = drawing
    denoise = combine(denoiser, givens, cfg(scale))
    for _ in range(3):
        torch.testing.assert_close(denoise(x_t, T), unwanted + scale * (wanted - unwanted))
    assert network.calls == [4, 4, 4] and network.prepared == 1


def test_scale_1_runs_the_wanted_one_alone(drawing):
    network, denoiser, givens, x_t, wanted, _ = drawing
    torch.testing.assert_close(combine(denoiser, givens, cfg(1.0))(x_t, T), wanted)
    torch.testing.assert_close(combine(denoiser, givens[:1], cfg(1.0, rescale=0.7))(x_t, T), wanted)
    assert network.calls == [2, 2]


def test_guiding_x_is_guiding_eps():
    """The rule is linear: on x̂ as on eps = (x_t - alpha x̂) / sigma."""
    wanted, unwanted, x_t = torch.randn(3, *SHAPE, dtype=torch.float64)
    eps = [(x_t - 0.6 * x) / 0.4 for x in (wanted, unwanted)]
    guided = cfg(4.0)(lambda n: torch.stack((wanted, unwanted)), T)
    torch.testing.assert_close((x_t - 0.6 * guided) / 0.4, eps[1] + 4 * (eps[0] - eps[1]))


def test_rescale_brings_back_the_deviation(drawing):
    _, denoiser, givens, x_t, wanted, unwanted = drawing
    plain = unwanted + 5 * (wanted - unwanted)
    for rescale in (0.0, 0.7, 1.0):
        guided = combine(denoiser, givens, cfg(5.0, rescale))(x_t, T)
        for row in range(2):
            target = plain[row] * wanted[row].std() / plain[row].std()
            torch.testing.assert_close(guided[row], rescale * target + (1 - rescale) * plain[row])
    torch.testing.assert_close(guided.std((1, 2, 3)), wanted.std((1, 2, 3)))


@pytest.mark.parametrize(("t", "calls"), [(0.19, 2), (0.2, 4), (0.5, 4), (0.8, 4), (0.81, 2)])
def test_outside_its_interval_guidance_is_neither_felt_nor_paid(drawing, t, calls):
    network, denoiser, givens, x_t, wanted, unwanted = drawing
    found = combine(denoiser, givens, interval(cfg(3.0), 0.2, 0.8))(x_t, torch.full((2,), t, dtype=torch.float64))
    torch.testing.assert_close(found, wanted if calls == 2 else unwanted + 3 * (wanted - unwanted))
    assert network.calls == [calls]


def test_clamp():
    x = torch.linspace(-3, 3, 96).view(SHAPE)
    assert torch.equal(clamp(lambda x_t, t: x_t, -1.5, 2.0)(x, T), x.clip(-1.5, 2.0))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-2.0, 3.0)])
def test_dynamic_threshold_is_imagens_rule(low, high):
    """Saharia et al. 2022, section 2.3, picture by picture; a picture within bounds is left alone."""
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
