"""A Checkpoint as others read it: a diffusers folder, or a single file of the original layout."""

import json
import math
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from unspeckle.atomic import create_folder, replace_file, write_bytes
from unspeckle.errors import InputError
from unspeckle.formats.rename_tables import Rows, given
from unspeckle.formats.stable_diffusion import diffusers_names, original_names
from unspeckle.formats.stable_diffusion.checkpoint import Checkpoint, table
from unspeckle.formats.stable_diffusion.diffusers_config import SAMPLERS
from unspeckle.formats.stable_diffusion.single_file import SCALE, SCALES
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.networks.vae import Vae, VaeConfig
from unspeckle.text.clip import ClipConfig, ClipEncoder

_PIPELINES = {
    "1": "StableDiffusionPipeline", "2": "StableDiffusionPipeline", "xl": "StableDiffusionXLPipeline",
    "xl-refiner": "StableDiffusionXLImg2ImgPipeline",
}  # fmt: skip
_ARCHITECTURES = {
    "1": "stable-diffusion-v1", "2": "stable-diffusion-v2", "xl": "stable-diffusion-xl-v1-base",
    "xl-refiner": "stable-diffusion-xl-v1-refiner",
}  # fmt: skip


def single(checkpoint: Checkpoint, file: Path) -> None:
    """Write one file of the original layout, atomically; its metadata say by ModelSpec what tensors cannot."""
    of = checkpoint.unet
    if (of.heads or 8) != 8 or (not of.heads and of.head_width != 64) or of.groups != 32 or of.scale_shift:
        raise InputError(
            f"{checkpoint.where}: its heads, groups or time are such as single files cannot tell; keep the folder"
        )
    prefixes = {
        "1": original_names.TEXT_PREFIXES[:1], "2": original_names.TEXT_PREFIXES[1:2], "xl": (original_names.TEXT_PREFIXES[2], original_names.TEXT_PREFIXES[4]),
        "xl-refiner": original_names.TEXT_PREFIXES[3:4],
    }[checkpoint.family]  # fmt: skip
    theirs = _renamed(checkpoint, "network", UNet, of, original_names.UNET, original_names.UNET_PREFIX)
    theirs |= _renamed(checkpoint, "autoencoder", Vae, checkpoint.vae, original_names.VAE, original_names.VAE_PREFIX)
    for place, (config, (prefix, opens)) in enumerate(zip(checkpoint.texts.encoders, prefixes, strict=True)):
        rows = original_names.OPENCLIP if opens else original_names.OPENAI
        theirs |= _renamed(checkpoint, f"text.encoders.{place}", ClipEncoder, config, rows, prefix)
    habits = checkpoint.habits
    said = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _ARCHITECTURES[checkpoint.family],
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": checkpoint.where.stem,
        "modelspec.prediction_type": {"eps": "epsilon", "v": "v"}[habits.prediction],
        "modelspec.resolution": f"{habits.size}x{habits.size}",
    }
    if checkpoint.vae.scale != SCALES[bool(of.vector_width)]:
        said[SCALE] = repr(checkpoint.vae.scale)
    with replace_file(file) as beside:
        save_file(theirs, beside, said)


def folder(checkpoint: Checkpoint, place: Path) -> None:
    """Write a folder of diffusers, whole or not at all. InputError where something stands there already."""
    empty(place)
    index, configs = described(checkpoint)
    parts: dict[str, tuple[str, type[nn.Module], Any, Rows]] = {
        name: (f"text.encoders.{at}", ClipEncoder, config, diffusers_names.CLIP)
        for at, (name, config) in enumerate(zip(readers(checkpoint), checkpoint.texts.encoders, strict=True))
    }
    parts["unet"] = ("network", UNet, checkpoint.unet, diffusers_names.UNET)
    parts["vae"] = ("autoencoder", Vae, checkpoint.vae, diffusers_names.VAE)
    with create_folder(place) as new:
        for name, (part, kind, config, rows) in parts.items():
            file = "model.safetensors" if kind is ClipEncoder else "diffusion_pytorch_model.safetensors"
            json_file(new / name / "config.json", configs[name])
            save_file(_renamed(checkpoint, part, kind, config, rows), new / name / file, {"format": "pt"})
        around(checkpoint, new, index)


def empty(place: Path) -> None:
    """InputError where something stands at the place already."""
    if os.path.lexists(place) and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"{place}: stands there already; give a new folder")


