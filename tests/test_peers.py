"""Our samplers at diffusers' timesteps against its schedulers of the same names: float64, same outputs and noise."""

import math
import sys

import pytest
import torch
from diffusers import schedulers as peers

from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.scheduler_timesteps import build_scheduler_timesteps
from unspeckle.rng import noise_from_seeds
from unspeckle.samplers import SAMPLERS
from unspeckle.schedule import DiscreteSchedule

SCHEDULE = DiscreteSchedule("scaled_linear", 0.00085, 0.012)
ZERO_SNR = DiscreteSchedule("scaled_linear", 0.00085, 0.012, zero_terminal_snr=True)
SHAPE = (2, 3, 4, 4)
DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
PEERS = {  # our sampler: the family of its timesteps, the peer, its settings
    "ddpm": ("ddim", peers.DDPMScheduler, {"variance_type": "fixed_small", "clip_sample": False}),
    "ddim": ("ddim", peers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}),
    "euler": ("euler", peers.EulerDiscreteScheduler, {}),
    "euler_ancestral": ("euler", peers.EulerAncestralDiscreteScheduler, {}),
    "heun": ("euler", peers.HeunDiscreteScheduler, {"clip_sample": False}),
    "lms": ("euler", peers.LMSDiscreteScheduler, {}),
    "plms": ("ddim", peers.PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "dpmpp_2m": ("dpm", peers.DPMSolverMultistepScheduler, DPM),
    "dpmpp_2m_sde": ("dpm", peers.DPMSolverMultistepScheduler, DPM | {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("dpm", peers.UniPCMultistepScheduler, {"solver_order": 2, "solver_type": "bh2", "predict_x0": True}),
    "lcm": ("lcm", peers.LCMScheduler, {"clip_sample": False, "original_inference_steps": 50}),
}
KARRAS = ("euler", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde", "unipc")


class SmoothNetwork:
    """Smooth in x and in c_noise; both sides call it."""

    def prepare(self, conditioning):
        return conditioning

    def __call__(self, x, c_noise, conditioning):
        c_noise = c_noise.double().view(-1, 1, 1, 1)
        return torch.tanh(x + 0.3 * x.roll(1, 1)) * torch.cos(c_noise / 300) + 0.2 * torch.sin(
            x.roll(1, 2) - c_noise / 90
        )


def with_exact_alphas(peer, schedule):
    """The peer with its alphas in float64; its own are a float32 product."""
    alpha, _ = schedule(
        torch.arange(1, schedule.num_train_timesteps + 1, dtype=torch.float64) / schedule.num_train_timesteps
    )
    peer.alphas_cumprod = alpha**2
    if schedule.zero_terminal_snr and not isinstance(peer, peers.DDIMScheduler):
        peer.alphas_cumprod[-1] = 2**-24  # as these peers do themselves
    if hasattr(peer, "final_alpha_cumprod") and not getattr(peer.config, "set_alpha_to_one", True):
        peer.final_alpha_cumprod = peer.alphas_cumprod[0]
    return peer


def drawn_by_peer(peer, steps, first_noise, noise, monkeypatch, **options):
    noises = (noise(i, 0).double() for i in range(10**6))
    module = sys.modules[type(peer).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(noises))
    peer.set_timesteps(steps)
    x = first_noise * peer.init_noise_sigma
    for t in peer.timesteps:
        x_in = peer.scale_model_input(x, t) if hasattr(peer, "scale_model_input") else x
        output = SmoothNetwork()(x_in.double(), torch.as_tensor(t).expand(len(x)), None)
        x = peer.step(output, t, x, **options).prev_sample
    return x.double()


def assert_draws_as_peer(
    name,
    monkeypatch,
    *,
    spacing,
    prediction,
    steps,
    use_karras_sigmas=False,
    schedule=SCHEDULE,
    steps_offset=0,
    end_at="zero",
    **settings,
):
    family, cls, fixed = PEERS[name]
    settings = fixed | settings | {"prediction_type": {"eps": "epsilon", "v": "v_prediction"}[prediction]}
    settings |= {
        "beta_schedule": schedule.beta_schedule,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
    }
    if family != "lcm":
        settings |= {"timestep_spacing": spacing, "steps_offset": steps_offset}
    if use_karras_sigmas:
        settings["use_karras_sigmas"] = True
    if schedule.zero_terminal_snr:
        settings["rescale_betas_zero_snr"] = True
    peer = with_exact_alphas(cls(**settings), schedule)
    noise = noise_from_seeds([1, 2], SHAPE[1:])
    first_noise = noise(-1, 0).double()
    theirs = drawn_by_peer(peer, steps, first_noise, noise, monkeypatch)

    ours = build_scheduler_timesteps(
        family, schedule, steps, spacing, steps_offset=steps_offset, use_karras_sigmas=use_karras_sigmas, end_at=end_at
    )
    denoiser = Denoiser(SmoothNetwork(), schedule, prediction, ours.c_noise)
    conditioning = Conditioning(torch.zeros(2, 1, 1, dtype=torch.float64))
    c_noises = torch.as_tensor(peer.timesteps, dtype=torch.float64)
    c_noises = (
        c_noises[[0, *range(2, len(c_noises))]] if name == "plms" else c_noises
    )  # it requests twice at the second
    torch.testing.assert_close(
        ours.table_indices,
        c_noises[[0, *range(1, len(c_noises), 2)]] if name == "heun" else c_noises,
        rtol=1e-5,
        atol=1e-3,
    )
    path = list(
        SAMPLERS[name](
            lambda x, t: denoiser(x, t, conditioning), schedule, ours.times, ours.init_noise_sigma * first_noise, noise
        )
    )
    assert len(path) == steps + 1
    error = float((path[-1].x - theirs).abs().max() / theirs.square().mean().sqrt())
    assert error <= 1e-5, error


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", [name for name in PEERS if name != "plms"])
def test_spacings(name, spacing, prediction, monkeypatch):
    steps_offset = 1 if spacing == "leading" else 0
    assert_draws_as_peer(
        name,
        monkeypatch,
        spacing=spacing,
        prediction=prediction,
        steps=4 if name == "lcm" else 20,
        steps_offset=steps_offset,
    )


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("name", KARRAS)
def test_karras(name, spacing, prediction, monkeypatch):
    assert_draws_as_peer(
        name, monkeypatch, spacing=spacing, prediction=prediction, steps=16, use_karras_sigmas=True, steps_offset=1
    )


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_linspace(name, monkeypatch):
    assert_draws_as_peer(name, monkeypatch, spacing="linspace", prediction="eps", steps=20)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m", "unipc"])
def test_zero_terminal_snr(name, monkeypatch):
    assert_draws_as_peer(name, monkeypatch, spacing="trailing", prediction="v", steps=20, schedule=ZERO_SNR)


def test_stable_diffusions_ddim_ends_on_entry_0(monkeypatch):
    assert_draws_as_peer(
        "ddim",
        monkeypatch,
        spacing="leading",
        prediction="eps",
        steps=50,
        steps_offset=1,
        end_at="first",
        set_alpha_to_one=False,
    )


@pytest.mark.parametrize("end_at", ["zero", "first"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_plms(steps, end_at, monkeypatch):
    """Of eps on leading entries, as everybody uses it; of v the peer mixes v itself, at another x."""
    assert_draws_as_peer(
        "plms", monkeypatch, spacing="leading", prediction="eps", steps=steps, steps_offset=1, end_at=end_at,
        set_alpha_to_one=end_at == "zero",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m", "euler_ancestral"])
def test_on_the_schedule_of_ddpm(name, monkeypatch):
    assert_draws_as_peer(name, monkeypatch, spacing="leading", prediction="eps", steps=25, schedule=DiscreteSchedule())


def test_eta(monkeypatch):
    peer = with_exact_alphas(
        peers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False),
        SCHEDULE,
    )
    noise = noise_from_seeds([1, 2], SHAPE[1:])
    first_noise = noise(-1, 0).double()
    theirs = drawn_by_peer(peer, 20, first_noise, noise, monkeypatch, eta=0.6)
    ours = build_scheduler_timesteps("ddim", SCHEDULE, 20, "leading")
    denoiser, conditioning = (
        Denoiser(SmoothNetwork(), SCHEDULE, "eps", ours.c_noise),
        Conditioning(torch.zeros(2, 1, 1, dtype=torch.float64)),
    )
    path = list(
        SAMPLERS["ddim"](lambda x, t: denoiser(x, t, conditioning), SCHEDULE, ours.times, first_noise, noise, eta=0.6)
    )
    assert (path[-1].x - theirs).abs().max() <= 1e-5 * theirs.square().mean().sqrt()


def test_where_a_drawing_starts():
    """Euler's x is y = x / alpha: √(sigma² + 1) · noise is unit noise here, sigma · noise is less."""
    alpha, sigma = SCHEDULE(torch.tensor(1.0, dtype=torch.float64))
    assert (
        build_scheduler_timesteps("euler", SCHEDULE, 20, "leading").init_noise_sigma
        == build_scheduler_timesteps("dpm", SCHEDULE, 20, "trailing").init_noise_sigma
        == 1
    )
    assert build_scheduler_timesteps("euler", SCHEDULE, 20, "trailing").init_noise_sigma == pytest.approx(float(sigma))
    assert float(sigma / alpha) == pytest.approx(14.6146, rel=1e-5)


def test_c_noise_between_the_timesteps():
    ours = build_scheduler_timesteps("dpm", SCHEDULE, 10, "trailing", use_karras_sigmas=True)
    between = (ours.times[0] + ours.times[1]) / 2
    c_noise = ours.c_noise(torch.stack((ours.times[0], ours.times[5], between)), SCHEDULE)
    assert c_noise.tolist() == [999, float(ours.table_indices[5]), pytest.approx(float(between * 1000 - 1))]
    assert (ours.table_indices == ours.table_indices.round()).all() and not math.isclose(c_noise[2] % 1, 0)


@pytest.mark.parametrize(
    ("bad", "options"),
    [(("plms", 10, "leading"), {}), (("ddim", 10, "zigzag"), {}), (("ddim", 0, "leading"), {}),
     (("lcm", 51, "leading"), {}), (("dpm", 1001, "trailing"), {}), (("dpm", 9, "leading"), {"end_at": "x"}),
     (("ddim", 10, "leading"), {"use_karras_sigmas": True})],
)  # fmt: skip
def test_bad_options_are_refused(bad, options):
    family, steps, spacing = bad
    with pytest.raises(InputError):
        build_scheduler_timesteps(family, SCHEDULE, steps, spacing, **options)
