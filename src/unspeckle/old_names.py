"""The names that version 0.1 wrote into models, run folders and images, beside those of today.

Files of that version are read through these tables. They are used the other way round for a model's hash, which is
defined by the first names, so that it never changes: an image drawn by version 0.1 is replayed by the same model.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

Names = Mapping[str, str]  # old to new

# Tensors: pieces of dotted names, of one or two segments, ^ where a name begins. Longer pieces are tried first.
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

# The dataclasses by whose text (repr) a Stable Diffusion's hash is defined, by their names of today: the old class,
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

# Fields of plan.json, which had no sections, and where they stand today
PLAN = {
    "asked": "options", "corpus": "corpus_fingerprint",
    **{name: f"model.{name}" for name in ("size", "preset", "network", "autoencoder", "schedule", "prediction")},
    "text": "model.text_encoder", "clock": "model.time_conditioning",
    "steps": "work.steps", "batch": "work.batch_size", "seed": "work.seed", "latent_steps": "work.autoencoder_steps",
    "word_steps": "work.text_steps", "mirror": "work.flip", "balance": "work.balance",
    "encode_once": "work.cache_latents",
    **{name: f"compute.{name}" for name in ("device", "precision", "compile", "threads")},
    "distribution": "objective.time_distribution", "weight": "objective.loss_weighting", "gamma": "objective.gamma",
    "drop": "objective.caption_dropout",
    "optimizer": "optimizer.name", "learning_rate": "optimizer.learning_rate",
    "muon_rate": "optimizer.muon_learning_rate", "weight_decay": "optimizer.weight_decay",
    "warmup": "optimizer.warmup_steps", "decay": "optimizer.decay_fraction", "clip": "optimizer.max_grad_norm",
    "averages": "optimizer.ema_widths", "average_every": "optimizer.ema_every",
    "parameters": "measured.parameter_count", "rate": "measured.images_per_second",
    "seconds": "measured.total_seconds", "memory": "measured.memory_bytes", "disk": "measured.disk_bytes",
    "work": "measured.flops_per_image", "peak": "measured.peak_flops", "mfu": "measured.mfu",
}  # fmt: skip
DISTILLATION_PLAN = {
    "teacher": "distillation.teacher_hash", "scale": "distillation.guidance_scale",
    "counts": "distillation.step_counts", "moves": "distillation.teacher_steps",
}  # fmt: skip
LORA_PLAN = {
    "origin": "lora.base_hash", "rank": "lora.rank", "words": "lora.train_text_encoder", "layout": "lora.layout",
    "scale": "lora.guidance_scale",
}  # fmt: skip
OPTIONS = {
    "pictures": "images", "batch": "batch_size", "mirror": "flip", "licence": "license", "scale": "guidance_scale",
    "words": "train_text_encoder",
}  # fmt: skip
# What a plan of version 0.1 left out: the objective of a model, and that of a LoRA
_OBJECTIVE = {"time_distribution": "logit_normal", "mean": 0.3, "std": 1.0}
_LORA_OBJECTIVE = {"time_distribution": "uniform", "loss_weighting": "plain", "min_c_out": 1e-3}

# A checkpoint's tensors are named after the parameters that they belong to
_CHECKPOINT_PREFIX = re.compile(
    r"weights\.|optimizer\.(?:momentum|step|exp_avg|exp_avg_sq)\.|(?:average|ema)-[0-9.e-]*[0-9]\."
)
_COUNTERS = {"skipped": "skipped_steps"}
LOG = {
    "pictures": "images_seen", "norm": "grad_norm", "rate": "images_per_second", "skipped": "skipped_steps",
    "held_out": "validation_loss", "held_out_shares": "validation_errors",
}  # fmt: skip

# latents.safetensors in a run of a LoRA
LATENTS_TENSORS = {"heldout": "validation"}
LATENTS_METADATA = {"corpus": "corpus_fingerprint", "origin": "base_hash"}


def rename_tensor(part: str, name: str, *, to_old: bool = False) -> str:
    """The name of today of a tensor of that part of a model ("network", "text", "autoencoder", "student"), without the
    part's name before it; or with to_old the name of version 0.1."""
    pieces, inner_pieces = _pieces(part, to_old)
    segments, renamed, i = name.split("."), [], 0
    while i < len(segments):
        for end in (i + 2, i + 1):  # of the longest piece first
            if (piece := pieces.get(".".join(segments[i:end]))) is not None:
                break
        renamed.append(segments[i] if piece is None else piece)
        pieces, i = inner_pieces, end
    return ".".join(renamed)


@cache
def _pieces(part: str, to_old: bool) -> tuple[Names, Names]:
    """Pieces of names, of one or two segments, and what takes their places: where a name begins, and within it."""
    start: dict[str, str] = {}
    inner: dict[str, str] = {}
    for old, new in _TENSORS[part].items():
        pieces, old = (start, old[1:]) if old.startswith("^") else (inner, old)
        pieces.update({new: old} if to_old else {old: new})
    return inner | start, inner


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