def apart(told: Tensor, expected: Tensor) -> float:
    """How far what was written computes from what is expected, relative to that; infinity where either is not finite,
    as a NaN is neither more nor less than what is allowed."""
    if told.shape != expected.shape:
        return math.inf
    error = float((told.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
    return error if math.isfinite(error) else math.inf


def around(checkpoint: Checkpoint, place: Path, index: dict[str, Any]) -> None:
    """What a folder holds beside its parts: tokenizers, scheduler and index."""
    for at, name in enumerate(readers(checkpoint)):
        checkpoint.tokenizer.write(place / name.replace("text_encoder", "tokenizer"), at)
    json_file(place / "scheduler" / "scheduler_config.json", _scheduler(checkpoint))
    json_file(place / "model_index.json", index)


def readers(checkpoint: Checkpoint) -> list[str]:
    """The folders of the text encoders."""
    names = ["text_encoder", "text_encoder_2"]
    return names[: len(checkpoint.texts.encoders)] if checkpoint.family != "xl-refiner" else names[1:]


def described(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What model_index.json says, and each part's config.json, by its folder: text encoders, unet, vae."""
    large = bool(checkpoint.unet.vector_width)
    names = readers(checkpoint)
    configs = {name: _clip(config) for name, config in zip(names, checkpoint.texts.encoders, strict=True)}
    index: dict[str, Any] = {
        "_class_name": _PIPELINES[checkpoint.family],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", _scheduler(checkpoint)["_class_name"]],
    }
    for name, said in configs.items():
        index[name] = ["transformers", said["architectures"][0]]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if large:
        index |= {"force_zeros_for_empty_prompt": checkpoint.texts.zeros}
        index |= {"requires_aesthetics_score": True} if len(names) == 1 else {}
        index |= {"text_encoder": [None, None], "tokenizer": [None, None]} if len(names) == 1 else {}
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    if checkpoint.unet.beside:
        index["_class_name"] = "StableDiffusionXLInpaintPipeline" if large else "StableDiffusionInpaintPipeline"
    if checkpoint.unet.guidance_width and not large:
        index["_class_name"] = "LatentConsistencyModelPipeline"
    side = checkpoint.habits.size // checkpoint.vae.factor
    network = {**unet(checkpoint.unet, side), **_pooled(checkpoint)}
    return index, {**configs, "unet": network, "vae": _vae(checkpoint.vae)}


def _renamed(
    checkpoint: Checkpoint, part: str, kind: type[nn.Module], config: Any, rows: Rows, prefix: str = ""
) -> dict[str, Tensor]:
    return given(table(kind, config, rows, prefix), checkpoint.part(part))


def json_file(file: Path, said: dict[str, Any]) -> None:
    write_bytes(file, (json.dumps(said, indent=2) + "\n").encode())


def unet(config: UNetConfig, side: int) -> dict[str, Any]:
    """unet/config.json of a network for x of that side; what its vector is, is not in it."""
    widths = [config.width * m for m in config.multipliers]
    kinds = [("CrossAttn" if depth else "", depth or 1) for depth in config.depths]
    kinds[-1] = (kinds[-1][0], config.middle_depth)
    heads: Any = config.heads or [width // config.head_width for width in widths]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": side,
        "in_channels": config.channels + config.beside,
        "out_channels": config.channels,
        "down_block_types": [f"{cross}DownBlock2D" for cross, _ in kinds],
        "up_block_types": [f"{cross}UpBlock2D" for cross, _ in reversed(kinds)],
        "block_out_channels": widths,
        "layers_per_block": config.blocks,
        "transformer_layers_per_block": [depth for _, depth in kinds],
        "attention_head_dim": heads,
        "cross_attention_dim": config.text_width,
        "use_linear_projection": config.projection == "linear",
        "norm_num_groups": config.groups,
        "time_cond_proj_dim": config.guidance_width or None,
        **({"resnet_time_scale_shift": "scale_shift"} if config.scale_shift else {}),
    }


def _pooled(checkpoint: Checkpoint) -> dict[str, Any]:
    """What unet/config.json says of its vector."""
    width = checkpoint.unet.vector_width
    if not width:
        return {}
    waves = (width - checkpoint.texts.encoders[-1].projection) // (6 if checkpoint.family == "xl" else 5)
    return {"addition_embed_type": "text_time", "addition_time_embed_dim": waves,
            "projection_class_embeddings_input_dim": width}  # fmt: skip


def _vae(vae: VaeConfig) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * len(vae.multipliers),
        "up_block_types": ["UpDecoderBlock2D"] * len(vae.multipliers),
        "block_out_channels": [vae.width * m for m in vae.multipliers],
        "latent_channels": vae.latents,
        "layers_per_block": vae.blocks,
        "norm_num_groups": vae.groups,
        "scaling_factor": vae.scale,
        "shift_factor": vae.shift or None,
        "use_quant_conv": vae.mixes,
        "use_post_quant_conv": vae.mixes,
    }


def _clip(config: ClipConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": config.width,
        "intermediate_size": config.inner,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.length,
        "hidden_act": "quick_gelu" if config.quick else "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": config.projection or config.width,
        "bos_token_id": config.end - 1,
        "eos_token_id": config.end,
    }


def _scheduler(checkpoint: Checkpoint) -> dict[str, Any]:
    habits = checkpoint.habits
    said: dict[str, Any] = {
        "_class_name": next(name for name, sampler in SAMPLERS.items() if sampler == habits.sampler),
        "num_train_timesteps": 1000,
        "beta_schedule": {"cosine": "squaredcos_cap_v2"}.get(habits.table.beta_schedule, habits.table.beta_schedule),
        "beta_start": habits.table.beta_start,
        "beta_end": habits.table.beta_end,
        "prediction_type": {"eps": "epsilon", "v": "v_prediction"}[habits.prediction],
        "steps_offset": habits.offset,
        "clip_sample": False,
    }
    if habits.table.zero_terminal_snr:
        said["rescale_betas_zero_snr"] = True
    if habits.spacing is not None:
        said["timestep_spacing"] = habits.spacing
    if habits.end is not None:
        said["set_alpha_to_one"] = habits.end == "zero"
    if habits.karras:
        said["use_karras_sigmas"] = True
    if habits.sampler == "plms":
        said["skip_prk_steps"] = True
    return said
