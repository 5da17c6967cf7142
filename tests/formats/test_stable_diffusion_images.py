"""Whole drawings from foreign checkpoints against the pipelines of diffusers: float32, the same seed, 20 steps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import schedulers as peers

import stable_diffusion_files
import unspeckle
from unspeckle.denoiser import TIME_CONDITIONINGS
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.pipeline import steps
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.samplers import SAMPLERS
from unspeckle.timesteps import TIMESTEP_SPACINGS

PROMPT, NEGATIVE, SEED, SIZE = "a frog on stilts", "red, blurred", 7, 16
PEERS = {
    "ddim": peers.DDIMScheduler, "plms": peers.PNDMScheduler, "euler": peers.EulerDiscreteScheduler,
    "euler_ancestral": peers.EulerAncestralDiscreteScheduler, "lms": peers.LMSDiscreteScheduler,
    "heun": peers.HeunDiscreteScheduler, "dpmpp_2m": peers.DPMSolverMultistepScheduler,
    "unipc": peers.UniPCMultistepScheduler, "lcm": peers.LCMScheduler,
}  # fmt: skip
KEPT: dict[str, Any] = {}


def kept(family: str, tmp: Any, prediction: str = "epsilon", **said: Any) -> tuple[Any, Any]:
    """The pipeline and our model of the folder that it saved, made once; said: what its scheduler's JSON says besides
    what the first Stable Diffusion said, which named no spacing."""
    key = f"{family} {prediction} {said}"
    if key not in KEPT:
        folder: Path = tmp.mktemp("model")
        pipe = stable_diffusion_files.tiny_pipeline(family, folder / "scratch", prediction)
        if family.endswith("-inpaint"):  # else the peer adds noise to what it encodes
            pipe.vae.quant_conv.weight.data[4:], pipe.vae.quant_conv.bias.data[4:] = 0, -60
        pipe.save_pretrained(folder / "pipe")
        settings = {
            "_class_name": "PNDMScheduler",
            **stable_diffusion_files.SCHEDULER_CONFIG,
            "prediction_type": prediction,
            **said,
        }
        (folder / "pipe" / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
        KEPT[key] = (pipe, settings, unspeckle.load(folder / "pipe"))
    pipe, settings, model = KEPT[key]
    pipe.settings = settings
    return pipe, model


def theirs(pipe: Any, sampler: str, karras: bool = False, **options: Any) -> torch.Tensor:
    """Their latents, by the scheduler that from_config would make of the folder's."""
    more = {"use_karras_sigmas": True} if karras else {"skip_prk_steps": True} if sampler == "plms" else {}
    pipe.scheduler = PEERS[sampler].from_config({**pipe.settings, **more})
    told = {"prompt": PROMPT, "num_inference_steps": 20, "output_type": "latent", "height": SIZE, "width": SIZE}
    return pipe(**{**told, "generator": torch.Generator().manual_seed(SEED), **options}).images


def ours(model: Any, sampler: str, karras: bool = False, **options: Any) -> torch.Tensor:
    asked = {"prompt": PROMPT, "seed": SEED, "steps": 20, "size": SIZE, "sampler": sampler}
    *_, last = steps(model, Request(**{**asked, "grid": "karras" if karras else None, **options}))
    return last.x


def assert_same(pipe: Any, model: Any, found: torch.Tensor, latents: torch.Tensor) -> None:
    assert (found - latents).norm() <= 1e-3 * latents.norm()
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    expected = pipe.image_processor.postprocess(decoded, output_type="pil")
    for mine, other in zip(decode_to_images(model, found), expected, strict=True):
        pixels = np.asarray(other, dtype=float)
        assert np.abs(np.asarray(mine, dtype=float) - pixels).mean() <= 1 and pixels.std() > 10


@pytest.mark.parametrize("grid", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_on_every_grid(sampler: str, grid: str, tmp_path_factory: Any) -> None:
    """Of a table that ends in some picture, and of one that ends in noise alone."""
    pure = {"prediction": "v_prediction", "rescale_betas_zero_snr": True}
    for family, more in (("1", {}), ("2", pure)):
        _, model = kept(family, tmp_path_factory, **more)
        drawn = list(steps(model, Request(PROMPT, sampler=sampler, timestep_spacing=grid, steps=3, size=SIZE)))
        assert len(drawn) == 4 and all(step.x.isfinite().all() for step in drawn)
        assert [float(step.t) for step in drawn] == sorted({float(step.t) for step in drawn}, reverse=True)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "lms", "heun"])
def test_all_grids_lead_to_the_same_picture(sampler: str, tmp_path_factory: Any) -> None:
    _, model = kept("1", tmp_path_factory)
    many = Request(
        PROMPT, seed=SEED, sampler=sampler, timestep_spacing="uniform", steps=160, size=SIZE, guidance_scale=1.0
    )
    *_, expected = steps(model, many)
    for grid in ("shifted", "exponential", "trailing"):
        *_, found = steps(model, replace(many, grid=grid))
        assert (found.x - expected.x).norm() <= 0.05 * expected.x.norm(), grid


