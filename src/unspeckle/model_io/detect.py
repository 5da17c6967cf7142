"""The one door for foreign checkpoints: a folder, a single file or a name on the hub, recognised by what it is."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as BPE
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion import diffusers_folder, single_file
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.model import build_stable_diffusion_model
from unspeckle.model import METADATA_KEY
from unspeckle.model_io import hub
from unspeckle.model_io.safetensors_io import is_pickle, read_metadata, read_safetensors

__all__ = ["build_stable_diffusion_model", "read_foreign"]
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def read_foreign(
    path: str | Path, prediction: str | None = None, trust_pickle: bool = False, vocabulary: BPE | None = None
) -> StableDiffusionCheckpoint | None:
    """The checkpoint that lies at the path, or has that name on the hub; None where it is not foreign. vocabulary: for
    a single file, which has none; None = it is looked for.
    InputError, one line, where it is foreign and cannot be read."""
    if prediction not in (None, "eps", "v"):
        raise InputError(f"--prediction {prediction!r}: unknown; choose eps or v")
    place = Path(path)
    if not place.exists() and hub.is_hub_name(str(path)):
        place = hub.download_snapshot(Path(path).as_posix())
    try:
        if (place / diffusers_folder.MODEL_INDEX).is_file():
            return diffusers_folder.read_diffusers_folder(place, prediction)
        if place.is_file():
            if not is_pickle(place) and METADATA_KEY in read_metadata(place, "download"):
                return None
            said, tensors = read_single_file(place, trust_pickle)
            return single_file.read_single_file(tensors, said, place, prediction, vocabulary)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, RecursionError) as e:
        raise InputError(f"{place}: makes no model ({type(e).__name__}: {str(e)[:100]})") from e
    return None


def read_single_file(file: Path, trust_pickle: bool) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    if not (is_pickle(file) and (trust_pickle or file.suffix in _PICKLES)):
        return read_safetensors(file, "download")
    if not trust_pickle:
        raise InputError(
            f"{file}: is a pickle, which can run code and is not loaded; if you trust it, turn it into a safe file by: "
            f"unspeckle convert {file.name} {file.stem}.safetensors --trust-pickle"
        )
    try:
        held: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever a hostile pickle may do to its reader
        said = re.sub(r"\s+", " ", str(e))[:100]
        raise InputError(f"{file}: holds more than tensors, or is damaged, and is not loaded ({said})") from e
    while isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]
    if not isinstance(held, dict):
        raise InputError(f"{file}: holds no tensors by name")
    return {}, {str(name): one.contiguous() for name, one in held.items() if isinstance(one, Tensor)}
