"""Every schedule: ends, inverse, its paper's formula, diffusers' tables, and its configuration."""

import json
import math

import pytest
import torch
from diffusers import DDIMScheduler

import oracle
from unspeckle.configuration import kind_from_json, kind_to_json
from unspeckle.errors import InputError
from unspeckle.schedule import (
    SCHEDULES,
    CosineSchedule,
    DiscreteSchedule,
    FlowSchedule,
    LinearSchedule,
    SigmoidSchedule,
    VESchedule,
)

VARIANCE_PRESERVING = sorted(set(oracle.SCHEDULES) - {"flow"})
ALL = {**oracle.SCHEDULES, "ve": VESchedule()}
T = torch.cat((torch.linspace(0, 1, 3001, dtype=torch.float64), torch.logspace(-9, -3, 50, dtype=torch.float64)))


@pytest.mark.parametrize("name", ALL)
def test_starts_at_the_image_and_only_gets_noisier(name):
    alpha, sigma = ALL[name](T[:3001])
    assert alpha[0] == 1 and sigma[0] == 0
    assert ((sigma / alpha).diff() > 0).all() and (alpha.diff() <= 0).all()


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_preserves_variance(name):
    alpha, sigma = ALL[name](T)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(T), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_inverse_undoes_the_ratio(name, dtype, tolerance):
    t = T[T > 1e-3].to(dtype)
    alpha, sigma = ALL[name](t)
    assert alpha.dtype == sigma.dtype == dtype
    torch.testing.assert_close(ALL[name].inverse(sigma / alpha), t, rtol=tolerance, atol=0)
    exact = ALL[name](t.double())
    torch.testing.assert_close(sigma.double(), exact[1], rtol=max(tolerance, 1e-12), atol=0)


@pytest.mark.parametrize("name", ALL)
def test_inverse_at_the_ends(name):
    ends = ALL[name].inverse(torch.tensor([0.0, math.inf], dtype=torch.float64))
    assert ends.tolist() == [0, 1]


def test_linear_integrates_beta():
    t = torch.tensor([0.137, 0.5, 0.99], dtype=torch.float64)
    times = torch.linspace(0, 1, 100001, dtype=torch.float64) * t[:, None]
    integral = torch.trapezoid(0.1 + 19.9 * times, times)
    torch.testing.assert_close(LinearSchedule()(t)[0], torch.exp(-integral / 2), rtol=1e-9, atol=0)


def test_cosine_and_sigmoid_are_the_formulas_of_their_papers():
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(CosineSchedule()(t)[0] ** 2, f, rtol=1e-12, atol=0)
    low, high = (torch.tensor(value, dtype=torch.float64).sigmoid() for value in (-3.0, 3.0))
    gamma = (high - torch.sigmoid(t * 6 - 3)) / (high - low)
    torch.testing.assert_close(SigmoidSchedule()(t)[0] ** 2, gamma, rtol=1e-12, atol=0)


def test_uniform_times_of_ve_are_the_sigmas_of_karras():
    n = torch.arange(18, dtype=torch.float64)
    karras = (80 ** (1 / 7) + n / 18 * (0 - 80 ** (1 / 7))) ** 7  # eq. 5 with sigma_min = 0
    torch.testing.assert_close(VESchedule()(1 - n / 18)[1], karras, rtol=1e-12, atol=0)


def diffusers_alphas_cumprod(**settings):
    return DDIMScheduler(clip_sample=False, **settings).alphas_cumprod.double()


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        (DiscreteSchedule(), {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
        (
            oracle.SCHEDULES["scaled_linear"],
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (DiscreteSchedule("cosine"), {"beta_schedule": "squaredcos_cap_v2"}),
        (
            oracle.SCHEDULES["zero_snr"],
            {
                "beta_schedule": "scaled_linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "rescale_betas_zero_snr": True,
            },
        ),
    ],
)
def test_discrete_schedules_are_those_of_diffusers(schedule, settings):
    alpha, sigma = schedule(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    peer = diffusers_alphas_cumprod(**settings)  # float32: its cumulative product is off by about 1e-5
    torch.testing.assert_close(alpha**2, peer, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(sigma**2, 1 - peer, rtol=1e-3, atol=1e-6)


def test_discrete_schedule_in_exact_arithmetic_and_between_entries():
    product, schedule = 1.0, DiscreteSchedule()
    for k in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * k / 999)
        if k in (0, 1, 500, 999):
            alpha, sigma = (float(level) for level in schedule(torch.tensor((k + 1) / 1000, dtype=torch.float64)))
            assert alpha == pytest.approx(product**0.5, rel=1e-11)
            assert sigma == pytest.approx((1 - product) ** 0.5, rel=1e-11)

    def ratio(entry):
        alpha, sigma = schedule(torch.tensor((entry + 1) / 1000, dtype=torch.float64))
        return float(sigma / alpha)

    assert ratio(500.25) == pytest.approx(ratio(500) ** 0.75 * ratio(501) ** 0.25, rel=1e-11)
    assert ratio(-0.7) == pytest.approx(0.3 * ratio(0), rel=1e-11)


def test_zero_snr_ends_in_pure_noise_and_approaches_it_linearly():
    schedule = oracle.SCHEDULES["zero_snr"]
    alpha, sigma = schedule(torch.tensor([0.999, 0.9995, 1.0], dtype=torch.float64))
    assert alpha[2] == 0 and sigma[2] == 1
    assert float(alpha[1] / sigma[1]) == pytest.approx(float(alpha[0] / sigma[0]) / 2, rel=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_config_round_trip(name):
    text = json.dumps(kind_to_json(SCHEDULES, ALL[name]))
    assert kind_from_json(SCHEDULES, json.loads(text), "schedule") == ALL[name]
    assert kind_from_json(SCHEDULES, {"kind": "ve", "sigma_max": 160}, "schedule") == VESchedule(160)


@pytest.mark.parametrize(
    "config",
    [{}, {"kind": "warp"}, {"kind": "flow", "shift": 3.0}, {"kind": "ve", "sigma_max": "80"},
     {"kind": "ve", "inverse": 1}, {"kind": "discrete", "beta_schedule": "bumpy"},
     {"kind": "discrete", "num_train_timesteps": 1000.0}, {"kind": "discrete", "zero_terminal_snr": 1},
     {"kind": ["ve"]}],
)  # fmt: skip
def test_bad_config_is_refused_in_one_line(config):
    with pytest.raises(InputError) as error:
        kind_from_json(SCHEDULES, config, "schedule")
    assert "\n" not in str(error.value)


def test_flow_is_a_straight_line():
    assert FlowSchedule()(torch.tensor(0.25)) == (0.75, 0.25)
