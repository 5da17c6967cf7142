"""The JSON files of a diffusers folder as our configurations. What our networks cannot compute is refused by name."""

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

# The only values that our networks support; a file may leave them out
_REQUIRED_UNET_VALUES = {
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "num_attention_heads": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "reverse_transformer_layers_per_block": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
_REQUIRED_VAE_VALUES = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
}
SCHEDULER_SAMPLERS = {
    "PNDMScheduler": "plms",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
}
_BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTION_TYPES = {"epsilon": "eps", "v_prediction": "v"}


def parse_unet_config(config: ConfigDict, file: Path) -> UNetConfig:
    """The sizes of a U-Net from the content of unet/config.json. InputError where ours cannot be built so."""
    require_values(config, _REQUIRED_UNET_VALUES, file)
    channels = _int_list(config, "block_out_channels", file)
    levels = len(channels)
    if any(count % channels[0] for count in channels):
        raise InputError(f"{file}: block_out_channels {channels} are not multiples of the first")
    has_attention = _levels_with_attention(config, levels, file)
    transformer_depths = _int_per_level(config, "transformer_layers_per_block", 1, levels, file)
    heads, head_width = _parse_heads(config, channels, file)
    embedding_type = config.get("addition_embed_type")
    if embedding_type not in (None, "text_time"):
        raise InputError(f"{file}: addition_embed_type is {embedding_type!r}; only text_time is supported")
    time_scale_shift = config.get("resnet_time_scale_shift") or "default"
    if time_scale_shift not in ("default", "scale_shift"):
        raise InputError(
            f"{file}: resnet_time_scale_shift is {time_scale_shift!r}; only default and scale_shift are supported"
        )
    out_channels = _int_value(config, "out_channels", 4, file)
    vector_width = _int_value(config, "projection_class_embeddings_input_dim", 0, file) if embedding_type else 0
    return UNetConfig(
        channels=out_channels,
        concat_channels=_int_value(config, "in_channels", 4, file) - out_channels,
        base_channels=channels[0],
        channel_multipliers=tuple(count // channels[0] for count in channels),
        blocks_per_level=_int_value(config, "layers_per_block", 2, file),
        transformer_depths=tuple(
            depth if attends else 0 for depth, attends in zip(transformer_depths, has_attention, strict=True)
        ),
        mid_transformer_depth=transformer_depths[-1],
        self_attention=(True,) * levels,
        feed_forward=True,
        transformer_projection="linear" if config.get("use_linear_projection") else "conv",
        head_width=head_width,
        heads=heads,
        text_width=_int_value(config, "cross_attention_dim", 1280, file),
        vector_width=vector_width,
        guidance_width=_int_value(config, "time_cond_proj_dim", 0, file),
        scale_shift=time_scale_shift == "scale_shift",
        time_scale=1.0,
        norm_groups=_int_value(config, "norm_num_groups", 32, file),
    )


def _levels_with_attention(config: ConfigDict, levels: int, file: Path) -> list[bool]:
    """For each level, whether its blocks have cross-attention; down and up must agree."""
    down_types, up_types = config.get("down_block_types", ()), config.get("up_block_types", ())
    plain_types = {str(block_type).replace("CrossAttn", "") for block_type in (*down_types, *up_types)}
    on_the_way_down = ["CrossAttn" in str(block_type) for block_type in down_types]
    on_the_way_up = ["CrossAttn" in str(block_type) for block_type in reversed(up_types)]
    if plain_types - {"DownBlock2D", "UpBlock2D"} or on_the_way_down != on_the_way_up or len(on_the_way_down) != levels:
        raise InputError(f"{file}: blocks {down_types} and {up_types} form no supported U-Net")
    return on_the_way_down


def _parse_heads(config: ConfigDict, channels: list[int], file: Path) -> tuple[int, int]:
    """The number of heads, or 0 and their width where it is the width that is the same at each level. The files call
    the number of heads attention_head_dim."""
    heads = _int_per_level(config, "attention_head_dim", 8, len(channels), file)
    if len(set(heads)) == 1:
        return heads[0], 64
    head_widths = {width // count for width, count in zip(channels, heads, strict=True)}
    if len(head_widths) > 1:
        raise InputError(f"{file}: attention_head_dim {heads} is neither one number of heads nor one width of heads")
    return 0, head_widths.pop()


def parse_vae_config(config: ConfigDict, file: Path) -> VAEConfig:
    """The sizes of an autoencoder from the content of vae/config.json. InputError where ours cannot be built so."""
    require_values(config, _REQUIRED_VAE_VALUES, file)
    channels = _int_list(config, "block_out_channels", file)
    block_types = {*config.get("down_block_types", ()), *config.get("up_block_types", ())}
    use_quant_conv = {bool(config.get(key, True)) for key in ("use_quant_conv", "use_post_quant_conv")}
    has_unknown_blocks = bool(block_types - {"DownEncoderBlock2D", "UpDecoderBlock2D"})
    if has_unknown_blocks or any(count % channels[0] for count in channels) or len(use_quant_conv) > 1:
        raise InputError(f"{file}: describes a {config.get('_class_name')} that is not supported")
    return VAEConfig(
        latent_channels=_int_value(config, "latent_channels", 4, file),
        base_channels=channels[0],
        channel_multipliers=tuple(count // channels[0] for count in channels),
        blocks_per_level=_int_value(config, "layers_per_block", 1, file),
        norm_groups=_int_value(config, "norm_num_groups", 32, file),
        use_quant_conv=use_quant_conv.pop(),
        scaling_factor=float(config.get("scaling_factor") or 0.18215),
        shift_factor=float(config.get("shift_factor") or 0.0),
    )


def parse_clip_config(config: ConfigDict, file: Path) -> CLIPTextConfig:
    """The sizes of a text encoder from the content of its config.json. InputError where it is none of CLIP."""
    activation = config.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu") or config.get("layer_norm_eps", 1e-5) != 1e-5:
        raise InputError(f"{file}: describes no text encoder of CLIP (hidden_act {activation!r})")
    has_projection = "CLIPTextModelWithProjection" in (config.get("architectures") or ())
    vocab_size = _int_value(config, "vocab_size", 49408, file)
    eos_token_id = _int_value(config, "eos_token_id", 49407, file)
    if eos_token_id == 2:  # until 2023 the files said 2 and meant the highest id
        eos_token_id = min(49407, vocab_size - 1)
    return CLIPTextConfig(
        width=_int_value(config, "hidden_size", 512, file),
        layers=_int_value(config, "num_hidden_layers", 12, file),
        heads=_int_value(config, "num_attention_heads", 8, file),
        feed_forward_width=_int_value(config, "intermediate_size", 2048, file),
        vocab_size=vocab_size,
        context_length=_int_value(config, "max_position_embeddings", 77, file),
        eos_token_id=eos_token_id,
        quick_gelu=activation == "quick_gelu",
        projection_width=_int_value(config, "projection_dim", 512, file) if has_projection else 0,
    )


def parse_scheduler_config(config: ConfigDict, file: Path) -> SchedulerDefaults:
    """How the checkpoint is meant to be sampled, from the content of scheduler/scheduler_config.json. InputError where
    its noise schedule or its prediction is not supported."""
    beta_schedule, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    has_own_betas = config.get("trained_betas") is not None or config.get("num_train_timesteps", 1000) != 1000
    if beta_schedule not in _BETA_SCHEDULES or has_own_betas:
        raise InputError(f"{file}: its betas ({beta_schedule!r}) form no noise schedule that is supported")
    if prediction not in _PREDICTION_TYPES:
        raise InputError(f"{file}: predicts {prediction!r}; only {', '.join(_PREDICTION_TYPES)} are supported")
    schedule = DiscreteSchedule(
        _BETA_SCHEDULES[beta_schedule],
        float(config.get("beta_start", 1e-4)),
        float(config.get("beta_end", 0.02)),
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr")),
    )
    sampler = SCHEDULER_SAMPLERS.get(str(config.get("_class_name")), "dpmpp_2m")
    spacing, ends_at_zero = config.get("timestep_spacing"), config.get("set_alpha_to_one")
    is_euler = sampler in ("euler", "euler_ancestral")
    return SchedulerDefaults(
        schedule=schedule,
        prediction=_PREDICTION_TYPES[prediction],
        sampler=sampler,
        timestep_spacing=None if spacing is None else str(spacing),
        steps_offset=_int_value(config, "steps_offset", 0, file),
        end_at=None if ends_at_zero is None else "zero" if ends_at_zero else "first",
        use_karras_sigmas=bool(config.get("use_karras_sigmas")),
        is_turbo=is_euler and spacing == "trailing" and not schedule.zero_terminal_snr,
    )


def require_values(config: ConfigDict, required: ConfigDict, file: Path) -> None:
    """InputError, naming it, where the configuration has a value other than the only one that is supported. A false
    value stands for None."""
    for key, value in required.items():
        if config.get(key, value) != value and (value or config[key]):
            raise InputError(f"{file}: {key} is {config[key]!r}; only {value!r} is supported")


def _int_value(config: ConfigDict, key: str, default: int, file: Path) -> int:
    value = default if config.get(key) is None else config[key]
    if type(value) is not int or not 0 <= value <= 1 << 20:
        raise InputError(f"{file}: {key} is {value!r}, which is not a sensible whole number")
    return value


def _int_list(config: ConfigDict, key: str, file: Path) -> list[int]:
    value = config.get(key)
    if not isinstance(value, Sequence) or not value or any(type(item) is not int or item < 1 for item in value):
        raise InputError(f"{file}: {key} is {value!r}, which is not a list of sizes")
    return list(value)


def _int_per_level(config: ConfigDict, key: str, default: int, levels: int, file: Path) -> list[int]:
    """A number for each level; the file may have one for all."""
    value = default if config.get(key) is None else config[key]
    numbers = value if isinstance(value, list) else [value] * levels
    if len(numbers) != levels or any(type(number) is not int or number < 1 for number in numbers):
        raise InputError(f"{file}: {key} is {value!r}, which is not a number for each of {levels} levels")
    return numbers
