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
from unspeckle.formats.rename_tables import RenameRules, to_their_names
from unspeckle.formats.stable_diffusion import diffusers_names, original_names
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint, module_name_table
from unspeckle.formats.stable_diffusion.diffusers_config import SCHEDULER_SAMPLERS
from unspeckle.formats.stable_diffusion.single_file import LATENT_SCALE_KEY, LATENT_SCALES
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.networks.vae import VAE, VAEConfig
from unspeckle.text.clip import CLIPTextConfig, CLIPTextEncoder

_PIPELINE_CLASSES = {
    "1": "StableDiffusionPipeline", "2": "StableDiffusionPipeline", "xl": "StableDiffusionXLPipeline",
    "xl-refiner": "StableDiffusionXLImg2ImgPipeline",
}  # fmt: skip
_MODELSPEC_ARCHITECTURES = {
    "1": "stable-diffusion-v1", "2": "stable-diffusion-v2", "xl": "stable-diffusion-xl-v1-base",
    "xl-refiner": "stable-diffusion-xl-v1-refiner",
}  # fmt: skip


def write_single_file(checkpoint: StableDiffusionCheckpoint, file: Path) -> None:
    """Write one file of the original layout, atomically; its metadata say by ModelSpec what tensors cannot."""
    unet_config = checkpoint.unet_config
    if (
        (unet_config.heads or 8) != 8
        or (not unet_config.heads and unet_config.head_width != 64)
        or unet_config.norm_groups != 32
        or unet_config.scale_shift
    ):
        raise InputError(
            f"{checkpoint.path}: its heads, groups or time are such as single files cannot tell; keep the folder"
        )
    prefixes = {
        "1": original_names.TEXT_PREFIXES[:1], "2": original_names.TEXT_PREFIXES[1:2], "xl": (original_names.TEXT_PREFIXES[2], original_names.TEXT_PREFIXES[4]),
        "xl-refiner": original_names.TEXT_PREFIXES[3:4],
    }[checkpoint.family]  # fmt: skip
    tensors = _rename_part(checkpoint, "network", UNet, unet_config, original_names.UNET, original_names.UNET_PREFIX)
    tensors |= _rename_part(
        checkpoint, "autoencoder", VAE, checkpoint.vae_config, original_names.VAE, original_names.VAE_PREFIX
    )
    for index, (config, (prefix, is_openclip)) in enumerate(
        zip(checkpoint.text_config.encoders, prefixes, strict=True)
    ):
        rules = original_names.OPENCLIP if is_openclip else original_names.OPENAI
        tensors |= _rename_part(checkpoint, f"text.encoders.{index}", CLIPTextEncoder, config, rules, prefix)
    defaults = checkpoint.scheduler_defaults
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _MODELSPEC_ARCHITECTURES[checkpoint.family],
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": checkpoint.path.stem,
        "modelspec.prediction_type": {"eps": "epsilon", "v": "v"}[defaults.prediction],
        "modelspec.resolution": f"{defaults.image_size}x{defaults.image_size}",
    }
    if checkpoint.vae_config.scaling_factor != LATENT_SCALES[bool(unet_config.vector_width)]:
        metadata[LATENT_SCALE_KEY] = repr(checkpoint.vae_config.scaling_factor)
    with replace_file(file) as temp_file:
        save_file(tensors, temp_file, metadata)


def write_diffusers_folder(checkpoint: StableDiffusionCheckpoint, folder_path: Path) -> None:
    """Write a folder of diffusers, whole or not at all. InputError where something stands there already."""
    require_empty_folder(folder_path)
    model_index, configs = build_diffusers_configs(checkpoint)
    components: dict[str, tuple[str, type[nn.Module], Any, RenameRules]] = {
        name: (f"text.encoders.{index}", CLIPTextEncoder, config, diffusers_names.CLIP)
        for index, (name, config) in enumerate(
            zip(text_encoder_folders(checkpoint), checkpoint.text_config.encoders, strict=True)
        )
    }
    components["unet"] = ("network", UNet, checkpoint.unet_config, diffusers_names.UNET)
    components["vae"] = ("autoencoder", VAE, checkpoint.vae_config, diffusers_names.VAE)
    with create_folder(folder_path) as temp_folder:
        for name, (prefix, module_class, config, rules) in components.items():
            file = "model.safetensors" if module_class is CLIPTextEncoder else "diffusion_pytorch_model.safetensors"
            write_json_file(temp_folder / name / "config.json", configs[name])
            save_file(
                _rename_part(checkpoint, prefix, module_class, config, rules),
                temp_folder / name / file,
                {"format": "pt"},
            )
        write_pipeline_files(checkpoint, temp_folder, model_index)


