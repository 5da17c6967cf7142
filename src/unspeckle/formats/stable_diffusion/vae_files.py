"""An autoencoder by itself, in place of a checkpoint's: a folder of diffusers, an original file, or a tiny one."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion import diffusers_names, original_names, single_file, tiny_autoencoder
from unspeckle.formats.stable_diffusion.checkpoint import fetched, table
from unspeckle.formats.stable_diffusion.diffusers_config import autoencoder
from unspeckle.formats.stable_diffusion.diffusers_folder import parsed, tensors
from unspeckle.formats.stable_diffusion.model import Foreign
from unspeckle.model_io.safetensors_io import read_safetensors
from unspeckle.model_io.weight_dtypes import to_float32
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.tiny_autoencoder import TinyVae, TinyVaeConfig
from unspeckle.networks.vae import Vae


def read(path: Path, model: Foreign) -> Autoencoder:
    """The autoencoder that lies at the path, for the model's latents. A single file says nothing of their scale, which
    is then the model's. InputError, one line, where there is none, or one of other latents."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give an autoencoder's")
    try:
        config, held = _folder(path) if path.is_dir() else _file(path, model)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, RecursionError) as e:
        raise InputError(f"{path}: makes no autoencoder ({type(e).__name__}: {str(e)[:100]})") from e
    with torch.device("meta"):
        made: Autoencoder = TinyVae(config) if isinstance(config, TinyVaeConfig) else Vae(config)
    wanted, found = ((one.channels, one.factor) for one in (model.autoencoder, made))
    if wanted != found:
        raise InputError(
            f"{path}: has {found[0]} channels at 1/{found[1]} of a side, {model.card.name} has {wanted[0]} at "
            f"1/{wanted[1]}; take one that was made for it"
        )
    made.load_state_dict({name: to_float32(tensor) for name, tensor in held.items()}, assign=True)
    return made.eval().requires_grad_(False).to(model.device)


def _folder(place: Path) -> tuple[Any, dict[str, Tensor]]:
    place = place / "vae" if (place / "vae").is_dir() else place
    said, held = parsed(place / "config.json"), tensors(place)
    if said.get("_class_name") == tiny_autoencoder.KIND:
        return tiny_autoencoder.folder(said, held, place)
    config = autoencoder(said, place / "config.json")
    return config, fetched(Vae, config, table(Vae, config, diffusers_names.VAE), diffusers_names.modern(held), place)


def _file(file: Path, model: Foreign) -> tuple[Any, dict[str, Tensor]]:
    _, held = read_safetensors(file, "download")
    if tiny_autoencoder.is_original(held):
        return tiny_autoencoder.original(held, file)
    if any(re.match(r"(?:en|de)coder\.(?:mid_block|layers)\.", name) for name in held):
        if (file.parent / "config.json").is_file():
            return _folder(file.parent)
        raise InputError(f"{file}: is of diffusers' layout, which needs its config.json beside it; give the folder")
    inner = {
        name.removeprefix(original_names.VAE_PREFIX): t
        for name, t in held.items()
        if name.startswith(original_names.VAE_PREFIX)
    }
    held = inner or held
    of = model.autoencoder.config
    config = replace(single_file.autoencoder(held, of.scale, file), shift=of.shift)
    return config, fetched(Vae, config, table(Vae, config, original_names.VAE), held, file, original_names.SPARE)