def is_old_plan(values: Mapping[str, Any]) -> bool:
    """Whether plan.json was written by version 0.1."""
    return "asked" in values


def rename_plan(values: Mapping[str, Any]) -> dict[str, Any]:
    """A plan of version 0.1 by the names of today, in sections."""
    kind = DISTILLATION_PLAN if "teacher" in values else LORA_PLAN if "rank" in values else {}
    fields = {
        **{f"objective.{name}": value for name, value in (_LORA_OBJECTIVE if "rank" in values else _OBJECTIVE).items()},
        **{(PLAN | kind).get(name, name): value for name, value in values.items() if name != "times"},
    }
    if isinstance(times := values.get("times"), list) and len(times) == 2:
        fields["objective.mean"], fields["objective.std"] = times
    renamed: dict[str, Any] = {}
    for name, value in fields.items():
        section, _, field = name.rpartition(".")
        (renamed.setdefault(section, {}) if section else renamed)[field] = value
    if isinstance(options := renamed.get("options"), dict):
        renamed["options"] = rename_fields(options, OPTIONS)
    for name, value in renamed.get("model", {}).items():
        if isinstance(value, dict):
            renamed["model"][name] = _rename_plan_config(name, value)
    return renamed


def plan_to_old(values: Mapping[str, Any]) -> dict[str, Any]:
    """A plan of today as version 0.1 wrote it: to write files of that version in tests."""
    kind = DISTILLATION_PLAN if "distillation" in values else LORA_PLAN if "lora" in values else {}
    sections = {k: v for k, v in values.items() if isinstance(v, dict) and k != "options"}
    fields = {k: v for k, v in values.items() if k not in sections}
    fields |= {f"{section}.{name}": value for section, part in sections.items() for name, value in part.items()}
    fields["options"] = rename_fields(fields["options"], OPTIONS, to_old=True)
    for name in ("network", "text_encoder", "autoencoder", "schedule"):
        fields[f"model.{name}"] = _rename_plan_config(name, fields[f"model.{name}"], to_old=True)
    times = [fields.pop("objective.mean"), fields.pop("objective.std")]
    del fields["objective.min_c_out"]
    return {**rename_fields(fields, PLAN | kind, to_old=True), "times": times}


def _rename_plan_config(name: str, config: Mapping[str, Any], to_old: bool = False) -> dict[str, Any]:
    """A configuration in a plan, where all but the schedule's do not say of which kind they are."""
    if name == "schedule":
        return _rename_config("schedule", config, to_old)
    if name == "network":
        return rename_fields(
            config, TRANSFORMER if "stretch" in config or "mlp_ratio" in config else UNET, to_old=to_old
        )
    if name == "autoencoder":
        is_pixels = "deviation" in config or "std" in config
        is_latents = "factor" in config or "downsampling_factor" in config
        return rename_fields(config, PIXELS if is_pixels else LATENTS if is_latents else VAE, to_old=to_old)
    if "encoders" not in config:
        return rename_fields(config, TEXT, to_old=to_old)
    encoders = [rename_fields(encoder, CLIP_ENCODER, to_old=to_old) for encoder in config["encoders"]]
    return {**rename_fields(config, CLIP, to_old=to_old), "encoders": encoders}


def rename_checkpoint_tensor(name: str, part: str = "", *, to_old: bool = False) -> str:
    """The name of today of a tensor in a checkpoint of version 0.1, such as optimizer.exp_avg.network.enter.weight.

    part: of a model, where the checkpoint is of that part alone ("autoencoder"): its name is then not in the tensor's.
    """
    found = _CHECKPOINT_PREFIX.match(name)
    prefix, rest = (found[0], name[found.end() :]) if found else ("", name)
    prefix = re.sub("^ema-", "average-", prefix) if to_old else re.sub("^average-", "ema-", prefix)
    if part:
        return prefix + rename_tensor(part, rest, to_old=to_old)
    head, _, rest = rest.partition(".")
    if head in ("held", "adapters"):  # of a LoRA: held.network/down/0/….up
        layer, _, leaf = rest.rpartition(".")
        module, _, path = layer.replace("/", ".").partition(".")
        layer = f"{module}.{rename_tensor(module, path, to_old=to_old)}".replace(".", "/")
        return f"{prefix}{'held' if to_old else 'adapters'}.{layer}.{leaf}"
    if head in ("text", "text_encoder"):
        return f"{prefix}{'text' if to_old else 'text_encoder'}.{rename_tensor('text', rest, to_old=to_old)}"
    return f"{prefix}{head}.{rename_tensor(head, rest, to_old=to_old)}"


def rename_checkpoint_counters(counters: Mapping[str, float], *, to_old: bool = False) -> dict[str, float]:
    """What a checkpoint counts: skipped steps, and the step at which each EMA was updated last."""
    old, new = ("^ema-", "seen-") if to_old else ("^seen-", "ema-")
    return {re.sub(old, new, k): v for k, v in rename_fields(counters, _COUNTERS, to_old=to_old).items()}


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