def require_empty_folder(folder_path: Path) -> None:
    """InputError where something stands at the place already."""
    if os.path.lexists(folder_path) and (not folder_path.is_dir() or any(folder_path.iterdir())):
        raise InputError(f"{folder_path}: stands there already; give a new folder")


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """How far what was written computes from what is expected, relative to that; infinity where either is not finite,
    as a NaN is neither more nor less than what is allowed."""
    if actual.shape != expected.shape:
        return math.inf
    error = float((actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
    return error if math.isfinite(error) else math.inf


def write_pipeline_files(checkpoint: StableDiffusionCheckpoint, folder_path: Path, model_index: dict[str, Any]) -> None:
    """What a folder holds beside its parts: tokenizers, scheduler and index."""
    for index, name in enumerate(text_encoder_folders(checkpoint)):
        checkpoint.tokenizer.write_folder(folder_path / name.replace("text_encoder", "tokenizer"), index)
    write_json_file(folder_path / "scheduler" / "scheduler_config.json", _scheduler_json(checkpoint))
    write_json_file(folder_path / "model_index.json", model_index)


def text_encoder_folders(checkpoint: StableDiffusionCheckpoint) -> list[str]:
    """The folders of the text encoders."""
    names = ["text_encoder", "text_encoder_2"]
    return names[: len(checkpoint.text_config.encoders)] if checkpoint.family != "xl-refiner" else names[1:]


def build_diffusers_configs(checkpoint: StableDiffusionCheckpoint) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What model_index.json says, and each part's config.json, by its folder: text encoders, unet, vae."""
    is_xl = bool(checkpoint.unet_config.vector_width)
    encoder_folders = text_encoder_folders(checkpoint)
    configs = {
        name: _clip_json(config) for name, config in zip(encoder_folders, checkpoint.text_config.encoders, strict=True)
    }
    model_index: dict[str, Any] = {
        "_class_name": _PIPELINE_CLASSES[checkpoint.family],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", _scheduler_json(checkpoint)["_class_name"]],
    }
    for name, config in configs.items():
        model_index[name] = ["transformers", config["architectures"][0]]
        model_index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if is_xl:
        model_index |= {"force_zeros_for_empty_prompt": checkpoint.text_config.zero_empty_prompts}
        model_index |= {"requires_aesthetics_score": True} if len(encoder_folders) == 1 else {}
        model_index |= {"text_encoder": [None, None], "tokenizer": [None, None]} if len(encoder_folders) == 1 else {}
    else:
        model_index |= {
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        }
    if checkpoint.unet_config.concat_channels:
        model_index["_class_name"] = "StableDiffusionXLInpaintPipeline" if is_xl else "StableDiffusionInpaintPipeline"
    if checkpoint.unet_config.guidance_width and not is_xl:
        model_index["_class_name"] = "LatentConsistencyModelPipeline"
    sample_size = checkpoint.scheduler_defaults.image_size // checkpoint.vae_config.downsampling_factor
    unet_json = {**unet_config_json(checkpoint.unet_config, sample_size), **_added_embedding_json(checkpoint)}
    return model_index, {**configs, "unet": unet_json, "vae": _vae_json(checkpoint.vae_config)}


def _rename_part(
    checkpoint: StableDiffusionCheckpoint,
    part: str,
    module_class: type[nn.Module],
    config: Any,
    rules: RenameRules,
    prefix: str = "",
) -> dict[str, Tensor]:
    return to_their_names(module_name_table(module_class, config, rules, prefix), checkpoint.part_tensors(part))


def write_json_file(file: Path, content: dict[str, Any]) -> None:
    write_bytes(file, (json.dumps(content, indent=2) + "\n").encode())


def unet_config_json(config: UNetConfig, sample_size: int) -> dict[str, Any]:
    """unet/config.json of a network for x of that side; what its vector is, is not in it."""
    widths = [config.base_channels * m for m in config.channel_multipliers]
    block_kinds = [("CrossAttn" if depth else "", depth or 1) for depth in config.transformer_depths]
    block_kinds[-1] = (block_kinds[-1][0], config.mid_transformer_depth)
    heads: Any = config.heads or [width // config.head_width for width in widths]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": sample_size,
        "in_channels": config.channels + config.concat_channels,
        "out_channels": config.channels,
        "down_block_types": [f"{cross}DownBlock2D" for cross, _ in block_kinds],
        "up_block_types": [f"{cross}UpBlock2D" for cross, _ in reversed(block_kinds)],
        "block_out_channels": widths,
        "layers_per_block": config.blocks_per_level,
        "transformer_layers_per_block": [depth for _, depth in block_kinds],
        "attention_head_dim": heads,
        "cross_attention_dim": config.text_width,
        "use_linear_projection": config.transformer_projection == "linear",
        "norm_num_groups": config.norm_groups,
        "time_cond_proj_dim": config.guidance_width or None,
        **({"resnet_time_scale_shift": "scale_shift"} if config.scale_shift else {}),
    }


def _added_embedding_json(checkpoint: StableDiffusionCheckpoint) -> dict[str, Any]:
    """What unet/config.json says of its vector."""
    vector_width = checkpoint.unet_config.vector_width
    if not vector_width:
        return {}
    embed_dim = (vector_width - checkpoint.text_config.encoders[-1].projection_width) // (
        6 if checkpoint.family == "xl" else 5
    )
    return {"addition_embed_type": "text_time", "addition_time_embed_dim": embed_dim,
            "projection_class_embeddings_input_dim": vector_width}  # fmt: skip


def _vae_json(config: VAEConfig) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * len(config.channel_multipliers),
        "up_block_types": ["UpDecoderBlock2D"] * len(config.channel_multipliers),
        "block_out_channels": [config.base_channels * m for m in config.channel_multipliers],
        "latent_channels": config.latent_channels,
        "layers_per_block": config.blocks_per_level,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor or None,
        "use_quant_conv": config.use_quant_conv,
        "use_post_quant_conv": config.use_quant_conv,
    }


