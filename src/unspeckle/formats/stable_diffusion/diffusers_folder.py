"""A folder as diffusers keeps it, to and from a Checkpoint: its JSON is read here, its tensors by `diffusers.py`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.rename_tables import RenameRules
from unspeckle.formats.stable_diffusion import diffusers_names
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint, convert_tensors, module_name_table
from unspeckle.formats.stable_diffusion.diffusers_config import (
    parse_clip_config,
    parse_scheduler_config,
    parse_unet_config,
    parse_vae_config,
)
from unspeckle.model_io.safetensors_io import read_safetensors
from unspeckle.networks.unet import UNet
from unspeckle.networks.vae import VAE
from unspeckle.text.clip import CLIPTextEncoder, CLIPTextEncodersConfig
from unspeckle.text.clip_tokenizer import CLIPTokenizer, read_pad_token

MODEL_INDEX = "model_index.json"
_PIPELINE_PREFIXES = ("StableDiffusion", "LatentConsistencyModel")


def read_model_index(folder: Path) -> dict[str, Any]:
    """What the folder says that it holds. InputError where that is of no known kind."""
    index = read_json_object(folder / MODEL_INDEX)
    pipeline_class = str(index.get("_class_name"))
    if not pipeline_class.startswith(_PIPELINE_PREFIXES) or "3" in pipeline_class or "Upscale" in pipeline_class:
        raise InputError(
            f"{folder / MODEL_INDEX}: is a {pipeline_class}; only Stable Diffusion 1, 2 and XL are known here"
        )
    return index


def read_diffusers_folder(folder: Path, prediction: str | None = None) -> StableDiffusionCheckpoint:
    """The folder's model. InputError, one line, where it is of no known kind, incomplete or damaged."""
    model_index = read_model_index(folder)
    if not (folder / "unet").is_dir():
        raise InputError(f"{folder}: has no unet; copy or download it again")
    encoder_folders = [name for name in ("text_encoder", "text_encoder_2") if (folder / name).is_dir()]
    if not encoder_folders:
        raise InputError(f"{folder}: has neither text_encoder nor text_encoder_2; copy or download it again")
    unet_config = parse_unet_config(read_json_object(folder / "unet" / "config.json"), folder / "unet" / "config.json")
    vae_config = parse_vae_config(read_json_object(folder / "vae" / "config.json"), folder / "vae" / "config.json")
    encoder_configs = [
        parse_clip_config(read_json_object(folder / name / "config.json"), folder / name / "config.json")
        for name in encoder_folders
    ]
    is_xl = bool(unet_config.vector_width)
    encoder_configs = [
        replace(encoder_config, skipped_layers=1, normalize_tokens=False) if is_xl else encoder_config
        for encoder_config in encoder_configs
    ]
    zero_empty_prompt = is_xl and bool(model_index.get("force_zeros_for_empty_prompt", len(encoder_folders) == 2))
    defaults = parse_scheduler_config(
        read_json_object(folder / "scheduler" / "scheduler_config.json"), folder / "scheduler"
    )
    sample_size = read_json_object(folder / "unet" / "config.json").get("sample_size") or 64
    if str(model_index["_class_name"]).startswith("StableDiffusion") and not is_xl:
        defaults = replace(defaults, steps_offset=1)  # as these pipelines decide, whatever an old file says
    defaults = replace(
        defaults,
        image_size=int(sample_size if isinstance(sample_size, int) else max(sample_size))
        << (len(vae_config.channel_multipliers) - 1),
    )
    tokenizer_folders = [folder / name.replace("text_encoder", "tokenizer") for name in encoder_folders]
    checkpoint = StableDiffusionCheckpoint(
        path=folder,
        unet_config=unet_config,
        vae_config=vae_config,
        text_config=CLIPTextEncodersConfig(tuple(encoder_configs), is_xl, zero_empty_prompt),
        tokenizer=CLIPTokenizer.from_folder(
            tokenizer_folders[0],
            encoder_configs[0].context_length,
            [read_pad_token(path) for path in tokenizer_folders],
        ),
        scheduler_defaults=defaults if prediction is None else replace(defaults, prediction=prediction),
    )
    components: list[tuple[str, str, Any, Any, RenameRules]] = [
        ("network", "unet", UNet, unet_config, diffusers_names.UNET),
        ("autoencoder", "vae", VAE, vae_config, diffusers_names.VAE),
    ]
    for index, (name, encoder_config) in enumerate(zip(encoder_folders, encoder_configs, strict=True)):
        components.append((f"text.encoders.{index}", name, CLIPTextEncoder, encoder_config, diffusers_names.CLIP))
    for prefix, name, module_class, config, rules in components:
        component_tensors = diffusers_names.to_current_names(read_component_tensors(folder / name))
        our_tensors = convert_tensors(
            module_class,
            config,
            module_name_table(module_class, config, rules),
            component_tensors,
            folder / name,
            r".*position_ids$",
        )
        checkpoint.tensors |= {f"{prefix}.{key}": tensor for key, tensor in our_tensors.items()}
    return checkpoint


def read_component_tensors(folder: Path) -> dict[str, Tensor]:
    """One component's tensors."""
    component_tensors: dict[str, Tensor] = {}
    for file in find_tensor_files(folder):
        component_tensors |= read_safetensors(file, "download")[1]
    return component_tensors


def find_tensor_files(folder: Path) -> list[Path]:
    """The files of a component's tensors: one, a variant of it (fp16), or those of a sharded index. InputError where
    one is not there."""
    files = sorted(folder.glob("*.safetensors"), key=_variant_order)
    index_files = sorted(folder.glob("*.safetensors.index*.json"), key=_variant_order)
    if index_files:
        weight_map = read_json_object(index_files[0]).get("weight_map")
        file_names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        if not file_names or any("/" in name or "\\" in name for name in file_names):
            raise InputError(f"{index_files[0]}: names no files beside it; copy or download it again")
        files = [folder / name for name in file_names]
    elif not files:
        pickles = [*folder.glob("*.bin"), *folder.glob("*.ckpt"), *folder.glob("*.pt")]
        contents_found = (
            f"only the pickle {pickles[0].name}, which is never loaded" if pickles else "no .safetensors file"
        )
        raise InputError(f"{folder}: holds {contents_found}; download the .safetensors version of this model")
    for file in (chosen_files := files if index_files else files[:1]):
        if not file.is_file():
            raise InputError(f"{file}: is named in the index but is not there; copy or download it again")
    return chosen_files


def _variant_order(file: Path) -> tuple[bool, int, str]:
    """The plain file before its variants, weights without averages last."""
    return "non_ema" in file.name, file.name.count("."), file.name


def read_json_object(file: Path) -> dict[str, Any]:
    """What the JSON file says. InputError, one line, where it is not there or holds no object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise InputError(f"{file}: is not there; copy or download the model again") from e
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{file}: cannot be read ({str(e)[:100]}); copy or download it again") from e
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no object; copy or download it again")
    return content
