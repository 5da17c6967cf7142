"""The JSON files of a diffusers folder from our configurations: what `diffusers_config` reads."""

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from unspeckle.errors import InputError
from unspeckle.formats.checkpoint_parts import CheckpointPart
from unspeckle.formats.stable_diffusion.checkpoint import SchedulerDefaults, StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.diffusers_config import SCHEDULER_SAMPLERS
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.networks.vae import VAE, VAEConfig
from unspeckle.schedule import DiscreteSchedule
from unspeckle.text.clip import CLIPTextConfig, CLIPTextEncoder


def model_index_json(checkpoint: StableDiffusionCheckpoint) -> dict[str, Any]:
    """The content of model_index.json: the pipeline class, and the library and class of each component."""
    family, inputs = checkpoint.family, checkpoint.network_inputs
    pipeline = family.inpainting_pipeline if inputs.concat_channels else family.pipeline
    if inputs.guidance_embedding_width and family.consistency_pipeline is not None:
        pipeline = family.consistency_pipeline
    index: dict[str, Any] = {"_class_name": pipeline}
    for part in checkpoint.parts.values():
        part_json = part_config_json(part)
        if "architectures" in part_json:
            index[part.folder] = ["transformers", part_json["architectures"][0]]
            index[part.folder.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
        else:
            index[part.folder] = ["diffusers", part_json["_class_name"]]
    index["scheduler"] = ["diffusers", scheduler_json(checkpoint.scheduler_defaults)["_class_name"]]
    if family.size_values:
        index["force_zeros_for_empty_prompt"] = checkpoint.text_encoder.config.zero_empty_prompts
    return index | dict(family.model_index)


def component_jsons(checkpoint: StableDiffusionCheckpoint) -> dict[str, dict[str, Any]]:
    """The content of each part's config.json, by the part's folder: text encoders first, in order."""
    parts = {**checkpoint.text_encoder_parts, **checkpoint.parts}
    jsons = {part.folder: part_config_json(part) for part in parts.values()}
    network, autoencoder = checkpoint.parts["network"], cast(Autoencoder, checkpoint.parts["autoencoder"].build())
    sample_size = checkpoint.scheduler_defaults.image_size // autoencoder.downsampling_factor
    jsons[network.folder]["sample_size"] = sample_size
    if checkpoint.network_inputs.size_embedding_width:
        jsons[network.folder] |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": checkpoint.network_inputs.size_embedding_width // checkpoint.family.size_values,
            "projection_class_embeddings_input_dim": network.config.vector_width,
        }
    return jsons


def part_config_json(part: CheckpointPart) -> dict[str, Any]:
    """The content of a part's config.json. InputError where diffusers has no such module."""
    if part.module_class not in CONFIG_JSONS:
        raise InputError(f"{part.folder}: diffusers has no module for this part of the model, so it cannot be written")
    return CONFIG_JSONS[part.module_class](part.config)


def unet_json(config: UNetConfig) -> dict[str, Any]:
    """The content of unet/config.json, without what depends on other parts of the model."""
    widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
    has_attention = [depth > 0 for depth in config.transformer_depths[:-1]]
    depths = [depth or 1 for depth in config.transformer_depths[:-1]]
    kinds = ["CrossAttn" if attends else "" for attends in (*has_attention, config.transformer_depths[-1] > 0)]
    content = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": config.channels + config.concat_channels,
        "out_channels": config.channels,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "block_out_channels": widths,
        "layers_per_block": config.blocks_per_level,
        "transformer_layers_per_block": [*depths, config.mid_transformer_depth],
        "attention_head_dim": config.heads or [width // config.head_width for width in widths],
        "cross_attention_dim": config.text_width,
        "use_linear_projection": config.transformer_projection == "linear",
        "norm_num_groups": config.norm_groups,
        "time_cond_proj_dim": config.guidance_width or None,
    }
    return content | ({"resnet_time_scale_shift": "scale_shift"} if config.scale_shift else {})


def vae_json(config: VAEConfig) -> dict[str, Any]:
    """The content of vae/config.json."""
    levels = len(config.channel_multipliers)
    return {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [config.base_channels * multiplier for multiplier in config.channel_multipliers],
        "latent_channels": config.latent_channels,
        "layers_per_block": config.blocks_per_level,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor or None,
        "use_quant_conv": config.use_quant_conv,
        "use_post_quant_conv": config.use_quant_conv,
    }


def clip_json(config: CLIPTextConfig) -> dict[str, Any]:
    """The content of text_encoder/config.json."""
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


def scheduler_json(defaults: SchedulerDefaults) -> dict[str, Any]:
    """The content of scheduler/scheduler_config.json. InputError where the model is not sampled at training timesteps,
    as all these schedulers do."""
    if defaults.time_conditioning != "index":
        raise InputError("a model without training timesteps has no scheduler of diffusers that can be written")
    schedule = cast(DiscreteSchedule, defaults.schedule)
    config: dict[str, Any] = {
        "_class_name": next(name for name, sampler in SCHEDULER_SAMPLERS.items() if sampler == defaults.sampler),
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2" if schedule.beta_schedule == "cosine" else schedule.beta_schedule,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "prediction_type": {"eps": "epsilon", "v": "v_prediction"}[defaults.prediction],
        "steps_offset": defaults.steps_offset,
        "clip_sample": False,
    }
    if schedule.zero_terminal_snr:
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


# How each module's configuration becomes its config.json; a new module is one more row
CONFIG_JSONS: dict[Callable[[Any], nn.Module], Callable[[Any], dict[str, Any]]] = {
    UNet: unet_json,
    VAE: vae_json,
    CLIPTextEncoder: clip_json,
}
