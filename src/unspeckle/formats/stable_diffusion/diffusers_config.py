"""The JSON files of a diffusers folder as our configurations, strictly: what our networks lack is refused by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.checkpoint import Habits
from unspeckle.networks.unet import UNetConfig
from unspeckle.networks.vae import VaeConfig
from unspeckle.schedule import DiscreteSchedule
from unspeckle.text.clip import ClipConfig

Said = Mapping[str, Any]

# What may be said of a network only so, being how ours are built
_UNET = {
    "act_fn": "silu", "center_input_sample": False, "class_embed_type": None, "class_embeddings_concat": False,
    "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None, "downsample_padding": 1,
    "dual_cross_attention": False, "encoder_hid_dim": None, "encoder_hid_dim_type": None, "flip_sin_to_cos": True,
    "freq_shift": 0, "mid_block_only_cross_attention": None, "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5, "num_attention_heads": None,
    "only_cross_attention": False, "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False,
    "reverse_transformer_layers_per_block": None, "time_embedding_act_fn": None,
    "time_embedding_dim": None, "time_embedding_type": "positional", "timestep_post_act": None,
}  # fmt: skip
_VAE = {
    "act_fn": "silu", "in_channels": 3, "out_channels": 3, "latents_mean": None, "latents_std": None,
    "mid_block_add_attention": True,
}  # fmt: skip
SAMPLERS = {
    "PNDMScheduler": "plms", "DDIMScheduler": "ddim", "DDPMScheduler": "ddpm", "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a", "HeunDiscreteScheduler": "heun", "LMSDiscreteScheduler": "lms",
    "DPMSolverMultistepScheduler": "dpmpp_2m", "UniPCMultistepScheduler": "unipc", "LCMScheduler": "lcm",
}  # fmt: skip
_CURVES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}


def network(said: Said, file: Path) -> UNetConfig:
    """unet/config.json."""
    only(said, _UNET, file)
    widths = _numbers(said, "block_out_channels", file)
    levels = len(widths)
    downs, ups = said.get("down_block_types", ()), said.get("up_block_types", ())
    crossed = ["CrossAttn" in str(kind) for kind in downs]
    mirrored = ["CrossAttn" in str(kind) for kind in reversed(ups)]
    plain = {kind for kind in [*downs, *ups] if str(kind).replace("CrossAttn", "") not in ("DownBlock2D", "UpBlock2D")}
    if plain or crossed != mirrored or len(crossed) != levels:
        raise InputError(f"{file}: blocks {downs} and {ups} make no U-Net that is known here")
    if any(width % widths[0] for width in widths):
        raise InputError(f"{file}: block_out_channels {widths} are no multiples of the first")
    layers = _each(said, "transformer_layers_per_block", 1, levels, file)
    heads = _each(said, "attention_head_dim", 8, levels, file)  # it counts heads, whatever its name
    head_widths = {width // count for width, count in zip(widths, heads, strict=True)}
    if len(set(heads)) > 1 and len(head_widths) > 1:
        raise InputError(f"{file}: attention_head_dim {heads} is neither one number of heads nor one width of them")
    pooled = said.get("addition_embed_type")
    if pooled not in (None, "text_time"):
        raise InputError(f"{file}: addition_embed_type is {pooled!r}; only text_time is known here")
    shift = said.get("resnet_time_scale_shift") or "default"
    if shift not in ("default", "scale_shift"):
        raise InputError(f"{file}: resnet_time_scale_shift is {shift!r}; only default and scale_shift are known here")
    leaves = _number(said, "out_channels", 4, file)
    return UNetConfig(
        channels=leaves,
        beside=_number(said, "in_channels", 4, file) - leaves,
        width=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=_number(said, "layers_per_block", 2, file),
        depths=tuple(depth if cross else 0 for depth, cross in zip(layers, crossed, strict=True)),
        middle_depth=layers[-1],
        sees_itself=(True,) * levels,
        feed_forward=True,
        projection="linear" if said.get("use_linear_projection") else "conv",
        head_width=head_widths.pop() if len(set(heads)) > 1 else 64,
        heads=heads[0] if len(set(heads)) == 1 else 0,
        text_width=_number(said, "cross_attention_dim", 1280, file),
        vector_width=_number(said, "projection_class_embeddings_input_dim", 0, file) if pooled else 0,
        guidance_width=_number(said, "time_cond_proj_dim", 0, file),
        scale_shift=shift == "scale_shift",
        clock_scale=1.0,
        groups=_number(said, "norm_num_groups", 32, file),
    )


def autoencoder(said: Said, file: Path) -> VaeConfig:
    """vae/config.json."""
    only(said, _VAE, file)
    widths = _numbers(said, "block_out_channels", file)
    blocks = {*said.get("down_block_types", ()), *said.get("up_block_types", ())}
    mixes = {bool(said.get(key, True)) for key in ("use_quant_conv", "use_post_quant_conv")}
    if blocks - {"DownEncoderBlock2D", "UpDecoderBlock2D"} or any(w % widths[0] for w in widths) or len(mixes) > 1:
        raise InputError(f"{file}: is of a {said.get('_class_name')} that is not known here")
    return VaeConfig(
        latents=_number(said, "latent_channels", 4, file),
        width=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=_number(said, "layers_per_block", 1, file),
        groups=_number(said, "norm_num_groups", 32, file),
        mixes=mixes.pop(),
        scale=float(said.get("scaling_factor") or 0.18215),
        shift=float(said.get("shift_factor") or 0.0),
    )


def encoder(said: Said, file: Path) -> ClipConfig:
    """text_encoder/config.json."""
    act, width = said.get("hidden_act", "quick_gelu"), _number(said, "hidden_size", 512, file)
    if act not in ("quick_gelu", "gelu") or said.get("layer_norm_eps", 1e-5) != 1e-5:
        raise InputError(f"{file}: is no text encoder of CLIP (hidden_act {act!r})")
    projects = "CLIPTextModelWithProjection" in (said.get("architectures") or ())
    vocabulary, end = _number(said, "vocab_size", 49408, file), _number(said, "eos_token_id", 49407, file)
    return ClipConfig(
        width=width,
        layers=_number(said, "num_hidden_layers", 12, file),
        heads=_number(said, "num_attention_heads", 8, file),
        inner=_number(said, "intermediate_size", 2048, file),
        vocabulary=vocabulary,
        length=_number(said, "max_position_embeddings", 77, file),
        end=min(49407, vocabulary - 1) if end == 2 else end,  # until 2023 the files said 2 and meant the highest
        quick=act == "quick_gelu",
        projection=_number(said, "projection_dim", 512, file) if projects else 0,
    )


def habits(said: Said, file: Path) -> Habits:
    """scheduler/scheduler_config.json."""
    curve, prediction = said.get("beta_schedule", "linear"), said.get("prediction_type", "epsilon")
    if curve not in _CURVES or said.get("trained_betas") is not None or said.get("num_train_timesteps", 1000) != 1000:
        raise InputError(f"{file}: its betas ({curve!r}) make no table that is known here")
    if prediction not in _PREDICTIONS:
        raise InputError(f"{file}: predicts {prediction!r}, which is not known here; decide with --prediction")
    ends = (float(said.get("beta_start", 1e-4)), float(said.get("beta_end", 0.02)))
    table = DiscreteSchedule(_CURVES[curve], *ends, zero_terminal_snr=bool(said.get("rescale_betas_zero_snr")))
    sampler, spacing = SAMPLERS.get(str(said.get("_class_name")), "dpmpp_2m"), said.get("timestep_spacing")
    return Habits(
        table=table,
        prediction=_PREDICTIONS[prediction],
        sampler=sampler,
        spacing=None if spacing is None else str(spacing),
        offset=_number(said, "steps_offset", 0, file),
        end=None if said.get("set_alpha_to_one") is None else "zero" if said["set_alpha_to_one"] else "first",
        karras=bool(said.get("use_karras_sigmas")),
        turbo=sampler in ("euler", "euler_a") and spacing == "trailing" and not table.zero_terminal_snr,
    )


def only(said: Said, known: Said, file: Path) -> None:
    """InputError, naming it, where something is said otherwise than is known."""
    for key, value in known.items():
        if said.get(key, value) != value and (value or said[key]):
            raise InputError(f"{file}: {key} is {said[key]!r}; only {value!r} is known here")


def _number(said: Said, key: str, default: int, file: Path) -> int:
    value = default if said.get(key) is None else said[key]
    if type(value) is not int or not 0 <= value <= 1 << 20:
        raise InputError(f"{file}: {key} is {value!r}, not a number that makes sense")
    return value


def _numbers(said: Said, key: str, file: Path) -> list[int]:
    value = said.get(key)
    if not isinstance(value, Sequence) or not value or any(type(one) is not int or one < 1 for one in value):
        raise InputError(f"{file}: {key} is {value!r}, not a list of sizes")
    return list(value)


def _each(said: Said, key: str, default: int, count: int, file: Path) -> list[int]:
    """One number for each level, or one for all."""
    value = default if said.get(key) is None else said[key]
    many = [value] * count if type(value) is int else value
    if not isinstance(many, list) or len(many) != count or any(type(one) is not int or one < 1 for one in many):
        raise InputError(f"{file}: {key} is {value!r}, not a number for each of {count} levels")
    return many
