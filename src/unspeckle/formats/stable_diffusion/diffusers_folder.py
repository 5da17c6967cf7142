"""A folder as diffusers keeps it, to and from a Checkpoint: its JSON is read here, its tensors by `diffusers.py`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.rename_tables import Rows
from unspeckle.formats.stable_diffusion import diffusers_names
from unspeckle.formats.stable_diffusion.checkpoint import Checkpoint, fetched, table
from unspeckle.formats.stable_diffusion.diffusers_config import autoencoder, encoder, habits, network
from unspeckle.model_io.safetensors_io import read_safetensors
from unspeckle.networks.unet import UNet
from unspeckle.networks.vae import Vae
from unspeckle.text.clip import ClipEncoder, ClipTextsConfig
from unspeckle.text.clip_tokenizer import ClipTokenizer, padding

INDEX = "model_index.json"
_PIPELINES = ("StableDiffusion", "LatentConsistencyModel")


def described(folder: Path) -> dict[str, Any]:
    """What the folder says that it holds. InputError where that is of no known kind."""
    index = parsed(folder / INDEX)
    kind = str(index.get("_class_name"))
    if not kind.startswith(_PIPELINES) or "3" in kind or "Upscale" in kind:
        raise InputError(f"{folder / INDEX}: is a {kind}; only Stable Diffusion 1, 2 and XL are known here")
    return index


def read(folder: Path, prediction: str | None = None) -> Checkpoint:
    """The folder's model. InputError, one line, where it is of no known kind, incomplete or damaged."""
    index = described(folder)
    if not (folder / "unet").is_dir():
        raise InputError(f"{folder}: has no unet; copy or download it again")
    readers = [name for name in ("text_encoder", "text_encoder_2") if (folder / name).is_dir()]
    if not readers:
        raise InputError(f"{folder}: has neither text_encoder nor text_encoder_2; copy or download it again")
    unet = network(parsed(folder / "unet" / "config.json"), folder / "unet" / "config.json")
    vae = autoencoder(parsed(folder / "vae" / "config.json"), folder / "vae" / "config.json")
    encoders = [encoder(parsed(folder / name / "config.json"), folder / name / "config.json") for name in readers]
    large = bool(unet.vector_width)
    encoders = [replace(one, skip=1, final_norm=False) if large else one for one in encoders]
    zeros = large and bool(index.get("force_zeros_for_empty_prompt", len(readers) == 2))
    said = habits(parsed(folder / "scheduler" / "scheduler_config.json"), folder / "scheduler")
    size = parsed(folder / "unet" / "config.json").get("sample_size") or 64
    if str(index["_class_name"]).startswith("StableDiffusion") and not large:
        said = replace(said, offset=1)  # as these pipelines decide, whatever an old file says
    said = replace(said, size=int(size if isinstance(size, int) else max(size)) << (len(vae.multipliers) - 1))
    tokenizers = [folder / name.replace("text_encoder", "tokenizer") for name in readers]
    checkpoint = Checkpoint(
        where=folder,
        unet=unet,
        vae=vae,
        texts=ClipTextsConfig(tuple(encoders), large, zeros),
        tokenizer=ClipTokenizer.read(tokenizers[0], encoders[0].length, [padding(one) for one in tokenizers]),
        habits=said if prediction is None else replace(said, prediction=prediction),
    )
    parts: list[tuple[str, str, Any, Any, Rows]] = [
        ("network", "unet", UNet, unet, diffusers_names.UNET),
        ("autoencoder", "vae", Vae, vae, diffusers_names.VAE),
    ]
    for place, (name, one) in enumerate(zip(readers, encoders, strict=True)):
        parts.append((f"text.encoders.{place}", name, ClipEncoder, one, diffusers_names.CLIP))
    for part, name, make, config, rows in parts:
        held = diffusers_names.modern(tensors(folder / name))
        found = fetched(make, config, table(make, config, rows), held, folder / name, r".*position_ids$")
        checkpoint.tensors |= {f"{part}.{key}": tensor for key, tensor in found.items()}
    return checkpoint


def tensors(folder: Path) -> dict[str, Tensor]:
    """One component's tensors."""
    held: dict[str, Tensor] = {}
    for file in stored(folder):
        held |= read_safetensors(file, "download")[1]
    return held


def stored(folder: Path) -> list[Path]:
    """The files of a component's tensors: one, a variant of it (fp16), or those of a sharded index. InputError where
    one is not there."""
    whole = sorted(folder.glob("*.safetensors"), key=_preference)
    indices = sorted(folder.glob("*.safetensors.index*.json"), key=_preference)
    if indices:
        files = parsed(indices[0]).get("weight_map")
        names = sorted({str(name) for name in files.values()}) if isinstance(files, dict) else []
        if not names or any("/" in name or "\\" in name for name in names):
            raise InputError(f"{indices[0]}: names no files beside it; copy or download it again")
        whole = [folder / name for name in names]
    elif not whole:
        pickles = [*folder.glob("*.bin"), *folder.glob("*.ckpt"), *folder.glob("*.pt")]
        found = f"only the pickle {pickles[0].name}, which is never loaded" if pickles else "no .safetensors file"
        raise InputError(f"{folder}: holds {found}; download the .safetensors version of this model")
    for file in (chosen := whole if indices else whole[:1]):
        if not file.is_file():
            raise InputError(f"{file}: is named in the index but is not there; copy or download it again")
    return chosen


def _preference(file: Path) -> tuple[bool, int, str]:
    """The plain file before its variants, weights without averages last."""
    return "non_ema" in file.name, file.name.count("."), file.name


def parsed(file: Path) -> dict[str, Any]:
    """What the JSON file says. InputError, one line, where it is not there or holds no object."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise InputError(f"{file}: is not there; copy or download the model again") from e
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{file}: cannot be read ({str(e)[:100]}); copy or download it again") from e
    if not isinstance(said, dict):
        raise InputError(f"{file}: holds no object; copy or download it again")
    return said
