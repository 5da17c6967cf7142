"""An autoencoder on its own, to replace that of a checkpoint: a diffusers folder, an original file, or a tiny one."""

import re
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.checkpoint_parts import CheckpointPart, convert_tensors
from unspeckle.formats.safetensors_io import read_safetensors
from unspeckle.formats.stable_diffusion import diffusers_names, original_names, tiny_autoencoder
from unspeckle.formats.stable_diffusion.diffusers_config import parse_vae_config
from unspeckle.formats.stable_diffusion.diffusers_folder import read_component_tensors, read_json_object
from unspeckle.formats.stable_diffusion.families import vae_part
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.formats.stable_diffusion.shape_inference import infer_vae_config
from unspeckle.formats.weight_dtypes import to_float32
from unspeckle.networks.autoencoder import Autoencoder


def read_vae(path: Path, model: StableDiffusionModel) -> Autoencoder:
    """The autoencoder at the path, for the latents of the model, on its device. A single file does not say how its
    latents are scaled, which is then taken from the model. InputError, one line, where there is none, or one of other
    latents."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give an autoencoder")
    try:
        part, tensors = _read_vae_folder(path) if path.is_dir() else _read_vae_file(path, model)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, RecursionError) as e:
        raise InputError(f"{path}: cannot be read as an autoencoder ({type(e).__name__}: {str(e)[:100]})") from e
    autoencoder = part.build()
    assert isinstance(autoencoder, Autoencoder)
    expected, actual = ((vae.latent_channels, vae.downsampling_factor) for vae in (model.autoencoder, autoencoder))
    if expected != actual:
        raise InputError(
            f"{path}: has {actual[0]} latent channels at 1/{actual[1]} of the image's sides, but {model.card.name} has "
            f"{expected[0]} at 1/{expected[1]}; use an autoencoder that was made for it"
        )
    autoencoder.load_state_dict({name: to_float32(tensor) for name, tensor in tensors.items()}, assign=True)
    return autoencoder.eval().requires_grad_(False).to(model.device)


def _read_vae_folder(folder: Path) -> tuple[CheckpointPart, dict[str, Tensor]]:
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    config_json, tensors = read_json_object(folder / "config.json"), read_component_tensors(folder)
    if config_json.get("_class_name") == tiny_autoencoder.CLASS_NAME:
        return tiny_autoencoder.convert_autoencoder_tiny(config_json, tensors, folder)
    part = vae_part(parse_vae_config(config_json, folder / "config.json"))
    return part, convert_tensors(part, "diffusers", diffusers_names.to_current_names(tensors), folder)


def _read_vae_file(file: Path, model: StableDiffusionModel) -> tuple[CheckpointPart, dict[str, Tensor]]:
    """The autoencoder of a file: one of its own, or a whole checkpoint."""
    _, tensors = read_safetensors(file, "download")
    if tiny_autoencoder.is_taesd(tensors):
        return tiny_autoencoder.convert_taesd_file(tensors, file)
    if any(re.match(r"(?:en|de)coder\.(?:mid_block|layers)\.", name) for name in tensors):
        if (file.parent / "config.json").is_file():
            return _read_vae_folder(file.parent)
        raise InputError(f"{file}: has the layout of diffusers, which needs its config.json beside it; give the folder")
    prefix = original_names.VAE_PREFIX
    checkpoint_tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    vae_tensors = checkpoint_tensors or tensors
    scaling = model.autoencoder.config
    config = infer_vae_config(vae_tensors, scaling.scaling_factor, file)
    part = vae_part(replace(config, shift_factor=scaling.shift_factor))
    return part, convert_tensors(part, "original", vae_tensors, file, original_names.IGNORED_PATTERN)
