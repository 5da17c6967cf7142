"""A name on the Hugging Face hub as a folder: from its cache, or by its own client."""

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.diffusers_folder import (
    MODEL_INDEX,
    find_tensor_files,
    read_json_object,
    read_model_index,
)

_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_VOCABULARIES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
_PRECISIONS = ("", "fp32", "fp16", "bf16")  # of a part's tensors, as variants are named; the first there is taken


def is_hub_name(text: str) -> bool:
    """Whether it looks like OWNER/NAME."""
    return re.fullmatch(r"[\w][\w.-]{0,95}[/\\][\w][\w.-]{0,95}", text) is not None


def download_snapshot(name: str) -> Path:
    """The folder of the model of that name: as it lies in the hub's cache if all of it does, whoever put it there, else
    downloaded into it: only what is read of it. InputError where it is in neither."""
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
    except ImportError as e:
        raise InputError(f"{name}: no such file; for a name on the hub: pip install 'unspeckle[hub]'") from e
    try:  # named alone, as a client that knows a repository's files misses any that are asked for and were never wanted
        here = Path(snapshot_download(name, local_files_only=True, allow_patterns=[MODEL_INDEX]))
        lacks = missing_part(here)
        if not lacks:
            return here
        held = f"the hub's cache has but a part of it ({lacks})"
    except Exception:  # it is not there: the client has many words for that
        held = "the hub's cache has no model of that name"
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{name}: no such file, and {held} (HF_HUB_OFFLINE is set)")
    try:
        files = files_to_download(HfApi().list_repo_files(name))
        if MODEL_INDEX not in files:
            raise InputError(
                f"{name}: is on the hub without a {MODEL_INDEX}; only folders of diffusers are read from there"
            )
        read_model_index(
            Path(snapshot_download(name, allow_patterns=[MODEL_INDEX]))
        )  # before the rest, which is gigabytes
        return Path(snapshot_download(name, allow_patterns=[glob.escape(file) for file in files]))
    except InputError:
        raise
    except Exception as e:
        said = re.sub(r"\s+", " ", str(e))[:100]
        raise InputError(f"{name}: no such file, {held}, and the hub gives none ({type(e).__name__}: {said})") from e


def files_to_download(files: Iterable[str]) -> list[str]:
    """Of a repository's files those that a model is read from: each part's tensors in full precision, or in the one
    that there is."""
    parts: dict[str, list[str]] = {}
    for file in files:
        part = file.rpartition("/")[0]
        if file == MODEL_INDEX or (
            part in _PARTS and re.search(r"\.(json|txt|safetensors)$", file) and "non_ema" not in file
        ):
            parts.setdefault(part, []).append(file)
    return [file for part in parts.values() for file in best_precision_files(part)]


def best_precision_files(files: list[str]) -> list[str]:
    """One part's files, without tensors of other precisions than its best."""
    variants = {file: file_variant(file) for file in files if ".safetensors" in file}
    best = min(
        variants.values(), key=lambda one: (_PRECISIONS.index(one) if one in _PRECISIONS else 9, one), default=""
    )
    return [file for file in files if variants.get(file, best) == best]


def file_variant(file: str) -> str:
    """fp16 of model.fp16.safetensors, of its shards and their index; nothing of model.safetensors."""
    words = re.sub(r"-\d+-of-\d+", "", file.rpartition("/")[2]).split(".")[1:]
    return ".".join(word for word in words if word not in ("safetensors", "index", "json"))


def missing_part(here: Path) -> str:
    """The first thing that a snapshot lacks of the parts that it says it has, if one does."""
    try:
        index = read_json_object(here / MODEL_INDEX)
        for part in (part for part in _PARTS if index.get(part) not in (None, [None, None])):
            if part == "scheduler":
                read_json_object(here / part / "scheduler_config.json")
            elif part.startswith("text") or part in ("unet", "vae"):
                read_json_object(here / part / "config.json")
                find_tensor_files(here / part)
            elif not any(all((here / part / name).is_file() for name in names) for names in _VOCABULARIES):
                return f"{part} is not there"
    except InputError as e:
        return str(e).removeprefix(str(here)).lstrip("/\\").partition(";")[0]
    return ""
