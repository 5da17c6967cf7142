"""A folder as diffusers writes it, as a checkpoint: configurations from its JSON files, tensors from its
safetensors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.checkpoint_parts import convert_tensors
from unspeckle.formats.safetensors_io import read_safetensors
from unspeckle.formats.stable_diffusion import diffusers_names
from unspeckle.formats.stable_diffusion.checkpoint import SchedulerDefaults, StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.diffusers_config import (
    parse_clip_config,
    parse_scheduler_config,
    parse_unet_config,
    parse_vae_config,
)
from unspeckle.formats.stable_diffusion.families import unet_checkpoint
from unspeckle.text.clip import CLIPTextConfig, CLIPTextEncodersConfig
from unspeckle.text.clip_tokenizer import CLIPTokenizer, read_pad_token

MODEL_INDEX = "model_index.json"
TEXT_ENCODER_FOLDERS = ("text_encoder", "text_encoder_2")
UNET_COMPONENTS = ("unet", "vae", *TEXT_ENCODER_FOLDERS, "tokenizer", "tokenizer_2", "scheduler")


def is_unet_pipeline(pipeline_class: str) -> bool:
    """Whether the pipeline that a model_index.json names is one of those that are read here."""
    is_stable_diffusion = pipeline_class.startswith(("StableDiffusion", "LatentConsistencyModel"))
    return is_stable_diffusion and "3" not in pipeline_class and "Upscale" not in pipeline_class


def read_unet_folder(
    folder: Path, model_index: dict[str, Any], prediction: str | None = None
) -> StableDiffusionCheckpoint:
    """The checkpoint of a folder with that model_index.json. prediction: "eps" or "v", what its network predicts; None
    = as the folder says. InputError, one line, where it is of no supported kind, incomplete or damaged."""
    if not (folder / "unet").is_dir():
        raise InputError(f"{folder}: has no folder 'unet'; copy or download it again")
    text_folders = [name for name in TEXT_ENCODER_FOLDERS if (folder / name).is_dir()]
    if not text_folders:
        raise InputError(f"{folder}: has neither text_encoder nor text_encoder_2; copy or download it again")
    unet_json = read_json_object(folder / "unet" / "config.json")
    unet_config = parse_unet_config(unet_json, folder / "unet" / "config.json")
    vae_config = parse_vae_config(read_json_object(folder / "vae" / "config.json"), folder / "vae" / "config.json")
    is_xl = bool(unet_config.vector_width)
    encoder_configs = tuple(_read_clip_config(folder / name / "config.json", is_xl) for name in text_folders)
    zero_empty_prompts = is_xl and bool(model_index.get("force_zeros_for_empty_prompt", len(text_folders) == 2))
    sample_size = unet_json.get("sample_size") or 64
    sample_side = int(sample_size if isinstance(sample_size, int) else max(sample_size))
    defaults = parse_scheduler_config(
        read_json_object(folder / "scheduler" / "scheduler_config.json"), folder / "scheduler"
    )
    checkpoint = unet_checkpoint(
        path=folder,
        unet_config=unet_config,
        vae_config=vae_config,
        text_config=CLIPTextEncodersConfig(encoder_configs, is_xl, zero_empty_prompts),
        tokenizer=_read_tokenizer(folder, text_folders, encoder_configs[0]),
        scheduler_defaults=replace(
            _pipeline_defaults(defaults, str(model_index["_class_name"]), is_xl),
            image_size=sample_side * vae_config.downsampling_factor,
            prediction=prediction or defaults.prediction,
        ),
    )
    folders = {name: part.folder for name, part in checkpoint.parts.items()}
    folders |= dict(zip(checkpoint.text_encoder_parts, text_folders, strict=True))
    for name, part in checkpoint.parts.items():
        part_folder = folder / folders[name]
        their_tensors = diffusers_names.to_current_names(read_component_tensors(part_folder))
        our_tensors = convert_tensors(part, "diffusers", their_tensors, part_folder, r".*position_ids$")
        checkpoint.tensors |= {f"{name}.{key}": tensor for key, tensor in our_tensors.items()}
    return checkpoint


def _read_clip_config(file: Path, is_xl: bool) -> CLIPTextConfig:
    """The configuration of a text encoder; SDXL reads the last layer but one of it, without the last norm."""
    config = parse_clip_config(read_json_object(file), file)
    return replace(config, skipped_layers=1, normalize_tokens=False) if is_xl else config


def _read_tokenizer(folder: Path, text_folders: list[str], config: CLIPTextConfig) -> CLIPTokenizer:
    folders = [folder / name.replace("text_encoder", "tokenizer") for name in text_folders]
    return CLIPTokenizer.from_folder(folders[0], config.context_length, [read_pad_token(place) for place in folders])


def _pipeline_defaults(defaults: SchedulerDefaults, pipeline_class: str, is_xl: bool) -> SchedulerDefaults:
    """The scheduler's defaults as the pipeline changes them: Stable Diffusion 1 and 2 move the steps by one, whatever
    an old file says."""
    if pipeline_class.startswith("StableDiffusion") and not is_xl:
        return replace(defaults, steps_offset=1)
    return defaults


def read_component_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of one component's folder, by their names there."""
    tensors: dict[str, Tensor] = {}
    for file in find_tensor_files(folder):
        tensors |= read_safetensors(file, "download")[1]
    return tensors


def find_tensor_files(folder: Path) -> list[Path]:
    """The files of one component's tensors: a single one, a variant of it (fp16), or the shards that an index names.
    InputError where one is missing."""
    index_files = sorted(folder.glob("*.safetensors.index*.json"), key=_variant_order)
    if index_files:
        return _find_shards(index_files[0])
    files = sorted(folder.glob("*.safetensors"), key=_variant_order)
    if files:
        return files[:1]
    pickles = [*folder.glob("*.bin"), *folder.glob("*.ckpt"), *folder.glob("*.pt")]
    content = f"only the pickle {pickles[0].name}, which is never loaded" if pickles else "no .safetensors file"
    raise InputError(f"{folder}: holds {content}; download the .safetensors version of this model")


def _find_shards(index_file: Path) -> list[Path]:
    """The files beside an index that it names."""
    weight_map = read_json_object(index_file).get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not names or any("/" in name or "\\" in name for name in names):
        raise InputError(f"{index_file}: names no files of its own folder; copy or download it again")
    files = [index_file.with_name(name) for name in names]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: is named in the index but does not exist; copy or download it again")
    return files


def _variant_order(file: Path) -> tuple[bool, int, str]:
    """Sorts the plain file before its variants, and weights that are no moving averages last."""
    return "non_ema" in file.name, file.name.count("."), file.name


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. InputError, one line, where it does not exist or holds no object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise InputError(f"{file}: does not exist; copy or download the model again") from e
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{file}: cannot be read ({str(e)[:100]}); copy or download it again") from e
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no JSON object; copy or download it again")
    return content
