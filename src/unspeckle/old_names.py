"""The names that version 0.1 wrote into models, run folders and images, beside those of today.

Files of that version are read through these tables. They are used the other way round for a model's hash, which is
defined by the first names, so that it never changes: a picture drawn before is replayed by the same model.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

Names = Mapping[str, str]  # old to new

# Tensors: pieces of dotted names, ^ where a name begins. Longer pieces are tried first.
_ATTENTION = {
    "itself": "self_attn", "words": "cross_attn", "feed.enter": "feed_forward.proj_in",
    "feed.out": "feed_forward.proj_out", "feed": "feed_forward", "query": "to_q", "key": "to_k", "value": "to_v",
    "out": "to_out",
}  # fmt: skip
_NETWORK = {
    "^enter": "conv_in", "^leave": "conv_out", "^norm": "norm_out", "^down": "down_blocks", "^up": "up_blocks",
    "^shrink": "downsamplers", "^grow": "upsamplers", "^middle1": "mid_block_1", "^middle2": "mid_block_2",
    "^time1": "time_embed_1", "^time2": "time_embed_2", "^vector1": "vector_embed_1", "^vector2": "vector_embed_2",
    "^guidance": "guidance_embed", "^draft.norm": "coarse_predictor.norm_out",
    "^draft.out": "coarse_predictor.proj_out", "^draft.places": "coarse_predictor.position_embedding",
    "^draft": "coarse_predictor", "block": "res_block", "time": "time_emb_proj", "skip": "shortcut",
    "transformer.enter": "transformer.proj_in", "transformer.leave": "transformer.proj_out", **_ATTENTION,
    "^merge": "token_merges", "^split": "token_splits", "^middle": "mid_block", "^tell": "out_modulation",
    "tell": "to_modulation", "attention.enter": "joint_attn.to_qkv", "attention.words": "joint_attn.text_to_kv",
    "attention": "joint_attn", "moved": "modulation_bias", "feed.near": "feed_forward.depthwise_weight",
}  # fmt: skip
_TEXT = {
    "^token": "token_embedding", "^place": "position_embedding", "^norm": "final_norm", **_ATTENTION,
    "inner": "fc1", "leave": "fc2", "token": "token_embedding", "place": "position_embedding", "norm": "final_norm",
    "project": "text_projection",
}  # fmt: skip
_AUTOENCODER = {
    "^enter": "conv_in", "^leave": "conv_out", "^down": "encoder_layers", "^up": "decoder_layers",
    "^narrow": "to_latents", "^standard": "latent_norm", "^widen": "from_latents",
    "^mix": "quant_conv", "^unmix": "post_quant_conv",
    **{
        f"^{half}.{old}": f"{half}.{new}"
        for half in ("encoder", "decoder")
        for old, new in {
            "enter": "conv_in", "leave": "conv_out", "norm": "norm_out", "down": "down_blocks", "up": "up_blocks",
            "shrink": "downsamplers", "grow": "upsamplers", "middle": "mid_block",
        }.items()
    },
    "skip": "shortcut", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out",
}  # fmt: skip
_DETECTOR = {
    "^enter": "conv_in", "^up": "coarse_proj", "^leave": "neck", "^out": "conv_out", "one": "conv1", "other": "conv2",
}  # fmt: skip
_TENSORS = {
    "network": _NETWORK, "student": _NETWORK, "text": _TEXT, "autoencoder": _AUTOENCODER, "detector": _DETECTOR,
}  # fmt: skip

# Fields of configurations
UNET = {
    "beside": "concat_channels", "patch": "patch_size", "width": "base_channels",
    "multipliers": "channel_multipliers", "blocks": "blocks_per_level", "depths": "transformer_depths",
    "middle_depth": "mid_transformer_depth", "sees_itself": "self_attention", "projection": "transformer_projection",
    "clock_scale": "time_scale", "draft": "coarse_predictor_layers", "groups": "norm_groups",
}  # fmt: skip
TRANSFORMER = {
    "beside": "concat_channels", "patch": "patch_size", "layers": "depths", "stretch": "mlp_ratio",
    "clock_scale": "time_scale", "draft": "coarse_predictor_layers",
}  # fmt: skip
TEXT = {"vocabulary": "vocab_size", "length": "context_length"}
PIXELS = {"deviation": "std"}
LATENTS = {"channels": "latent_channels", "factor": "downsampling_factor", "blocks": "blocks_per_level"}
DISCRETE_SCHEDULE = {
    "curve": "beta_schedule", "start": "beta_start", "end": "beta_end", "count": "num_train_timesteps",
    "zero_snr": "zero_terminal_snr",
}  # fmt: skip
VAE = {
    "latents": "latent_channels", "width": "base_channels", "multipliers": "channel_multipliers",
    "blocks": "blocks_per_level", "groups": "norm_groups", "mixes": "use_quant_conv", "scale": "scaling_factor",
    "shift": "shift_factor",
}  # fmt: skip
CLIP = {"pooled": "use_pooled", "zeros": "zero_empty_prompts"}
CLIP_ENCODER = {
    "inner": "feed_forward_width", "vocabulary": "vocab_size", "length": "context_length", "end": "eos_token_id",
    "quick": "quick_gelu", "projection": "projection_width", "skip": "skipped_layers",
    "final_norm": "normalize_tokens",
}  # fmt: skip
TINY_AUTOENCODER = {
    "latents": "latent_channels", "width": "base_channels", "down": "encoder_blocks", "up": "decoder_blocks",
    "scale": "scaling_factor", "shift": "shift_factor", "encodes": "has_encoder",
}  # fmt: skip
DETECTOR = {"halves": "hybrid_nouns", "size": "image_size"}
CARD = {
    "licence": "license", "grid": "timestep_spacing", "scale": "guidance_scale", "clamp": "clamp_denoised",
    "few": "step_counts",
}  # fmt: skip
_KINDS = {"table": "discrete", "identity": "pixels"}
_KIND_FIELDS = {
    "unet": UNET, "table": DISCRETE_SCHEDULE, "identity": PIXELS, "latents": LATENTS,
}  # fmt: skip
SAMPLERS = {"euler_a": "euler_ancestral"}

# The dataclasses by whose text (repr) the hash of a Stable Diffusion is defined, by their names of today: the old class,
# its fields in their old order, and what they are called today where that differs
_CLASSES: Mapping[str, tuple[str, str, Names]] = {
    "DiscreteSchedule": ("Table", "curve start end count zero_snr", DISCRETE_SCHEDULE),
    "UNetConfig": (
        "UNetConfig",
        "channels beside patch width multipliers blocks depths middle_depth sees_itself feed_forward projection "
        "head_width heads text_width vector_width guidance_width scale_shift clock_scale draft groups",
        UNET,
    ),
    "CLIPTextEncodersConfig": ("ClipTextsConfig", "encoders pooled zeros", CLIP),
    "CLIPTextConfig": (
        "ClipConfig",
        "width layers heads inner vocabulary length end quick projection skip final_norm",
        CLIP_ENCODER,
    ),
    "VAEConfig": ("VaeConfig", "latents width multipliers blocks groups mixes scale shift", VAE),
    "TinyAutoencoderConfig": ("TinyVaeConfig", "latents width down up scale shift encodes", TINY_AUTOENCODER),
}

# What an image's metadata hold
IMAGE_METADATA = {
    "negative": "negative_prompt", "grid": "timestep_spacing", "scale": "guidance_scale",
    "guidance": "guidance_method", "rescale": "guidance_rescale", "interval": "guidance_interval",
    "guide": "guide_model", "threshold": "dynamic_threshold", "paste": "paste_original",
    "variation": "variation_seed", "hires": "hires_size", "tiles": "tile_size",
}  # fmt: skip


def rename_tensor(part: str, name: str, *, to_old: bool = False) -> str:
    """The name of today of a tensor of that part of a model ("network", "text", "autoencoder", "student"), without the
    part's name before it; or with to_old the name of version 0.1."""
    pattern, replacements = _pattern(part, to_old)
    return pattern.sub(lambda found: replacements[(found.lastindex or 0) - 1], name)


