"""From any path to a model: the file is opened once, recognized once, and built once."""

import re
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as BPE
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.safetensors_io import is_pickle, read_safetensors
from unspeckle.formats.stable_diffusion.add_ons import apply_add_ons
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.detect import read_checkpoint_file, read_diffusers_folder
from unspeckle.formats.stable_diffusion.diffusers_folder import MODEL_INDEX
from unspeckle.formats.stable_diffusion.model import build_stable_diffusion_model
from unspeckle.model import Model
from unspeckle.model_io.hub import download_snapshot, is_hub_name
from unspeckle.model_io.model_file import LORA_FILE, MODEL_FILE, MODEL_METADATA_KEY, UnspeckleCheckpoint
from unspeckle.prompts import LoraTag
from unspeckle.quantization.precision import check_precision, resolve_precision, set_precision

WHAT_IS_A_MODEL = "a model is a .safetensors file, a RUN folder of `train`, or a Stable Diffusion"
_PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


def load(
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    *,
    prediction: str | None = None,
    trust_pickle: bool = False,
    precision: str = "float32",
    loras: Sequence[str | Path] = (),
    embeddings: Sequence[str | Path] = (),
    autoencoder: str | Path | None = None,
    lora_tags: Sequence[LoraTag] = (),
) -> Model:
    """The model at the path: a .safetensors file of ours, a RUN folder of `train`, or a Stable Diffusion (a diffusers
    folder, a single file, or its name on the hub). Without a path, the model inside the package.

    precision: "float32", "bfloat16", "float16", "int8" (on a CPU, lossy), or "auto", which is float32 but for a Stable
    Diffusion on a device that is faster in bfloat16 or float16. For a Stable Diffusion: prediction, "eps" or "v", if
    the checkpoint does not say what its network predicts; trust_pickle, to read the tensors of a .ckpt; and what is
    added to it before its precision changes (see `apply_add_ons`): loras, such as ["ink.safetensors:0.8"]; embeddings,
    files of textual inversions; autoencoder, a file of another one; lora_tags, those of a prompt.
    InputError, one line, where nothing is at the path, it is not recognized, damaged, or does not fit its
    configuration, or where a file that is to be added does not fit.
    """
    check_precision(precision, str(device))
    if not (loras or embeddings or autoencoder is not None or lora_tags):
        return _load_alone(path, device, prediction, trust_pickle, precision)
    model = apply_add_ons(
        _load_alone(path, device, prediction, trust_pickle, "float32"),
        loras,
        [Path(file) for file in embeddings],
        autoencoder=None if autoencoder is None else Path(autoencoder),
        lora_tags=lora_tags,
        model_path=None if path is None else Path(path),
    )
    return set_precision(model, resolve_precision(precision, str(device)))


def _load_alone(
    path: str | Path | None, device: str | torch.device, prediction: str | None, trust_pickle: bool, precision: str
) -> Model:
    """The model without anything that is added to it."""
    if path is None:
        with as_file(files("unspeckle") / "models" / "embedded.safetensors") as embedded:
            if not embedded.is_file():
                raise InputError("this installation has no embedded model; choose a model with `model`")
            return _load_alone(embedded, device, prediction, trust_pickle, precision)
    checkpoint = open_checkpoint(path, prediction, trust_pickle)
    if isinstance(checkpoint, UnspeckleCheckpoint):
        return checkpoint.build(device, precision)
    return build_stable_diffusion_model(checkpoint, device, resolve_precision(precision, str(device)))


def open_checkpoint(
    path: str | Path, prediction: str | None = None, trust_pickle: bool = False, bpe: BPE | None = None
) -> UnspeckleCheckpoint | StableDiffusionCheckpoint:
    """What is at the path, or has that name on the hub, read but not built. bpe: the encoding of the
    tokenizer of a single file of Stable Diffusion, which has none; None = one is looked for. InputError, one line,
    where it cannot be read."""
    if prediction not in (None, "eps", "v"):
        raise InputError(f" {prediction!r}: unknown; choose eps or v", "prediction")
    location = Path(path)
    if not location.exists():
        if not is_hub_name(str(path)):
            raise InputError(f"{location}: no such file or folder; {WHAT_IS_A_MODEL}")
        location = download_snapshot(location.as_posix())
    try:
        if (location / MODEL_INDEX).is_file():
            return read_diffusers_folder(location, prediction)
        file = _model_file(location)
        metadata, tensors = _read_file(file, trust_pickle)
        if MODEL_METADATA_KEY in metadata:
            if prediction is not None:
                raise InputError(": is only for Stable Diffusion checkpoints; leave it out", "prediction")
            return UnspeckleCheckpoint(file, metadata[MODEL_METADATA_KEY], tensors)
        return read_checkpoint_file(tensors, metadata, file, prediction, bpe)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, RecursionError) as e:
        raise InputError(f"{location}: cannot be read as a model ({type(e).__name__}: {str(e)[:100]})") from e


def _model_file(location: Path) -> Path:
    """The model's file: the path itself, or the file in a RUN folder. InputError where a folder has none."""
    if not location.is_dir():
        return location
    if (location / MODEL_FILE).is_file():
        return location / MODEL_FILE
    if (location / LORA_FILE).is_file():
        remedy = f"use it with --model CHECKPOINT --lora {location / LORA_FILE}"
        raise InputError(f"{location}: this run holds a LoRA, which changes a model but is none; {remedy}")
    if (location / "plan.json").exists() or (location / "checkpoints").exists():
        raise InputError(f"{location}: this run has no {MODEL_FILE} yet; give the same command again and let it finish")
    raise InputError(f"{location}: holds no {MODEL_FILE}; {WHAT_IS_A_MODEL}")


def _read_file(file: Path, trust_pickle: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a file, as stored. A pickle has no metadata."""
    if not (file.suffix in _PICKLE_SUFFIXES or trust_pickle) or not is_pickle(file):
        return read_safetensors(file)
    if not trust_pickle:
        raise InputError(
            f"{file}: is a pickle, which can run code and is not loaded; if you trust it, turn it into a safe file by: "
            f"unspeckle convert {file.name} {file.stem}.safetensors --trust-pickle"
        )
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as e:  # a hostile pickle may raise anything
        reason = re.sub(r"\s+", " ", str(e))[:100]
        raise InputError(f"{file}: holds more than tensors, or is damaged, and is not loaded ({reason})") from e
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no tensors by name")
    return {}, {str(name): one.contiguous() for name, one in content.items() if isinstance(one, Tensor)}
