"""From any path to a model: opened once, recognized once, built once."""

import re
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as BPE
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion import diffusers_folder, single_file
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.model import build_stable_diffusion_model
from unspeckle.model import Model
from unspeckle.model_io.hub import download_snapshot, is_hub_name
from unspeckle.model_io.model_file import LORA_FILE, METADATA_KEY, MODEL_FILE, UnspeckleCheckpoint
from unspeckle.model_io.precision import check_precision, resolve_precision
from unspeckle.model_io.safetensors_io import is_pickle, read_safetensors

KNOWN = "a model is a .safetensors file, a RUN of `train` or a Stable Diffusion"
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def load(
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    *,
    prediction: str | None = None,
    trust_pickle: bool = False,
    precision: str = "float32",
) -> Model:
    """The model at the path: a .safetensors file of ours, a RUN of `train`, or a Stable Diffusion (a diffusers folder, a
    single file, or a name on the hub); without a path, the model inside the package.

    precision: "float32", "bfloat16", "float16", "int8" (on a CPU, lossy), or "auto": bfloat16 for a Stable Diffusion
    where the hardware multiplies it faster, else float32. For Stable Diffusion: prediction, "eps" or "v", where the
    checkpoint does not say; trust_pickle, to read the tensors of a .ckpt.
    InputError, one line, where the path is not there, not recognized, damaged, or does not fit its own configuration.
    """
    check_precision(precision, str(device))
    if path is None:
        with as_file(files("unspeckle") / "models" / "embedded.safetensors") as embedded:
            if not embedded.is_file():
                raise InputError("this installation has no embedded model; name one with --model")
            return load(embedded, device, prediction=prediction, precision=precision)
    checkpoint = open_checkpoint(path, prediction, trust_pickle)
    if isinstance(checkpoint, UnspeckleCheckpoint):
        return checkpoint.build(device, precision)
    return build_stable_diffusion_model(checkpoint, device, resolve_precision(precision, str(device)))


def open_checkpoint(
    path: str | Path, prediction: str | None = None, trust_pickle: bool = False, vocabulary: BPE | None = None
) -> UnspeckleCheckpoint | StableDiffusionCheckpoint:
    """What lies at the path, or has that name on the hub, read but not built. vocabulary: for a single file of Stable
    Diffusion, which has none; None looks for one. InputError, one line, where it cannot be read."""
    if prediction not in (None, "eps", "v"):
        raise InputError(f" {prediction!r}: unknown; choose eps or v", "prediction")
    place = Path(path)
    if not place.exists():
        if not is_hub_name(str(path)):
            raise InputError(f"{place}: no such file or folder; {KNOWN}")
        place = download_snapshot(place.as_posix())
    try:
        if (place / diffusers_folder.MODEL_INDEX).is_file():
            return diffusers_folder.read_diffusers_folder(place, prediction)
        file = _model_file(place)
        metadata, tensors = _read_file(file, trust_pickle)
        if METADATA_KEY in metadata:
            if prediction is not None:
                raise InputError(": is only for Stable Diffusion checkpoints; leave it out", "prediction")
            return UnspeckleCheckpoint(file, metadata[METADATA_KEY], tensors)
        return single_file.read_single_file(tensors, metadata, file, prediction, vocabulary)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, RecursionError) as e:
        raise InputError(f"{place}: makes no model ({type(e).__name__}: {str(e)[:100]})") from e


def _model_file(place: Path) -> Path:
    """The file that the path means: itself, or the one of a RUN folder. InputError where there is none."""
    if not place.is_dir():
        return place
    if (place / MODEL_FILE).is_file():
        return place / MODEL_FILE
    if (place / LORA_FILE).is_file():
        how = f"draw with it by --model CHECKPOINT --lora {place / LORA_FILE}"
        raise InputError(f"{place}: this run holds a LoRA, which changes a model but is none; {how}")
    if (place / "plan.json").exists() or (place / "checkpoints").exists():
        raise InputError(f"{place}: this run has no {MODEL_FILE} yet; give the same command again and let it finish")
    raise InputError(f"{place}: holds no {MODEL_FILE}; {KNOWN}")


def _read_file(file: Path, trust_pickle: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a file, as stored; a pickle has no metadata."""
    if not (file.suffix in _PICKLES or trust_pickle) or not is_pickle(file):
        return read_safetensors(file)
    if not trust_pickle:
        raise InputError(
            f"{file}: is a pickle, which can run code and is not loaded; if you trust it, turn it into a safe file by: "
            f"unspeckle convert {file.name} {file.stem}.safetensors --trust-pickle"
        )
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever a hostile pickle may do to its reader
        reason = re.sub(r"\s+", " ", str(e))[:100]
        raise InputError(f"{file}: holds more than tensors, or is damaged, and is not loaded ({reason})") from e
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no tensors by name")
    return {}, {str(name): one.contiguous() for name, one in content.items() if isinstance(one, Tensor)}
