"""A checkpoint as other programs read it: a diffusers folder, or a single file of the original layout."""

import json
import math
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from unspeckle.atomic import create_folder, replace_file, write_bytes
from unspeckle.errors import InputError
from unspeckle.formats.rename_tables import to_their_names
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.diffusers_json import component_jsons, model_index_json, scheduler_json
from unspeckle.formats.stable_diffusion.single_file import LATENT_SCALE_KEY
from unspeckle.networks.unet import UNetConfig


def write_single_file(checkpoint: StableDiffusionCheckpoint, file: Path) -> None:
    """Write one file of the original layout, atomically. Its metadata say by ModelSpec what its tensors cannot.

    InputError where a part has sizes that a reader of single files cannot infer from its tensors."""
    tensors: dict[str, Tensor] = {}
    for name, part in checkpoint.parts.items():
        if isinstance(part.config, UNetConfig) and not _can_be_inferred(part.config):
            raise InputError(
                f"{checkpoint.path}: a single file cannot express the attention heads, norm groups or time embeddings "
                "of its network; write a folder instead"
            )
        tensors |= to_their_names(part.name_table("original", part.prefix), checkpoint.part_tensors(name))
    with replace_file(file) as temp_file:
        save_file(tensors, temp_file, _modelspec_metadata(checkpoint))


def _can_be_inferred(config: UNetConfig) -> bool:
    """Whether the sizes that a U-Net's tensors do not tell are those that all readers assume."""
    has_usual_heads = config.heads == 8 or (not config.heads and config.head_width == 64)
    return has_usual_heads and config.norm_groups == 32 and not config.scale_shift


def _modelspec_metadata(checkpoint: StableDiffusionCheckpoint) -> dict[str, str]:
    """The metadata of a single file (https://github.com/Stability-AI/ModelSpec)."""
    defaults = checkpoint.scheduler_defaults
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": checkpoint.family.architecture,
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": checkpoint.path.stem,
        "modelspec.prediction_type": {"eps": "epsilon"}.get(defaults.prediction, defaults.prediction),
        "modelspec.resolution": f"{defaults.image_size}x{defaults.image_size}",
    }
    scaling_factor = checkpoint.parts["autoencoder"].config.scaling_factor
    if scaling_factor != checkpoint.family.latent_scale:
        metadata[LATENT_SCALE_KEY] = repr(scaling_factor)
    return metadata


def write_diffusers_folder(checkpoint: StableDiffusionCheckpoint, folder: Path) -> None:
    """Write a diffusers folder, whole or not at all. InputError where the folder exists and is not empty."""
    require_empty_folder(folder)
    configs = component_jsons(checkpoint)
    with create_folder(folder) as temp_folder:
        for name, part in checkpoint.parts.items():
            tensors = to_their_names(part.name_table("diffusers"), checkpoint.part_tensors(name))
            write_json_file(temp_folder / part.folder / "config.json", configs[part.folder])
            save_file(tensors, temp_folder / part.folder / part.file_name, {"format": "pt"})
        write_pipeline_files(checkpoint, temp_folder, model_index_json(checkpoint))


def write_pipeline_files(checkpoint: StableDiffusionCheckpoint, folder: Path, model_index: dict[str, Any]) -> None:
    """Write what a diffusers folder holds besides its parts: tokenizers, scheduler and model_index.json."""
    for index, part in enumerate(checkpoint.text_encoder_parts.values()):
        checkpoint.tokenizer.write_folder(folder / part.folder.replace("text_encoder", "tokenizer"), index)
    write_json_file(folder / "scheduler" / "scheduler_config.json", scheduler_json(checkpoint.scheduler_defaults))
    write_json_file(folder / "model_index.json", model_index)


def write_json_file(file: Path, content: dict[str, Any]) -> None:
    """Write the object as JSON, its folders too if they do not exist."""
    write_bytes(file, (json.dumps(content, indent=2) + "\n").encode())


def require_empty_folder(folder: Path) -> None:
    """InputError where the path is a file, or a folder that holds something."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: already exists; give a new folder")


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to what is expected; infinite where the shapes differ or values are not
    finite, so that no tolerance allows it."""
    if actual.shape != expected.shape:
        return math.inf
    error = float((actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
    return error if math.isfinite(error) else math.inf