def _clip_json(config: CLIPTextConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModelWithProjection" if config.projection_width else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_act": "quick_gelu" if config.quick_gelu else "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": config.projection_width or config.width,
        "bos_token_id": config.eos_token_id - 1,
        "eos_token_id": config.eos_token_id,
    }


def _scheduler_json(checkpoint: StableDiffusionCheckpoint) -> dict[str, Any]:
    defaults = checkpoint.scheduler_defaults
    config: dict[str, Any] = {
        "_class_name": next(name for name, sampler in SCHEDULER_SAMPLERS.items() if sampler == defaults.sampler),
        "num_train_timesteps": 1000,
        "beta_schedule": {"cosine": "squaredcos_cap_v2"}.get(
            defaults.schedule.beta_schedule, defaults.schedule.beta_schedule
        ),
        "beta_start": defaults.schedule.beta_start,
        "beta_end": defaults.schedule.beta_end,
        "prediction_type": {"eps": "epsilon", "v": "v_prediction"}[defaults.prediction],
        "steps_offset": defaults.steps_offset,
        "clip_sample": False,
    }
    if defaults.schedule.zero_terminal_snr:
        config["rescale_betas_zero_snr"] = True
    if defaults.timestep_spacing is not None:
        config["timestep_spacing"] = defaults.timestep_spacing
    if defaults.end_at is not None:
        config["set_alpha_to_one"] = defaults.end_at == "zero"
    if defaults.use_karras_sigmas:
        config["use_karras_sigmas"] = True
    if defaults.sampler == "plms":
        config["skip_prk_steps"] = True
    return config