@cache
def _pattern(part: str, to_old: bool) -> tuple[re.Pattern[str], list[str]]:
    """One group for each piece, the longest pieces first, and what takes the place of each."""
    pairs = []
    for old, new in _TENSORS[part].items():
        start, old = (r"\A", old[1:]) if old.startswith("^") else (r"(?<![^.])", old)
        pairs.append((start, new, old) if to_old else (start, old, new))
    pairs.sort(key=lambda pair: (pair[1].count("."), pair[0] == r"\A", len(pair[1])), reverse=True)
    pieces = "|".join(rf"({start}{re.escape(piece)}(?![^.]))" for start, piece, _ in pairs)
    return re.compile(pieces), [replacement for _, _, replacement in pairs]


def old_repr(value: Any) -> str:
    """repr(value) as version 0.1 gave it, by its names of classes and fields; also of what tuples and lists hold."""
    if isinstance(value, tuple | list):
        items = [old_repr(item) for item in value]
        if isinstance(value, list):
            return f"[{', '.join(items)}]"
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if type(value).__name__ not in _CLASSES:
        return repr(value)
    old_class, old_fields, names = _CLASSES[type(value).__name__]
    fields = [f"{old}={old_repr(getattr(value, names.get(old, old)))}" for old in old_fields.split()]
    return f"{old_class}({', '.join(fields)})"


