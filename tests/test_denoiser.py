"""The denoiser: x̂ from every prediction, its input scaling, its time conditioning, its precision."""

import pytest
import torch
from torch import nn

from oracle import SCHEDULES
from unspeckle.denoiser import PREDICTIONS, Conditioning, Denoiser, PreparedConditioning
from unspeckle.errors import InputError
from unspeckle.schedule import CosineSchedule, DiscreteSchedule, FlowSchedule, LinearSchedule, VESchedule

ALL = {**SCHEDULES, "ve": VESchedule()}
CONDITIONING = Conditioning(torch.zeros(7, 1, 1))
T = torch.tensor([1e-3, 0.02, 0.1, 0.37, 0.5, 0.9, 0.999], dtype=torch.float64)


class FixedNetwork:
    """A network that always gives the same output, and records its inputs."""

    def __init__(self, output):
        self.output = output

    def prepare(self, conditioning):
        return PreparedConditioning(*conditioning)

    def __call__(self, x, c_noise, conditioning):
        self.x, self.c_noise = x, c_noise
        return self.output


def exact_predictions(x, eps, alpha, sigma):
    alpha, sigma = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    return {"x": x, "eps": eps, "v": (alpha * eps - sigma * x) / (alpha**2 + sigma**2).sqrt(), "flow": eps - x}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_prediction_gives_back_the_image(name, prediction, dtype):
    schedule = ALL[name]
    if prediction == "eps" and schedule(torch.ones(1))[0] == 0:
        pytest.skip("refused, see below")
    generator = torch.Generator().manual_seed(1)
    x, eps = (torch.randn(7, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha, sigma = schedule(T)
    x_t = alpha.view(-1, 1, 1, 1) * x + sigma.view(-1, 1, 1, 1) * eps
    network = FixedNetwork(exact_predictions(x, eps, alpha, sigma)[prediction].to(dtype))
    denoised = Denoiser(network, schedule, prediction)(x_t.to(dtype), T, CONDITIONING)
    assert denoised.dtype == dtype
    # a rounding error of x_t counts 1/alpha times where eps is predicted, sigma/(alpha + sigma) times x_t elsewhere
    growth = (1 + sigma) / alpha if prediction == "eps" else 1 + sigma
    error = (denoised.double() - x).abs().flatten(1).amax(1)
    assert (error < 30 * torch.finfo(dtype).eps * growth).all(), error / growth


@pytest.mark.parametrize("schedule", [CosineSchedule(), FlowSchedule(), DiscreteSchedule(zero_terminal_snr=True)])
def test_eps_is_refused_where_alpha_is_0(schedule):
    with pytest.raises(InputError, match="choose v"):
        Denoiser(FixedNetwork(None), schedule, "eps")


@pytest.mark.parametrize("bad", [{"prediction": "noise"}, {"prediction": "x", "time_conditioning": "sundial"}])
def test_unknown_names_are_refused(bad):
    with pytest.raises(InputError, match="choose one of"):
        Denoiser(FixedNetwork(None), LinearSchedule(), **bad)


def test_time_conditioning():
    x_t = torch.zeros(7, 1, 1, 1)
    network = FixedNetwork(x_t)
    expected = {"t": T, "index": 1000 * T - 1, "log_sigma": (80 * T**7).clamp(min=1e-9).log() / 4}
    for name, c_noise in expected.items():
        Denoiser(network, VESchedule(), "x", name)(x_t, T, CONDITIONING)
        torch.testing.assert_close(network.c_noise, c_noise.float(), rtol=1e-5, atol=1e-6)
    Denoiser(network, VESchedule(), "x", lambda t, schedule: 7 * t)(x_t, T, CONDITIONING)
    torch.testing.assert_close(network.c_noise, 7 * T.float())


def test_c_noise_of_a_discrete_model_is_its_timestep_exactly():
    k = torch.arange(1000)
    network = FixedNetwork(torch.zeros(1000, 1, 1, 1))
    Denoiser(network, DiscreteSchedule(), "eps", "index")(
        network.output, (k + 1).double() / 1000, Conditioning(torch.zeros(1000, 1, 1))
    )
    assert (network.c_noise.round() == k).all() and (network.c_noise - k).abs().max() < 1e-9


def test_only_ve_scales_its_input():
    x_t = torch.ones(7, 1, 1, 1)
    network = FixedNetwork(x_t)
    Denoiser(network, VESchedule(), "v")(x_t, T, CONDITIONING)
    torch.testing.assert_close(network.x.flatten(), ((1 + (80 * T**7) ** 2) ** -0.5).float())
    Denoiser(network, FlowSchedule(), "v")(x_t, T, CONDITIONING)
    assert (network.x == 1).all()


def test_v_on_ve_is_karras_preconditioning():
    """Karras et al. 2022, Table 1 with sigma_data = 1; their F is -v."""
    sigma = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
    x_t = torch.tensor([0.3, -2.0, 40.0], dtype=torch.float64).view(-1, 1, 1, 1)
    output = torch.tensor([1.0, 0.5, -0.7], dtype=torch.float64).view(-1, 1, 1, 1)
    denoised = Denoiser(FixedNetwork(-output), VESchedule(), "v")(
        x_t, VESchedule().inverse(sigma), Conditioning(torch.zeros(3, 1, 1))
    )
    s = sigma.view(-1, 1, 1, 1)
    torch.testing.assert_close(denoised, x_t / (s**2 + 1) + s / (s**2 + 1).sqrt() * output)


class Convolution(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, padding=1, dtype=dtype)

    def prepare(self, conditioning):
        return PreparedConditioning(conditioning.tokens * 2, *conditioning[1:])

    def forward(self, x, c_noise, conditioning):
        assert x.dtype == conditioning[0].dtype == conditioning.vector.dtype == self.layer.weight.dtype
        assert x.is_contiguous(memory_format=torch.channels_last) and conditioning.mask.dtype == torch.bool
        return self.layer(x)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_precision_is_cast_around_the_network(weights, dtype):
    network = Convolution(weights)
    x_t = torch.randn(2, 4, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
    conditioning = Conditioning(torch.randn(2, 3, 5), torch.ones(2, 3, dtype=torch.bool), torch.randn(2, 6))
    denoised = Denoiser(network, FlowSchedule(), "flow")(x_t, torch.tensor(0.25), conditioning)
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    assert denoised.dtype == precise
    torch.testing.assert_close(denoised, x_t.to(precise) - 0.25 * network.layer(x_t.to(weights)).to(precise))


def test_prepare_is_done_once():
    denoiser = Denoiser(Convolution(torch.float32), FlowSchedule(), "x")
    once = denoiser.prepare(Conditioning(torch.ones(1, 1, 1)))
    assert once.keys_values.item() == 2 and denoiser.prepare(once) is once
