"""Samplers and timestep spacings: orders of convergence, moments, exact cases, and their papers' formulas."""

import itertools
import math
from functools import partial

import pytest
import torch

from oracle import SCHEDULES, one_gaussian, two_gaussians
from unspeckle import samplers
from unspeckle.errors import InputError
from unspeckle.rng import noise_from_seeds
from unspeckle.samplers import SAMPLERS
from unspeckle.schedule import FlowSchedule, LinearSchedule, VESchedule
from unspeckle.timesteps import TIMESTEP_SPACINGS, timesteps

ALL = {**SCHEDULES, "ve": VESchedule()}
DETERMINISTIC = {"ddim": 1, "euler": 1, "heun": 2, "lms": 2, "plms": 2, "dpmpp_2m": 2, "unipc": 2}  # batches
NO_NOISE = partial(pytest.fail, "a deterministic sampler took noise")


def last(steps):
    return list(steps)[-1].x


def uniform_in_log_snr(schedule, steps, high=8.0, low=0.1):
    """Times uniform in log-SNR between two ratios sigma/alpha > 0."""
    return schedule.inverse(torch.linspace(math.log(high), math.log(low), steps + 1, dtype=torch.float64).exp())


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid", "flow", "scaled_linear", "ve"])
@pytest.mark.parametrize("method", DETERMINISTIC)
def test_convergence_order(method, name):
    schedule, mixture = ALL[name], two_gaussians()
    denoise = mixture.denoiser(schedule)
    first = uniform_in_log_snr(schedule, 1)[:1]
    alpha, sigma = schedule(first)
    generator = torch.Generator().manual_seed(0)
    x = alpha * mixture.sample(64, generator) + sigma * torch.randn(
        64, 2, 1, 1, generator=generator, dtype=torch.float64
    )
    exact = last(SAMPLERS["heun"](denoise, schedule, uniform_in_log_snr(schedule, 1000), x, NO_NOISE))
    doubled = [20, 40, 80, 160]
    errors = []
    for steps in doubled:
        found = last(SAMPLERS[method](denoise, schedule, uniform_in_log_snr(schedule, steps), x, NO_NOISE))
        errors.append((found - exact).square().mean().sqrt().log2())
    slopes = [float(coarse - fine) for coarse, fine in itertools.pairwise(errors)]
    assert sum(slopes) / len(slopes) >= DETERMINISTIC[method] - 0.2, slopes
    assert slopes[-1] >= DETERMINISTIC[method] - 0.2, slopes


@pytest.mark.parametrize("name", ["linear", "flow", "zero_snr", "ve"])
@pytest.mark.parametrize(
    ("method", "steps"),
    [("ddpm", 400), ("euler_ancestral", 400), ("ddim_half", 400), ("dpmpp_2m_sde", 120), ("dpmpp_sde", 120)],
)
def test_moments_of_stochastic_samplers(method, steps, name):
    """Means, variances, the share of each lump and fourth moments, within 4 standard errors of 4,000 images."""
    schedule, mixture, count = ALL[name], two_gaussians(), 4000
    method = partial(samplers.ddim, eta=0.5) if method == "ddim_half" else SAMPLERS[method]
    times = timesteps("uniform" if name == "ve" else "exponential", schedule, steps)
    alpha, sigma = schedule(times[:1])
    generator = torch.Generator().manual_seed(5)
    eps = torch.randn(count, 2, 1, 1, generator=generator, dtype=torch.float64)
    x = alpha * mixture.sample(count, generator) + sigma * eps
    noise = noise_from_seeds(range(count), (2, 1, 1))
    found = last(method(mixture.denoiser(schedule), schedule, times, x, noise))
    truth = mixture.sample(400_000, generator)
    moments = [lambda x: x, lambda x: x**2, lambda x: x**4, lambda x: (x > -0.3).double(), lambda x: x * x.flip(1)]
    for moment in moments:
        ours, theirs = moment(found.flatten(1)), moment(truth.flatten(1))
        error = theirs.std(0) / math.sqrt(count)
        assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error).all(), (ours.mean(0) - theirs.mean(0)) / error