def test_the_shifted_grid_tells_the_table_its_own_times(tmp_path_factory: Any) -> None:
    way = kept("1", tmp_path_factory)[1].sampling_setup("dpmpp_2m", "shifted", 4)
    assert torch.allclose(way.times, torch.tensor([1, 0.9, 0.75, 0.5, 0], dtype=torch.float64))
    told: Any = way.denoiser.time_conditioning
    clock = TIME_CONDITIONINGS[told] if isinstance(told, str) else told
    assert torch.allclose(clock(way.times[:-1], way.denoiser.schedule), torch.tensor([999.0, 899, 749, 499]).double())


@pytest.mark.parametrize(
    ("sampler", "karras"),
    [*((name, False) for name in PEERS if name != "lcm"),
     *((name, True) for name in ("euler", "lms", "heun", "dpmpp_2m", "unipc"))],
)  # fmt: skip
def test_every_sampler(sampler: str, karras: bool, tmp_path_factory: Any) -> None:
    pipe, model = kept("1", tmp_path_factory)
    expected = theirs(pipe, sampler, karras, negative_prompt=NEGATIVE, guidance_scale=4.0)
    assert_same(pipe, model, ours(model, sampler, karras, negative=NEGATIVE, scale=4.0), expected)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpmpp_2m"])
def test_two(sampler: str, prediction: str, tmp_path_factory: Any) -> None:
    pipe, model = kept("2", tmp_path_factory, prediction)
    expected = theirs(pipe, sampler, negative_prompt=NEGATIVE, guidance_scale=4.0)
    assert_same(pipe, model, ours(model, sampler, negative=NEGATIVE, scale=4.0), expected)


@pytest.mark.parametrize("negative", ["", NEGATIVE])
@pytest.mark.parametrize("sampler", ["euler", "unipc"])
def test_xl(sampler: str, negative: str, tmp_path_factory: Any) -> None:
    pipe, model = kept("xl", tmp_path_factory, _class_name="EulerDiscreteScheduler", timestep_spacing="leading")
    said = {"height": 24, "width": SIZE, "guidance_scale": 4.0}
    expected = theirs(pipe, sampler, negative_prompt=negative or None, **said)
    found = ours(model, sampler, negative=negative, scale=4.0, size=(SIZE, 24))
    assert_same(pipe, model, found, expected)


def test_xl_refiner(tmp_path_factory: Any) -> None:
    """From pure noise, which its pipeline makes of an empty picture."""
    pipe, model = kept("xl-refiner", tmp_path_factory, timestep_spacing="trailing")
    pipe.scheduler = peers.EulerDiscreteScheduler.from_config(pipe.settings)
    expected = pipe(
        PROMPT, image=torch.zeros(1, 4, SIZE // 2, SIZE // 2), strength=1.0, num_inference_steps=20, guidance_scale=4.0,
        negative_prompt=NEGATIVE, generator=torch.Generator().manual_seed(SEED), output_type="latent",
        original_size=(SIZE, SIZE), target_size=(SIZE, SIZE),
    ).images  # fmt: skip
    assert_same(pipe, model, ours(model, "euler", negative=NEGATIVE, scale=4.0), expected)


def test_inpainting_models_draw_where_nothing_is_kept(tmp_path_factory: Any) -> None:
    pipe, model = kept("1-inpaint", tmp_path_factory)
    empty = {"image": torch.zeros(1, 3, SIZE, SIZE), "mask_image": torch.ones(1, 1, SIZE, SIZE), "strength": 1.0}
    expected = theirs(pipe, "ddim", guidance_scale=4.0, negative_prompt=NEGATIVE, **empty)
    assert_same(pipe, model, ours(model, "ddim", negative=NEGATIVE, scale=4.0), expected)


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_lcm(scale: float, tmp_path_factory: Any) -> None:
    pipe, model = kept("1-lcm", tmp_path_factory, _class_name="LCMScheduler")
    assert resolve(model, Request()).sampler == "lcm"
    expected = theirs(pipe, "lcm", num_inference_steps=4, guidance_scale=scale)
    assert_same(pipe, model, ours(model, "lcm", steps=4, scale=scale), expected)


def test_each_picture_of_a_batch_has_its_own_generator(tmp_path_factory: Any) -> None:
    pipe, model = kept("1", tmp_path_factory)
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(2)]
    expected = theirs(pipe, "euler_ancestral", num_images_per_prompt=2, generator=generators, guidance_scale=1.0)
    assert_same(pipe, model, ours(model, "euler_ancestral", scale=1.0, count=2), expected)
