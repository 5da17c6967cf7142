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

KEPT = 2


class Checkpoint(NamedTuple):
    """Tensors by name, and the counters beside them. Randomness needs no state: it is a function of the position."""

    step: int
    tensors: dict[str, Tensor]
    counters: Mapping[str, float]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write folder/step-00000123.safetensors atomically, then drop all but the newest KEPT."""
    path = folder / f"step-{checkpoint.step:08d}.safetensors"
    metadata = {"unspeckle-checkpoint": json.dumps({"step": checkpoint.step, "counters": checkpoint.counters})}
    with replace_file(path) as beside:
        safetensors.torch.save_file({k: t.contiguous() for k, t in checkpoint.tensors.items()}, beside, metadata)
    for old in _files(folder)[:-KEPT]:
        old.unlink()
    return path


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None where there is none. InputError where none can be read."""
    for path in reversed(_files(folder)):
        try:
            with safe_open(path, framework="pt") as file:
                held = json.loads((file.metadata() or {})["unspeckle-checkpoint"])
                return Checkpoint(int(held["step"]), {k: file.get_tensor(k) for k in file.keys()}, held["counters"])  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError):
            continue
    if _files(folder):
        raise InputError(f"{folder}: no checkpoint there can be read; delete the folder to begin anew")
    return None


def steps_done(folder: Path) -> int:
    """The step of the newest checkpoint by its name, 0 where there is none."""
    return _step(files[-1]) if (files := _files(folder)) else 0


def _files(folder: Path) -> list[Path]:
    """The checkpoints there, the newest last."""
    return sorted((path for path in folder.glob("step-*.safetensors") if _step(path) >= 0), key=_step)


def _step(path: Path) -> int:
    """Of a checkpoint by its name, -1 where it has another one."""
    number = path.stem.removeprefix("step-")
    return int(number) if number.isascii() and number.isdecimal() else -1


def restore(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of the same names; KeyError where the names differ."""
    if missing := into.keys() ^ tensors.keys():
        raise KeyError(f"the checkpoint and the plan differ in {sorted(missing)[0]}")
    for name, tensor in into.items():
        tensor.copy_(tensors[name])
