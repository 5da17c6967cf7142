"""Which kind of checkpoint a file or a folder holds. A new family is one more row in each of the two tables."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer as BPE
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.diffusers_folder import (
    MODEL_INDEX,
    UNET_COMPONENTS,
    is_unet_pipeline,
    read_json_object,
    read_unet_folder,
)
from unspeckle.formats.stable_diffusion.single_file import describe_unknown_file, has_unet, read_single_file


class FolderReader(NamedTuple):
    """How diffusers folders of one kind are recognized and read."""

    # whether the pipeline class that its model_index.json names is of this kind
    accepts: Callable[[str], bool]
    # the folders in it that are read, as far as its model_index.json names them; the rest is not downloaded
    components: tuple[str, ...]
    # the checkpoint from the folder, its model_index.json and the prediction ("eps", "v" or None)
    read: Callable[[Path, dict[str, Any], str | None], StableDiffusionCheckpoint]


class FileReader(NamedTuple):
    """How single files of one kind are recognized and read."""

    # whether tensors of these names are of this kind
    accepts: Callable[[Mapping[str, Tensor]], bool]
    # the checkpoint from tensors, metadata, path, prediction and the tokenizer's encoding
    read: Callable[[Mapping[str, Tensor], Mapping[str, str], Path, str | None, BPE | None], StableDiffusionCheckpoint]


FOLDER_READERS = [FolderReader(is_unet_pipeline, UNET_COMPONENTS, read_unet_folder)]
FILE_READERS = [FileReader(has_unet, read_single_file)]


def match_folder_reader(model_index: Mapping[str, Any]) -> FolderReader | None:
    """The reader of diffusers folders with that model_index.json; None where no reader accepts them."""
    pipeline_class = str(model_index.get("_class_name"))
    return next((reader for reader in FOLDER_READERS if reader.accepts(pipeline_class)), None)


def find_folder_reader(folder: Path) -> tuple[FolderReader, dict[str, Any]]:
    """The reader of a diffusers folder, and its model_index.json. InputError where no reader accepts it."""
    model_index = read_json_object(folder / MODEL_INDEX)
    if (reader := match_folder_reader(model_index)) is not None:
        return reader, model_index
    pipeline_class = model_index.get("_class_name")
    raise InputError(f"{folder / MODEL_INDEX}: is a {pipeline_class}; only Stable Diffusion 1, 2 and XL are supported")


def read_diffusers_folder(folder: Path, prediction: str | None = None) -> StableDiffusionCheckpoint:
    """The checkpoint in a diffusers folder. InputError, one line, where it is of no supported kind or damaged."""
    reader, model_index = find_folder_reader(folder)
    return reader.read(folder, model_index, prediction)


def read_checkpoint_file(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    file: Path,
    prediction: str | None = None,
    bpe: BPE | None = None,
) -> StableDiffusionCheckpoint:
    """The checkpoint of a single file with these tensors. InputError, one line, as `read_diffusers_folder`."""
    for reader in FILE_READERS:
        if reader.accepts(tensors):
            return reader.read(tensors, metadata, file, prediction, bpe)
    raise InputError(
        f"{file}: {describe_unknown_file(tensors)}; give a Stable Diffusion 1, 2 or XL, or a model of unspeckle"
    )
