"""A single file of the original code as a checkpoint. It states no configuration, so its tensors' shapes must tell."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer as BPE
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.checkpoint_parts import check_known, convert_tensors
from unspeckle.formats.stable_diffusion import original_names
from unspeckle.formats.stable_diffusion.checkpoint import (
    Family,
    NetworkInputs,
    SchedulerDefaults,
    StableDiffusionCheckpoint,
)
from unspeckle.formats.stable_diffusion.clip_vocabulary import find_tokenizer
from unspeckle.formats.stable_diffusion.families import find_family, unet_checkpoint, unet_inputs
from unspeckle.formats.stable_diffusion.shape_inference import infer_clip_config, infer_unet_config, infer_vae_config
from unspeckle.schedule import STABLE_DIFFUSION
from unspeckle.text.clip import CLIPTextConfig, CLIPTextEncodersConfig
from unspeckle.text.clip_tokenizer import END_TOKEN, CLIPTokenizer

LATENT_SCALE_KEY = "unspeckle.latent_scale"  # in the metadata, where the scaling factor is not the family's
_FIRST_UNET_TENSOR = "input_blocks.0.0.weight"
_PREDICTION_NAMES = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v", "v-prediction": "v"}


@dataclass
class _TextPart:
    """A text encoder that was found in the file."""

    # of its tensors' names
    prefix: str
    # whether the names behind the prefix are OpenCLIP's, not those of transformers
    is_openclip: bool
    # by the names behind the prefix
    tensors: dict[str, Tensor]


def has_unet(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file with these tensors may be a checkpoint with a U-Net."""
    return original_names.UNET_PREFIX + _FIRST_UNET_TENSOR in tensors


def read_single_file(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    file: Path,
    prediction: str | None = None,
    bpe: BPE | None = None,
) -> StableDiffusionCheckpoint:
    """The checkpoint of a file with these tensors and metadata.

    prediction: "eps" or "v", what its network predicts; None = what the file says, or what follows from its family.
    bpe: the encoding of its tokenizer; None = one is looked for. InputError, one line, where the file is of no
    supported kind, incomplete, or does not say what it predicts."""
    unet_tensors = _with_prefix(tensors, original_names.UNET_PREFIX)
    vae_tensors = _with_prefix(tensors, original_names.VAE_PREFIX)
    text_parts = _find_text_parts(tensors)
    unet_config = infer_unet_config(unet_tensors, file)
    if not text_parts:
        raise InputError(f"{file}: holds a U-Net but no text encoder that is supported; get the whole model")
    is_xl = bool(unet_config.vector_width)
    family = find_family(unet_config, len(text_parts))
    vae_config = infer_vae_config(vae_tensors, float(metadata.get(LATENT_SCALE_KEY) or family.latent_scale), file)
    encoder_configs = tuple(infer_clip_config(part.tensors, part.is_openclip, is_xl, file) for part in text_parts)
    inputs = unet_inputs(unet_config, encoder_configs)
    known = prediction or _stated_prediction(tensors, metadata, file) or _usual_prediction(family, inputs, file)
    checkpoint = unet_checkpoint(
        path=file,
        unet_config=unet_config,
        vae_config=vae_config,
        text_config=CLIPTextEncodersConfig(encoder_configs, is_xl, is_xl and len(text_parts) == 2),
        tokenizer=_find_tokenizer(file, encoder_configs[0], text_parts, bpe),
        scheduler_defaults=_scheduler_defaults(family, inputs, known, "ztsnr" in tensors),
        text_prefixes=[(part.prefix, part.is_openclip) for part in text_parts],
    )
    ignored = _ignored_pattern(text_parts, encoder_configs, is_xl)
    prefixes = tuple(part.prefix for part in checkpoint.parts.values())
    check_known({name: one for name, one in tensors.items() if not name.startswith(prefixes)}, set(), file, ignored)
    part_tensors = (unet_tensors, vae_tensors, *(part.tensors for part in text_parts))
    for (name, part), their_tensors in zip(checkpoint.parts.items(), part_tensors, strict=True):
        our_tensors = convert_tensors(part, "original", their_tensors, file, ignored)
        checkpoint.tensors |= {f"{name}.{key}": tensor for key, tensor in our_tensors.items()}
    return checkpoint


