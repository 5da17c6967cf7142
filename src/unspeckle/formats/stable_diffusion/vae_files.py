"""An autoencoder by itself, in place of a checkpoint's: a folder of diffusers, an original file, or a tiny one."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion import diffusers_names, original_names, single_file, tiny_autoencoder
from unspeckle.formats.stable_diffusion.checkpoint import convert_tensors, module_name_table
from unspeckle.formats.stable_diffusion.diffusers_config import parse_vae_config
from unspeckle.formats.stable_diffusion.diffusers_folder import read_component_tensors, read_json_object
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.model_io.safetensors_io import read_safetensors
from unspeckle.model_io.weight_dtypes import to_float32
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig
from unspeckle.networks.vae import VAE


def read_vae(path: Path, model: StableDiffusionModel) -> Autoencoder:
    """The autoencoder that lies at the path, for the model's latents. A single file says nothing of their scale, which
    is then the model's. InputError, one line, where there is none, or one of other latents."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give an autoencoder's")
    try:
        config, tensors = _read_vae_folder(path) if path.is_dir() else _read_vae_file(path, model)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, RecursionError) as e:
        raise InputError(f"{path}: makes no autoencoder ({type(e).__name__}: {str(e)[:100]})") from e
    with torch.device("meta"):
        autoencoder: Autoencoder = TinyAutoencoder(config) if isinstance(config, TinyAutoencoderConfig) else VAE(config)
    expected, actual = ((vae.latent_channels, vae.downsampling_factor) for vae in (model.autoencoder, autoencoder))
    if expected != actual:
        raise InputError(
            f"{path}: has {actual[0]} channels at 1/{actual[1]} of a side, {model.card.name} has {expected[0]} at "
            f"1/{expected[1]}; take one that was made for it"
        )
    autoencoder.load_state_dict({name: to_float32(tensor) for name, tensor in tensors.items()}, assign=True)
    return autoencoder.eval().requires_grad_(False).to(model.device)


def _read_vae_folder(folder_path: Path) -> tuple[Any, dict[str, Tensor]]:
    folder_path = folder_path / "vae" if (folder_path / "vae").is_dir() else folder_path
    config_json, tensors = read_json_object(folder_path / "config.json"), read_component_tensors(folder_path)
    if config_json.get("_class_name") == tiny_autoencoder.CLASS_NAME:
        return tiny_autoencoder.convert_autoencoder_tiny(config_json, tensors, folder_path)
    config = parse_vae_config(config_json, folder_path / "config.json")
    return config, convert_tensors(
        VAE,
        config,
        module_name_table(VAE, config, diffusers_names.VAE),
        diffusers_names.to_current_names(tensors),
        folder_path,
    )


def _read_vae_file(file: Path, model: StableDiffusionModel) -> tuple[Any, dict[str, Tensor]]:
    _, tensors = read_safetensors(file, "download")
    if tiny_autoencoder.is_taesd(tensors):
        return tiny_autoencoder.convert_taesd_file(tensors, file)
    if any(re.match(r"(?:en|de)coder\.(?:mid_block|layers)\.", name) for name in tensors):
        if (file.parent / "config.json").is_file():
            return _read_vae_folder(file.parent)
        raise InputError(f"{file}: is of diffusers' layout, which needs its config.json beside it; give the folder")
    vae_tensors = {
        name.removeprefix(original_names.VAE_PREFIX): t
        for name, t in tensors.items()
        if name.startswith(original_names.VAE_PREFIX)
    }
    tensors = vae_tensors or tensors
    model_vae_config = model.autoencoder.config
    config = replace(
        single_file.infer_vae_config(tensors, model_vae_config.scale, file), shift_factor=model_vae_config.shift
    )
    return config, convert_tensors(
        VAE, config, module_name_table(VAE, config, original_names.VAE), tensors, file, original_names.IGNORED_PATTERN
    )