@pytest.mark.parametrize("name", ["linear", "flow", "ve"])
@pytest.mark.parametrize("steps", [1, 4])
def test_consistency_steps_draw_the_distribution(name, steps):
    """With the exact consistency function, m + s (x - alpha m) / √(alpha² s² + sigma²), all steps are exact."""
    schedule, count, mean, std = ALL[name], 20000, 0.5, 0.4

    def consistent(x_t, t):
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in schedule(t))
        return mean + std * (x_t - alpha * mean) / (alpha**2 * std**2 + sigma**2).sqrt()

    times = timesteps("karras", schedule, steps)
    alpha, sigma = schedule(times[:1])
    generator = torch.Generator().manual_seed(2)
    x = alpha * one_gaussian(mean, std).sample(count, generator)
    x = x + sigma * torch.randn(count, 2, 1, 1, generator=generator, dtype=torch.float64)
    found = last(SAMPLERS["lcm"](consistent, schedule, times, x, noise_from_seeds(range(count), (2, 1, 1)))).flatten()
    assert abs(found.mean() - mean) < 4 * std / math.sqrt(2 * count)
    assert abs(found.std() - std) < 4 * std / math.sqrt(4 * count)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("method", SAMPLERS)
def test_a_single_image_is_found_exactly(method, name):
    """Data of one point: x̂ is that point, and every sampler lands on it, also from alpha = 0 and down to sigma = 0."""
    if (method, name) == ("plms", "ve"):
        pytest.skip("its first step requests at a sigma of 1e-19, where float64 has no noise left to see")
    schedule = ALL[name]
    point = torch.tensor([0.3, -0.7], dtype=torch.float64).view(1, 2, 1, 1).expand(3, 2, 1, 1)
    noise = noise_from_seeds(range(3), (2, 1, 1))
    for spacing, steps in itertools.product(TIMESTEP_SPACINGS, (1, 2, 7)):
        times = timesteps(spacing, schedule, steps)
        x = schedule(times[0])[1] * torch.randn(3, 2, 1, 1, dtype=torch.float64)
        path = list(SAMPLERS[method](lambda x, t: point, schedule, times, x, noise))
        assert [float(step.t) for step in path] == times.tolist()
        assert torch.equal(path[-1].x, path[-1].denoised)
        within = 1e-10 if method == "plms" else 1e-12  # it requests twice where alpha may be 5e-5
        torch.testing.assert_close(path[-1].x, point, rtol=within, atol=within)


@pytest.mark.parametrize("name", ["flow", "zero_snr", "cosine", "sigmoid"])
@pytest.mark.parametrize("method", [*DETERMINISTIC, "dpmpp_sde", "dpmpp_2m_sde", "ddpm"])
def test_from_pure_noise_to_the_image(method, name):
    """From alpha = 0 to sigma = 0: of a Gaussian the ODE is x_0 = m + s x_1, and all samplers keep its moments."""
    schedule, mean, std = ALL[name], 0.5, 0.4
    count = 4000
    x = torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = noise_from_seeds(range(count), (2, 1, 1))
    denoise = one_gaussian(mean, std).denoiser(schedule)
    found = last(SAMPLERS[method](denoise, schedule, timesteps("uniform", schedule, 250), x, noise))
    if method in DETERMINISTIC:
        assert (found - (mean + std * x)).abs().max() < 0.06 / DETERMINISTIC[method]
    assert abs(found.mean() - mean) < 4 * std / math.sqrt(2 * count) + 0.003
    assert abs(found.std() - std) < 4 * std / math.sqrt(4 * count) + 0.004


def test_a_step_is_x_before_the_move_with_its_estimate():
    schedule, mixture = LinearSchedule(), two_gaussians()
    denoise = mixture.denoiser(schedule)
    x = torch.randn(4, 2, 1, 1, dtype=torch.float64)
    for method in SAMPLERS.values():
        path = list(
            method(denoise, schedule, timesteps("karras", schedule, 5), x, noise_from_seeds(range(4), (2, 1, 1)))
        )
        assert len(path) == 6 and torch.equal(path[0].x, x)
        for step in path[:-1]:
            assert torch.equal(step.denoised, denoise(step.x, step.t.expand(4)))
        assert torch.equal(path[-1].denoised, path[-1].x) and path[-1].t == 0


def test_euler_on_a_flow_is_the_straight_step():
    """x_s = x_t + (s - t) v with v = (x_t - x̂) / t."""
    schedule, mixture = FlowSchedule(), two_gaussians()
    denoise = mixture.denoiser(schedule)
    x = torch.randn(4, 2, 1, 1, dtype=torch.float64)
    times = timesteps("uniform", schedule, 5)
    expected = x
    for t, s in itertools.pairwise(times):
        expected = expected + (s - t) * (expected - denoise(expected, t.expand(4))) / t
    torch.testing.assert_close(last(SAMPLERS["euler"](denoise, schedule, times, x, NO_NOISE)), expected)