def describe_unknown_file(tensors: Mapping[str, Tensor]) -> str:
    """What a file that is no checkpoint seems to be, to be said after its name."""
    names = sorted(tensors)
    if any("lora" in name for name in names):
        return "is a LoRA, which changes a model but is none (add it to a model with --lora)"
    if any(name.startswith(("decoder.", original_names.VAE_PREFIX + "decoder.")) for name in names):
        return "is an autoencoder without a U-Net"
    if not names:
        return "is empty"
    return f"holds no supported U-Net, only {len(names)} tensors such as '{names[0][:60]}'"


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _find_text_parts(tensors: Mapping[str, Tensor]) -> list[_TextPart]:
    text_parts = []
    for prefix, is_openclip in original_names.TEXT_PREFIXES:
        text_tensors = _with_prefix(tensors, prefix)
        if not is_openclip and "embeddings.token_embedding.weight" in text_tensors:  # transformers 5 names them so
            text_tensors = {f"text_model.{name}": tensor for name, tensor in text_tensors.items()}
        if text_tensors:
            text_parts.append(_TextPart(prefix, is_openclip, text_tensors))
    return text_parts


def _find_tokenizer(file: Path, config: CLIPTextConfig, text_parts: list[_TextPart], bpe: BPE | None) -> CLIPTokenizer:
    pad_tokens = ["!" if part.is_openclip else END_TOKEN for part in text_parts]
    if bpe is not None:
        return CLIPTokenizer(bpe, config.context_length, pad_tokens)
    return find_tokenizer(file.parent, config, pad_tokens)


def _ignored_pattern(text_parts: list[_TextPart], configs: tuple[CLIPTextConfig, ...], is_xl: bool) -> str:
    """A regular expression of the tensors that are not needed."""
    pattern = original_names.IGNORED_PATTERN
    for part, config in zip(text_parts, configs, strict=True):
        if part.is_openclip and not is_xl:  # Stable Diffusion 2 reads the last layer but one
            pattern += rf"|transformer\.resblocks\.{config.layers}\.|text_projection$"
    return pattern


def _stated_prediction(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path) -> str | None:
    """What the network predicts by the file's metadata, by a tensor that marks it, or by a .yaml file beside it."""
    stated = _PREDICTION_NAMES.get(metadata.get("modelspec.prediction_type", ""))
    if stated is not None:
        return stated
    if "v_pred" in tensors or metadata.get("modelspec.architecture", "").endswith("-v"):
        return "v"
    yaml_file = file.with_suffix(".yaml")
    if yaml_file.is_file():
        yaml_text = yaml_file.read_text(encoding="utf-8", errors="replace")
        return "v" if re.search(r"parameterization:\s*[\"']?v\b", yaml_text) else "eps"
    return None


def _usual_prediction(family: Family, inputs: NetworkInputs, file: Path) -> str:
    """What the networks of the family predict. InputError for Stable Diffusion 2, of which there are both."""
    if family.name != "2" or inputs.concat_channels:
        return "eps"
    raise InputError(
        f"{file}: is a Stable Diffusion 2, and its tensors do not tell whether it predicts v (the models of 768 "
        f"pixels) or eps (those of 512); decide with --prediction v or --prediction eps"
    )


def _scheduler_defaults(
    family: Family, inputs: NetworkInputs, prediction: str, zero_terminal_snr: bool
) -> SchedulerDefaults:
    is_large = family.name == "2" and prediction == "v"
    return SchedulerDefaults(
        schedule=replace(STABLE_DIFFUSION, zero_terminal_snr=zero_terminal_snr),
        prediction=prediction,
        sampler="lcm" if inputs.guidance_embedding_width else "dpmpp_2m",
        timestep_spacing="trailing" if zero_terminal_snr else None,
        image_size=1024 if family.size_values else 768 if is_large else 512,
    )
