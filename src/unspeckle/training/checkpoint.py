"""Checkpoints: all that a run needs to continue bit for bit, each a file that is either whole or absent."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unspeckle.atomic import replace_file
from unspeckle.errors import InputError
from unspeckle.old_names import rename_checkpoint_counters
from unspeckle.training.errors import TrainingError

# In RUN, or in a folder that one of its tasks has in RUN
CHECKPOINTS_FOLDER = "checkpoints"
# How many are kept
MAX_CHECKPOINTS = 2
# Format 1 is version 0.1's, whose tensors have other names
FORMAT = 2
_METADATA_KEY = "unspeckle-checkpoint"
# What reading a damaged checkpoint raises
_UNREADABLE = (SafetensorError, OSError, KeyError, ValueError)


class Checkpoint(NamedTuple):
    """Tensors by name, and the counters beside them. Randomness needs no state: it is a function of the position."""

    step: int
    tensors: dict[str, Tensor]
    counters: Mapping[str, float]


def save_checkpoint(run_folder: Path, checkpoint: Checkpoint) -> Path:
    """Write checkpoints/step-00000123.safetensors atomically, then delete all but the newest MAX_CHECKPOINTS.
    TrainingError if it cannot be written."""
    path = run_folder / CHECKPOINTS_FOLDER / f"step-{checkpoint.step:08d}.safetensors"
    values = {"format": FORMAT, "step": checkpoint.step, "counters": checkpoint.counters}
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    try:
        with replace_file(path) as temporary:
            safetensors.torch.save_file(tensors, temporary, {_METADATA_KEY: json.dumps(values)})
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"the checkpoint of step {checkpoint.step} cannot be written ({error}); free some space, "
            "then the same command continues from the one before"
        ) from error
    for old_path in _checkpoint_paths(run_folder)[:-MAX_CHECKPOINTS]:
        old_path.unlink()
    return path


def load_latest_checkpoint(
    run_folder: Path, rename_old_tensor: Callable[[str], str] = lambda name: name
) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None if there is none. InputError if none of them can be read.

    rename_old_tensor: gives the name of today of a tensor in a checkpoint of version 0.1.
    """
    paths = _checkpoint_paths(run_folder)
    for path in reversed(paths):
        try:
            return _read_checkpoint(path, rename_old_tensor)
        except _UNREADABLE:
            continue
    if paths:
        raise InputError(f"{paths[0].parent}: no checkpoint there can be read; delete the folder to begin again")
    return None


def _read_checkpoint(path: Path, rename_old_tensor: Callable[[str], str]) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        values = _read_values(file)
        tensors, counters = {name: file.get_tensor(name) for name in file.keys()}, values["counters"]  # noqa: SIM118
    if values.get("format", 1) < FORMAT:
        tensors = {rename_old_tensor(name): tensor for name, tensor in tensors.items()}
        counters = rename_checkpoint_counters(counters)
    return Checkpoint(int(values["step"]), tensors, counters)


def _read_values(file: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((file.metadata() or {})[_METADATA_KEY])
    return values


def latest_step(run_folder: Path) -> int:
    """The step of the newest checkpoint that can be read, 0 if there is none."""
    for path in reversed(_checkpoint_paths(run_folder)):
        try:
            with safe_open(path, framework="pt") as file:
                return int(_read_values(file)["step"])
        except _UNREADABLE:
            continue
    return 0


def _checkpoint_paths(run_folder: Path) -> list[Path]:
    """The checkpoints there, the newest last."""
    paths = (run_folder / CHECKPOINTS_FOLDER).glob("step-*.safetensors")
    return sorted((path for path in paths if _parse_step(path) >= 0), key=_parse_step)


def _parse_step(path: Path) -> int:
    """The step in a checkpoint's name, -1 if the name is none of a checkpoint."""
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isascii() and digits.isdecimal() else -1
