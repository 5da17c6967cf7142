"""The JSON files of a diffusers folder as our configurations, strictly: what our networks lack is refused by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.checkpoint import SchedulerDefaults
from unspeckle.networks.unet import UNetConfig
from unspeckle.networks.vae import VAEConfig
from unspeckle.schedule import DiscreteSchedule
from unspeckle.text.clip import CLIPTextConfig

ConfigDict = Mapping[str, Any]

# What may be said of a network only so, being how ours are built
_REQUIRED_UNET_VALUES = {
    "act_fn": "silu", "center_input_sample": False, "class_embed_type": None, "class_embeddings_concat": False,
    "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None, "downsample_padding": 1,
    "dual_cross_attention": False, "encoder_hid_dim": None, "encoder_hid_dim_type": None, "flip_sin_to_cos": True,
    "freq_shift": 0, "mid_block_only_cross_attention": None, "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5, "num_attention_heads": None,
    "only_cross_attention": False, "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False,
    "reverse_transformer_layers_per_block": None, "time_embedding_act_fn": None,
    "time_embedding_dim": None, "time_embedding_type": "positional", "timestep_post_act": None,
}  # fmt: skip
_REQUIRED_VAE_VALUES = {
    "act_fn": "silu", "in_channels": 3, "out_channels": 3, "latents_mean": None, "latents_std": None,
    "mid_block_add_attention": True,
}  # fmt: skip
SCHEDULER_SAMPLERS = {
    "PNDMScheduler": "plms", "DDIMScheduler": "ddim", "DDPMScheduler": "ddpm", "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a", "HeunDiscreteScheduler": "heun", "LMSDiscreteScheduler": "lms",
    "DPMSolverMultistepScheduler": "dpmpp_2m", "UniPCMultistepScheduler": "unipc", "LCMScheduler": "lcm",
}  # fmt: skip
_BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTION_TYPES = {"epsilon": "eps", "v_prediction": "v"}


def parse_unet_config(config: ConfigDict, file: Path) -> UNetConfig:
    """unet/config.json."""
    require_values(config, _REQUIRED_UNET_VALUES, file)
    widths = _int_list(config, "block_out_channels", file)
    levels = len(widths)
    down_types, up_types = config.get("down_block_types", ()), config.get("up_block_types", ())
    down_has_attention = ["CrossAttn" in str(kind) for kind in down_types]
    up_has_attention = ["CrossAttn" in str(kind) for kind in reversed(up_types)]
    unknown_types = {
        kind
        for kind in [*down_types, *up_types]
        if str(kind).replace("CrossAttn", "") not in ("DownBlock2D", "UpBlock2D")
    }
    if unknown_types or down_has_attention != up_has_attention or len(down_has_attention) != levels:
        raise InputError(f"{file}: blocks {down_types} and {up_types} make no U-Net that is known here")
    if any(width % widths[0] for width in widths):
        raise InputError(f"{file}: block_out_channels {widths} are no multiples of the first")
    transformer_layers = _int_per_level(config, "transformer_layers_per_block", 1, levels, file)
    heads = _int_per_level(config, "attention_head_dim", 8, levels, file)  # it counts heads, whatever its name
    head_widths = {width // count for width, count in zip(widths, heads, strict=True)}
    if len(set(heads)) > 1 and len(head_widths) > 1:
        raise InputError(f"{file}: attention_head_dim {heads} is neither one number of heads nor one width of them")
    added_embed_type = config.get("addition_embed_type")
    if added_embed_type not in (None, "text_time"):
        raise InputError(f"{file}: addition_embed_type is {added_embed_type!r}; only text_time is known here")
    time_scale_shift = config.get("resnet_time_scale_shift") or "default"
    if time_scale_shift not in ("default", "scale_shift"):
        raise InputError(
            f"{file}: resnet_time_scale_shift is {time_scale_shift!r}; only default and scale_shift are known here"
        )
    out_channels = _int_value(config, "out_channels", 4, file)
    return UNetConfig(
        channels=out_channels,
        concat_channels=_int_value(config, "in_channels", 4, file) - out_channels,
        base_channels=widths[0],
        channel_multipliers=tuple(width // widths[0] for width in widths),
        blocks_per_level=_int_value(config, "layers_per_block", 2, file),
        transformer_depths=tuple(
            depth if has_attention else 0
            for depth, has_attention in zip(transformer_layers, down_has_attention, strict=True)
        ),
        mid_transformer_depth=transformer_layers[-1],
        self_attention=(True,) * levels,
        feed_forward=True,
        transformer_projection="linear" if config.get("use_linear_projection") else "conv",
        head_width=head_widths.pop() if len(set(heads)) > 1 else 64,
        heads=heads[0] if len(set(heads)) == 1 else 0,
        text_width=_int_value(config, "cross_attention_dim", 1280, file),
        vector_width=_int_value(config, "projection_class_embeddings_input_dim", 0, file) if added_embed_type else 0,
        guidance_width=_int_value(config, "time_cond_proj_dim", 0, file),
        scale_shift=time_scale_shift == "scale_shift",
        time_scale=1.0,
        norm_groups=_int_value(config, "norm_num_groups", 32, file),
    )


def parse_vae_config(config: ConfigDict, file: Path) -> VAEConfig:
    """vae/config.json."""
    require_values(config, _REQUIRED_VAE_VALUES, file)
    widths = _int_list(config, "block_out_channels", file)
    block_types = {*config.get("down_block_types", ()), *config.get("up_block_types", ())}
    use_quant_conv = {bool(config.get(key, True)) for key in ("use_quant_conv", "use_post_quant_conv")}
    if (
        block_types - {"DownEncoderBlock2D", "UpDecoderBlock2D"}
        or any(w % widths[0] for w in widths)
        or len(use_quant_conv) > 1
    ):
        raise InputError(f"{file}: is of a {config.get('_class_name')} that is not known here")
    return VAEConfig(
        latent_channels=_int_value(config, "latent_channels", 4, file),
        base_channels=widths[0],
        channel_multipliers=tuple(width // widths[0] for width in widths),
        blocks_per_level=_int_value(config, "layers_per_block", 1, file),
        norm_groups=_int_value(config, "norm_num_groups", 32, file),
        use_quant_conv=use_quant_conv.pop(),
        scaling_factor=float(config.get("scaling_factor") or 0.18215),
        shift_factor=float(config.get("shift_factor") or 0.0),
    )


def parse_clip_config(config: ConfigDict, file: Path) -> CLIPTextConfig:
    """text_encoder/config.json."""
    activation, width = config.get("hidden_act", "quick_gelu"), _int_value(config, "hidden_size", 512, file)
    if activation not in ("quick_gelu", "gelu") or config.get("layer_norm_eps", 1e-5) != 1e-5:
        raise InputError(f"{file}: is no text encoder of CLIP (hidden_act {activation!r})")
    has_projection = "CLIPTextModelWithProjection" in (config.get("architectures") or ())
    vocab_size, eos_id = _int_value(config, "vocab_size", 49408, file), _int_value(config, "eos_token_id", 49407, file)
    return CLIPTextConfig(
        width=width,
        layers=_int_value(config, "num_hidden_layers", 12, file),
        heads=_int_value(config, "num_attention_heads", 8, file),
        feed_forward_width=_int_value(config, "intermediate_size", 2048, file),
        vocab_size=vocab_size,
        context_length=_int_value(config, "max_position_embeddings", 77, file),
        eos_token_id=min(49407, vocab_size - 1)
        if eos_id == 2
        else eos_id,  # until 2023 the files said 2 and meant the highest
        quick_gelu=activation == "quick_gelu",
        projection_width=_int_value(config, "projection_dim", 512, file) if has_projection else 0,
    )


def parse_scheduler_config(config: ConfigDict, file: Path) -> SchedulerDefaults:
    """scheduler/scheduler_config.json."""
    beta_schedule, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    if (
        beta_schedule not in _BETA_SCHEDULES
        or config.get("trained_betas") is not None
        or config.get("num_train_timesteps", 1000) != 1000
    ):
        raise InputError(f"{file}: its betas ({beta_schedule!r}) make no table that is known here")
    if prediction not in _PREDICTION_TYPES:
        raise InputError(f"{file}: predicts {prediction!r}, which is not known here; decide with --prediction")
    beta_range = (float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02)))
    schedule = DiscreteSchedule(
        _BETA_SCHEDULES[beta_schedule], *beta_range, zero_terminal_snr=bool(config.get("rescale_betas_zero_snr"))
    )
    sampler, timestep_spacing = (
        SCHEDULER_SAMPLERS.get(str(config.get("_class_name")), "dpmpp_2m"),
        config.get("timestep_spacing"),
    )
    return SchedulerDefaults(
        schedule=schedule,
        prediction=_PREDICTION_TYPES[prediction],
        sampler=sampler,
        timestep_spacing=None if timestep_spacing is None else str(timestep_spacing),
        steps_offset=_int_value(config, "steps_offset", 0, file),
        end_at=None if config.get("set_alpha_to_one") is None else "zero" if config["set_alpha_to_one"] else "first",
        use_karras_sigmas=bool(config.get("use_karras_sigmas")),
        is_turbo=sampler in ("euler", "euler_a") and timestep_spacing == "trailing" and not schedule.zero_terminal_snr,
    )


def require_values(config: ConfigDict, required: ConfigDict, file: Path) -> None:
    """InputError, naming it, where something is said otherwise than is known."""
    for key, value in required.items():
        if config.get(key, value) != value and (value or config[key]):
            raise InputError(f"{file}: {key} is {config[key]!r}; only {value!r} is known here")


def _int_value(config: ConfigDict, key: str, default: int, file: Path) -> int:
    value = default if config.get(key) is None else config[key]
    if type(value) is not int or not 0 <= value <= 1 << 20:
        raise InputError(f"{file}: {key} is {value!r}, not a number that makes sense")
    return value


def _int_list(config: ConfigDict, key: str, file: Path) -> list[int]:
    value = config.get(key)
    if not isinstance(value, Sequence) or not value or any(type(item) is not int or item < 1 for item in value):
        raise InputError(f"{file}: {key} is {value!r}, not a list of sizes")
    return list(value)


def _int_per_level(config: ConfigDict, key: str, default: int, count: int, file: Path) -> list[int]:
    """One number for each level, or one for all."""
    value = default if config.get(key) is None else config[key]
    values = [value] * count if type(value) is int else value
    if (
        not isinstance(values, list)
        or len(values) != count
        or any(type(item) is not int or item < 1 for item in values)
    ):
        raise InputError(f"{file}: {key} is {value!r}, not a number for each of {count} levels")
    return values
