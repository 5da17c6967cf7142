"""The training objective: its weights, its times, and that its optimum is the best denoiser."""

import math

import pytest
import torch
from torch import nn

from oracle import SCHEDULES
from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.errors import InputError
from unspeckle.objective import Objective
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import DiscreteSchedule, FlowSchedule, LinearSchedule, VESchedule

T = torch.tensor([0.01, 0.05, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
LATE = T.clamp(min=0.2)  # earlier, VE's sigma is lost in the rounding of x_t
CONDITIONING = Conditioning(torch.zeros(6, 1, 1))


class SineNetwork:
    def prepare(self, conditioning):
        return conditioning

    def __call__(self, x, c_noise, conditioning):
        self.output = torch.sin(3 * x) + c_noise.view(-1, 1, 1, 1)
        return self.output


def random_example(schedule, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, eps = (torch.randn(6, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in schedule(LATE))
    v = (alpha * eps - sigma * x) / (alpha**2 + sigma**2).sqrt()
    return x, eps, {"x": x, "eps": eps, "v": v, "flow": eps - x}


def mse(a, b):
    return (a - b).square().mean((1, 2, 3))


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        (schedule, prediction)
        for schedule in (LinearSchedule(), DiscreteSchedule(), VESchedule())
        for prediction in ("x", "eps", "v")
    ]
    + [(FlowSchedule(), prediction) for prediction in ("x", "v", "flow")],
)
def test_plain_is_the_error_of_the_networks_output(schedule, prediction):
    network = SineNetwork()
    x, eps, targets = random_example(schedule)
    loss = Objective(loss_weighting="plain", min_c_out=0.0).loss_at(
        Denoiser(network, schedule, prediction), x, CONDITIONING, LATE, eps
    )
    torch.testing.assert_close(loss, mse(network.output, targets[prediction]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("prediction", ["x", "eps", "v", "flow"])
@pytest.mark.parametrize("schedule", [LinearSchedule(), VESchedule(), FlowSchedule()])
def test_v_is_the_error_of_the_velocity_whatever_is_predicted(schedule, prediction):
    if prediction == "eps" and schedule == FlowSchedule():
        pytest.skip("refused by the denoiser")
    x, eps, targets = random_example(schedule)
    denoiser = Denoiser(SineNetwork(), schedule, prediction)
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in schedule(LATE))
    x_t = alpha * x + sigma * eps
    denoised = denoiser(x_t, LATE, CONDITIONING)
    eps_hat = (x_t - alpha * denoised) / sigma
    velocity = (alpha * eps_hat - sigma * denoised) / (alpha**2 + sigma**2).sqrt()
    velocity, truth = (eps_hat - denoised, eps - x) if schedule == FlowSchedule() else (velocity, targets["v"])
    loss = Objective(loss_weighting="v", min_c_out=0.0).loss_at(denoiser, x, CONDITIONING, LATE, eps)
    torch.testing.assert_close(loss, mse(velocity, truth), rtol=1e-6, atol=0)


def test_on_a_flow_the_v_loss_divides_by_t_but_never_by_less_than_the_floor():
    weight = Objective().loss_weight(T, FlowSchedule(), "x")
    torch.testing.assert_close(weight, T.clamp(min=0.05) ** -2)


@pytest.mark.parametrize("name", [*SCHEDULES, "ve"])
def test_min_snr_and_soft(name):
    schedule = SCHEDULES.get(name, VESchedule())
    t = torch.cat((torch.zeros(1, dtype=torch.float64), T, torch.ones(1, dtype=torch.float64)))
    alpha, sigma = schedule(t)
    snr = (alpha / sigma) ** 2
    torch.testing.assert_close(
        Objective(loss_weighting="min_snr", gamma=5).loss_weight(t, schedule, "x"), snr.clamp(max=5)
    )
    soft = Objective(loss_weighting="soft", gamma=4).loss_weight(t, schedule, "x")
    torch.testing.assert_close(soft, 1 / (1 / snr + 1 / 4))
    sigmoid_on_eps = torch.sigmoid(math.log(4) - snr.log())[1:-1]  # its weight on the error of eps, b = log 4
    torch.testing.assert_close(soft[1:-1], sigmoid_on_eps * snr[1:-1])


def assert_follows(values, cdf):
    """Kolmogorov-Smirnov, one in a thousand."""
    values, n = values.double().sort().values, len(values)
    assert ((cdf(values) - (torch.arange(n) + 0.5) / n).abs().max() + 0.5 / n) < 1.95 / math.sqrt(n)


def test_time_distributions():
    rng = ExampleRNG(1, torch.arange(20000))
    normal = torch.special.ndtr
    assert_follows(Objective(time_distribution="uniform").sample_times(rng, FlowSchedule()), lambda t: t)
    assert_follows(
        Objective(mean=0.3, std=0.8).sample_times(rng, FlowSchedule()), lambda t: normal((t.logit() - 0.3) / 0.8)
    )
    edm = Objective(time_distribution="edm", mean=-0.5, std=1.2)
    for schedule in (VESchedule(), FlowSchedule(), LinearSchedule()):
        assert_follows(
            edm.sample_times(rng, schedule), lambda t, s=schedule: normal((torch.div(*s(t)).log().neg() + 0.5) / 1.2)
        )


@pytest.mark.parametrize("times", ["uniform", "logit_normal", "edm"])
def test_the_loss_of_an_example_is_its_own_however_the_batch_is_split(times):
    objective, denoiser = Objective(time_distribution=times), Denoiser(SineNetwork(), FlowSchedule(), "x")
    x = torch.randn(6, 3, 4, 4)
    indices = torch.tensor([4, 5, 6, 1000, 2**33, 0])

    def losses(rows):
        return objective(
            denoiser, x[rows], CONDITIONING._replace(tokens=CONDITIONING.tokens[rows]), ExampleRNG(3, indices[rows])
        )

    whole = losses(slice(0, 6))
    assert whole.dtype == torch.float32
    torch.testing.assert_close(torch.cat((losses(slice(0, 1)), losses(slice(1, 4)), losses(slice(4, 6)))), whole)
    assert len(whole.unique()) == 6


def test_captions_are_dropped_example_by_example():
    indices = torch.arange(20000)
    dropped = Objective().dropped_captions(ExampleRNG(2, indices))
    assert abs(dropped.float().mean() - 0.1) < 4 * math.sqrt(0.09 / 20000)
    assert torch.equal(dropped[50:60], Objective().dropped_captions(ExampleRNG(2, indices[50:60])))
    t = Objective(time_distribution="uniform").sample_times(ExampleRNG(2, indices), FlowSchedule())
    assert abs(t[dropped].mean() - 0.5) < 4 * math.sqrt(1 / 12 / 2000)  # independent of the time
    assert not Objective(caption_dropout=0.0).dropped_captions(ExampleRNG(2, indices)).any()
    assert Objective(caption_dropout=1.0).dropped_captions(ExampleRNG(2, indices)).all()


@pytest.mark.parametrize("weight", ["plain", "v", "min_snr", "soft"])
@pytest.mark.parametrize("prediction", ["x", "eps", "v", "flow"])
def test_the_best_network_for_every_objective_is_the_best_denoiser(weight, prediction):
    """x of one Gaussian (m, s): where x̂ = E[x | x_t] the loss has no slope, and its value is w · var(x | x_t)."""
    schedule, mean, std = LinearSchedule(), 0.5, 0.4
    t = torch.full((40000,), 0.4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x, eps = (torch.randn(40000, 1, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    x = mean + std * x
    alpha, sigma = (float(level) for level in schedule(t[:1].clone()))
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)

    class OptimalNetwork(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x_t, c_noise, conditioning):
            best = mean + gain * (x_t - alpha * mean) + self.bias
            noise = (x_t - alpha * best) / sigma
            return {"x": best, "eps": noise, "v": alpha * noise - sigma * best, "flow": noise - best}[prediction]

    network = OptimalNetwork()
    objective = Objective(loss_weighting=weight)
    loss = objective.loss_at(Denoiser(network, schedule, prediction), x, Conditioning(torch.zeros(40000, 1, 1)), t, eps)
    loss.mean().backward()
    w = float(objective.loss_weight(t[:1], schedule, prediction))
    variance = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
    assert float(loss.detach().mean()) == pytest.approx(w * variance, rel=4 * math.sqrt(2 / 40000))
    assert abs(float(network.bias.grad)) < 4 * 2 * w * math.sqrt(variance / 40000)


@pytest.mark.parametrize("bad", [{"time_distribution": "lunch"}, {"loss_weighting": "heavy"}])
def test_unknown_names_are_refused(bad):
    with pytest.raises(InputError, match="choose one of"):
        Objective(**bad)
