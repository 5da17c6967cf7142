"""Drawings by diffusers' pipelines and by our model of the same tiny checkpoint, to be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import schedulers

import stable_diffusion_files
import unspeckle
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.pipeline import steps
from unspeckle.generation.request import Request
from unspeckle.model import Model

PROMPT, NEGATIVE_PROMPT, SEED, SIZE = "a frog on stilts", "red, blurred", 7, 16
SCHEDULERS: dict[str, type[Any]] = {  # by the name of our sampler
    "ddim": schedulers.DDIMScheduler,
    "plms": schedulers.PNDMScheduler,
    "euler": schedulers.EulerDiscreteScheduler,
    "euler_ancestral": schedulers.EulerAncestralDiscreteScheduler,
    "lms": schedulers.LMSDiscreteScheduler,
    "heun": schedulers.HeunDiscreteScheduler,
    "dpmpp_2m": schedulers.DPMSolverMultistepScheduler,
    "unipc": schedulers.UniPCMultistepScheduler,
    "lcm": schedulers.LCMScheduler,
}
_CACHE: dict[str, tuple[Any, dict[str, Any], Model]] = {}


def pipeline_and_model(
    family: str, tmp_path_factory: Any, prediction: str = "epsilon", **scheduler_config: Any
) -> tuple[Any, Any]:
    """diffusers' pipeline, and our model of the folder that it saved; made once.

    scheduler_config: what the folder's scheduler config holds besides that of the first Stable Diffusion, which names
    no timestep spacing."""
    key = f"{family} {prediction} {scheduler_config}"
    if key not in _CACHE:
        folder: Path = tmp_path_factory.mktemp("model")
        pipeline = stable_diffusion_files.tiny_pipeline(family, folder / "scratch", prediction)
        if family.endswith("-inpaint"):  # without this the peer adds noise to what it encodes
            pipeline.vae.quant_conv.weight.data[4:], pipeline.vae.quant_conv.bias.data[4:] = 0, -60
        pipeline.save_pretrained(folder / "pipeline")
        config = {"_class_name": "PNDMScheduler", **stable_diffusion_files.SCHEDULER_CONFIG}
        config |= {"prediction_type": prediction, **scheduler_config}
        (folder / "pipeline" / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        _CACHE[key] = (pipeline, config, unspeckle.load(folder / "pipeline"))
    pipeline, config, model = _CACHE[key]
    pipeline.settings = config
    return pipeline, model


def scheduler_options(sampler: str, karras: bool) -> dict[str, Any]:
    """What diffusers' scheduler needs besides the folder's config to be our sampler."""
    return {"use_karras_sigmas": True} if karras else {"skip_prk_steps": True} if sampler == "plms" else {}


def their_latents(pipeline: Any, sampler: str, karras: bool = False, **options: Any) -> torch.Tensor:
    """The latents of diffusers' pipeline, by the scheduler that from_config would make of the folder's."""
    pipeline.scheduler = SCHEDULERS[sampler].from_config({**pipeline.settings, **scheduler_options(sampler, karras)})
    arguments = {"prompt": PROMPT, "num_inference_steps": 20, "output_type": "latent", "height": SIZE, "width": SIZE}
    return pipeline(**{**arguments, "generator": torch.Generator().manual_seed(SEED), **options}).images


def our_latents(model: Model, sampler: str, karras: bool = False, **options: Any) -> torch.Tensor:
    """Our latents of the same drawing. options: those of a Request."""
    defaults = {"prompt": PROMPT, "seed": SEED, "steps": 20, "size": SIZE, "sampler": sampler}
    spacing = "karras" if karras else None
    *_, last = steps(model, Request(**{**defaults, "timestep_spacing": spacing, **options}))
    return last.x


def assert_same(pipeline: Any, model: Model, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Latents within a thousandth, and the decoded images within a level of 255 on average."""
    assert (ours - theirs).norm() <= 1e-3 * theirs.norm()
    with torch.no_grad():
        decoded = pipeline.vae.decode(theirs / pipeline.vae.config.scaling_factor).sample
    expected = pipeline.image_processor.postprocess(decoded, output_type="pil")
    for mine, other in zip(decode_to_images(model, ours), expected, strict=True):
        pixels = np.asarray(other, dtype=float)
        assert np.abs(np.asarray(mine, dtype=float) - pixels).mean() <= 1 and pixels.std() > 10
