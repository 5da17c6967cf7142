"""A model by its name on the Hugging Face hub: its folder in the hub's cache, downloaded if it is not there."""

import glob
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.detect import find_folder_reader, match_folder_reader
from unspeckle.formats.stable_diffusion.diffusers_folder import MODEL_INDEX, find_tensor_files, read_json_object

_VOCABULARIES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
_VARIANTS = ("", "fp32", "fp16", "bf16")  # of a component's tensors, by the precision in their names; the best first


def is_hub_name(text: str) -> bool:
    """Whether it has the form OWNER/NAME."""
    return re.fullmatch(r"[\w][\w.-]{0,95}[/\\][\w][\w.-]{0,95}", text) is not None


def download_snapshot(name: str) -> Path:
    """The folder of the model of that name. If all of it is in the hub's cache, whichever program put it there, nothing
    is downloaded; else what is read of it is downloaded there. InputError where it can be had from neither."""
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError as e:
        raise InputError(f"{name}: no such file; for a name on the hub: pip install 'unspeckle[hub]'") from e
    try:
        # only this file: a client that knows the repository's files would miss those that were never downloaded
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=[MODEL_INDEX]))
        missing = missing_component(folder)
        if not missing:
            return folder
        cache_state = f"the hub's cache has only a part of it ({missing})"
    except Exception:  # the client raises errors of many kinds where it is not there
        cache_state = "the hub's cache has no model of that name"
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{name}: no such file, and {cache_state} (HF_HUB_OFFLINE is set)")
    try:
        return _download(name)
    except InputError:
        raise
    except Exception as e:
        reason = re.sub(r"\s+", " ", str(e))[:100]
        raise InputError(
            f"{name}: no such file, {cache_state}, and it cannot be downloaded ({type(e).__name__}: {reason})"
        ) from e


def _download(name: str) -> Path:
    """The folder of the model, downloaded. Raises InputError where it is not supported, and the client's errors."""
    from huggingface_hub import HfApi, snapshot_download

    repository_files = HfApi().list_repo_files(name)
    if MODEL_INDEX not in repository_files:
        raise InputError(f"{name}: has no {MODEL_INDEX} on the hub; only diffusers folders are read from there")
    # recognized before the rest is downloaded, which is gigabytes
    reader, _ = find_folder_reader(Path(snapshot_download(name, allow_patterns=[MODEL_INDEX])))
    files = files_to_download(repository_files, reader.components)
    return Path(snapshot_download(name, allow_patterns=[glob.escape(file) for file in files]))


def files_to_download(files: Iterable[str], components: Collection[str]) -> list[str]:
    """Those of a repository's files that a model with these components is read from: each component's tensors in one
    precision, the best."""
    files_by_component: dict[str, list[str]] = {}
    for file in files:
        component = file.rpartition("/")[0]
        is_needed = component in components and re.search(r"\.(json|txt|safetensors)$", file) and "non_ema" not in file
        if file == MODEL_INDEX or is_needed:
            files_by_component.setdefault(component, []).append(file)
    return [file for component in files_by_component.values() for file in best_precision_files(component)]


def best_precision_files(files: list[str]) -> list[str]:
    """One component's files without tensors in other precisions than the best."""
    variants = {file: file_variant(file) for file in files if ".safetensors" in file}
    ranks = {name: rank for rank, name in enumerate(_VARIANTS)}
    best = min(variants.values(), key=lambda variant: (ranks.get(variant, len(ranks)), variant), default="")
    return [file for file in files if variants.get(file, best) == best]


def file_variant(file: str) -> str:
    """The variant in a file's name: "fp16" for model.fp16.safetensors, its shards and their index, "" for
    model.safetensors."""
    pieces = re.sub(r"-\d+-of-\d+", "", file.rpartition("/")[2]).split(".")[1:]
    return ".".join(piece for piece in pieces if piece not in ("safetensors", "index", "json"))


def missing_component(folder: Path) -> str:
    """What a snapshot lacks first of the components that its model_index.json names; "" if it has all, or is of no
    kind that is read here."""
    try:
        index = read_json_object(folder / MODEL_INDEX)
        reader = match_folder_reader(index)
        for component in reader.components if reader is not None else ():
            if index.get(component) in (None, [None, None]):
                continue
            if component == "scheduler":
                read_json_object(folder / component / "scheduler_config.json")
            elif component.startswith("tokenizer"):
                if not any(all((folder / component / name).is_file() for name in names) for names in _VOCABULARIES):
                    return f"{component} does not exist"
            else:
                read_json_object(folder / component / "config.json")
                find_tensor_files(folder / component)
    except InputError as e:
        return str(e).removeprefix(str(folder)).lstrip("/\\").partition(";")[0]
    return ""