def rename_fields(values: Mapping[str, Any], names: Names, *, to_old: bool = False) -> dict[str, Any]:
    """The object with its fields renamed."""
    table = {new: old for old, new in names.items()} if to_old else names
    return {table.get(name, name): value for name, value in values.items()}


def rename_model_metadata(metadata: Mapping[str, Any], *, to_old: bool = False) -> dict[str, Any]:
    """A model file's metadata (format 1) by the names of today; or those of today by the names of format 1."""
    renamed = rename_fields(metadata, {"clock": "time_conditioning"}, to_old=to_old)
    for section in ("network", "schedule", "text", "autoencoder"):
        if isinstance(value := renamed.get(section), dict):
            renamed[section] = _rename_config(section, value, to_old)
    if isinstance(card := renamed.get("card"), dict):
        renamed["card"] = rename_card(card, to_old=to_old)
    if isinstance(student := renamed.get("student"), dict):
        renamed["student"] = rename_model_metadata(student, to_old=to_old)
    return renamed


def rename_card(card: Mapping[str, Any], *, to_old: bool = False) -> dict[str, Any]:
    """A model's card."""
    return rename_sampler(rename_fields(card, CARD, to_old=to_old), to_old=to_old)


def rename_sampler(values: dict[str, Any], *, to_old: bool = False) -> dict[str, Any]:
    """The object with the sampler that it names by its name of today."""
    table = {new: old for old, new in SAMPLERS.items()} if to_old else SAMPLERS
    sampler = values.get("sampler")
    return {**values, "sampler": table.get(sampler, sampler)} if isinstance(sampler, str) else values


def rename_image_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """An image's metadata by the names of today, whichever version wrote them."""
    return rename_sampler(rename_fields(metadata, IMAGE_METADATA))


def _rename_config(section: str, config: Mapping[str, Any], to_old: bool) -> dict[str, Any]:
    kinds = {new: old for old, new in _KINDS.items()} if to_old else _KINDS
    kind = str(config.get("kind"))
    old_kind = kinds.get(kind, kind) if to_old else kind
    if section == "text":
        fields: Names = TEXT
    elif old_kind == "transformer":
        fields = TRANSFORMER
    else:
        fields = _KIND_FIELDS.get(old_kind, {})
    renamed = rename_fields(config, fields, to_old=to_old)
    return {**renamed, "kind": kinds.get(kind, kind)} if "kind" in config else renamed