def test_dpmpp_sde_is_k_diffusions():
    """sample_dpmpp_sde (eta 1, s_noise 1, r 1/2) written down in its own coordinates, y = x / alpha, with its Brownian
    noise: increments over [mid, from] and [to, from], divided by their deviations, correlate by √(Δ_mid / Δ_to)."""
    schedule, mixture = SCHEDULES["scaled_linear"], two_gaussians()
    denoise, noise = mixture.denoiser(schedule), noise_from_seeds(range(8), (2, 1, 1))
    times = timesteps("karras", schedule, 9)
    alpha, sigma = schedule(times)
    ratio = sigma / alpha
    start = torch.randn(8, 2, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * sigma[0]

    def model(y, s):
        t = schedule.inverse(s)
        return denoise(schedule(t)[0] * y, t.expand(8))

    def ancestral(s_from, s_to):
        up = min(s_to, (s_to**2 * (s_from**2 - s_to**2) / s_from**2) ** 0.5)
        return (s_to**2 - up**2) ** 0.5, up

    y = start / alpha[0]
    for i, (s_from, s_to) in enumerate(itertools.pairwise(ratio)):
        denoised = model(y, s_from)
        if s_to == 0:
            y = y + (y - denoised) / s_from * (s_to - s_from)
            continue
        mid = (-(-s_from.log() - s_to.log()) / 2).exp()
        first = noise(i, 0).double()
        whole = ((s_from - mid) / (s_from - s_to)).sqrt() * first + ((mid - s_to) / (s_from - s_to)).sqrt() * noise(
            i, 1
        )
        down, up = ancestral(s_from, mid)
        guess = down / s_from * y - (down.log() - s_from.log()).expm1() * denoised + up * first
        down, up = ancestral(s_from, s_to)
        y = down / s_from * y - (down.log() - s_from.log()).expm1() * model(guess, mid) + up * whole
    found = last(SAMPLERS["dpmpp_sde"](denoise, schedule, times, start, noise))
    assert (found - y).abs().max() < 1e-5 * y.square().mean().sqrt()


@pytest.mark.parametrize("name", ALL)
def test_timestep_spacings(name):
    schedule = ALL[name]
    for spacing, steps, start in itertools.product(TIMESTEP_SPACINGS, (1, 2, 30, 250), (1.0, 0.6)):
        times = timesteps(spacing, schedule, steps, start)
        assert times.dtype == torch.float64 and len(times) == steps + 1
        assert times[-1] == 0 and times[0] <= start + 1e-12 and (times.diff() < 0).all()
        assert times[0] >= start - 1.1e-3 or spacing == "leading"
    alpha, sigma = schedule(timesteps("karras", schedule, 10))
    roots = (sigma / alpha)[:-1] ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(9), rtol=1e-6, atol=1e-9)
    alpha, sigma = schedule(timesteps("exponential", schedule, 10))
    logs = (sigma / alpha)[:-1].log()
    torch.testing.assert_close(logs.diff(), logs.diff()[:1].expand(9), rtol=1e-6, atol=1e-9)


def test_spacings_of_discrete_timesteps():
    """Lin et al. 2024, Table 2: T = 1000, 10 steps."""
    entries = {
        name: (timesteps(name, FlowSchedule(), 10)[:-1] * 1000 - 1).round().int().tolist()
        for name in TIMESTEP_SPACINGS[1:4]
    }
    assert entries["leading"] == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert entries["trailing"] == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert entries["linspace"] == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]


@pytest.mark.parametrize("bad", [("zigzag", 10, 1.0), ("uniform", 0, 1.0), ("karras", 10, 0.0), ("uniform", 5, 1.5)])
def test_bad_spacings_are_refused(bad):
    spacing, steps, start = bad
    with pytest.raises(InputError, match="choose"):
        timesteps(spacing, FlowSchedule(), steps, start)


@pytest.mark.parametrize("method", SAMPLERS)
def test_consumers_keep_gradients_and_x_stays_float32(method):
    """A `with torch.no_grad()` around a yield would leak; float64 scalars must not lift x."""
    schedule = FlowSchedule()
    exact = two_gaussians().denoiser(schedule)

    def denoise(x, t):
        assert not torch.is_grad_enabled() and x.dtype == torch.float32 and t.dtype == torch.float64
        return exact(x, t)

    x, noise = noise_from_seeds([1, 2], (2, 1, 1))(-1, 0), noise_from_seeds([1, 2], (2, 1, 1))
    times = timesteps("uniform", schedule, 6)
    for step in SAMPLERS[method](denoise, schedule, times, x, noise):
        assert torch.is_grad_enabled() and step.x.dtype == step.denoised.dtype == torch.float32
    precise = last(SAMPLERS[method](exact, schedule, times, x.double(), noise))
    torch.testing.assert_close(step.x.double(), precise, rtol=1e-4, atol=1e-5)
