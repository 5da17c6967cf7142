"""Everything that a run needs to go on where it was, bit for bit, as one file that is either whole or absent."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unspeckle.atomic import replace_file
from unspeckle.errors import InputError

MAX_CHECKPOINTS = 2


class Checkpoint(NamedTuple):
    """Tensors by name, and the counters beside them. Randomness needs no state: it is a function of the position."""

    step: int
    tensors: dict[str, Tensor]
    counters: Mapping[str, float]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write folder/step-00000123.safetensors atomically, then drop all but the newest KEPT."""
    path = folder / f"step-{checkpoint.step:08d}.safetensors"
    metadata = {"unspeckle-checkpoint": json.dumps({"step": checkpoint.step, "counters": checkpoint.counters})}
    with replace_file(path) as temporary:
        safetensors.torch.save_file({k: t.contiguous() for k, t in checkpoint.tensors.items()}, temporary, metadata)
    for old_path in _checkpoint_paths(folder)[:-MAX_CHECKPOINTS]:
        old_path.unlink()
    return path


def load_latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None where there is none. InputError where none can be read."""
    for path in reversed(_checkpoint_paths(folder)):
        try:
            with safe_open(path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {})["unspeckle-checkpoint"])
                return Checkpoint(
                    int(metadata["step"]), {k: file.get_tensor(k) for k in file.keys()}, metadata["counters"]
                )
        except (SafetensorError, OSError, KeyError, ValueError):
            continue
    if _checkpoint_paths(folder):
        raise InputError(f"{folder}: no checkpoint there can be read; delete the folder to begin anew")
    return None


def latest_step(folder: Path) -> int:
    """The step of the newest checkpoint by its name, 0 where there is none."""
    return _parse_step(files[-1]) if (files := _checkpoint_paths(folder)) else 0


def _checkpoint_paths(folder: Path) -> list[Path]:
    """The checkpoints there, the newest last."""
    return sorted((path for path in folder.glob("step-*.safetensors") if _parse_step(path) >= 0), key=_parse_step)


def _parse_step(path: Path) -> int:
    """Of a checkpoint by its name, -1 where it has another one."""
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isascii() and digits.isdecimal() else -1


def restore_tensors(target: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of the same names; KeyError where the names differ."""
    if mismatched := target.keys() ^ tensors.keys():
        raise KeyError(f"the checkpoint and the plan differ in {sorted(mismatched)[0]}")
    for name, tensor in target.items():
        tensor.copy_(tensors[name])
