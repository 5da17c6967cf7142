"""A checkpoint of another program as named parts: what each part is built from, and what its tensors are called there.

Whatever reads, writes, exports or adapts a checkpoint goes through its parts and asks each for its names, so that a new
network, autoencoder or text encoder is described once and works everywhere.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unspeckle.errors import InputError
from unspeckle.formats.rename_tables import (
    NO_LEVELS,
    BlockLayout,
    NameTable,
    RenameRules,
    build_name_table,
    to_our_names,
)
from unspeckle.formats.safetensors_io import check_tensors

Layout = Literal[
    "diffusers", "original"
]  # a folder of diffusers, or the single file of the code that trained the model


@dataclass(frozen=True)
class ModuleSpec:
    """A module that is not built yet."""

    module_class: Callable[[Any], nn.Module]  # a class that is built from its configuration alone
    config: Any  # that configuration, a frozen dataclass

    def build(self) -> nn.Module:
        """The module, its weights on the meta device: they take no memory and are to be loaded."""
        with torch.device("meta"):
            return self.module_class(self.config)


@dataclass(frozen=True)
class CheckpointPart(ModuleSpec):
    """One part of a checkpoint, and its names in other programs' files."""

    rules: Mapping[Layout, RenameRules]  # what its tensors are called in each layout
    block_layout: BlockLayout = NO_LEVELS  # how its blocks stand on levels, where it has levels
    folder: str = ""  # its place in a diffusers folder; peft's LoRA files put this before the names of its layers
    file_name: str = "diffusion_pytorch_model.safetensors"  # its tensors' file within that folder
    prefix: str = ""  # what its tensors' names begin with in a single file of the original layout
    kohya_prefixes: tuple[str, ...] = ()  # what its layers' names begin with in kohya's LoRA files, the usual one first
    kohya_layouts: tuple[Layout, ...] = (
        "diffusers",
    )  # by which names these files call its layers, the usual one first

    def name_table(self, layout: Layout, prefix: str = "") -> NameTable:
        """Our names of all its tensors with those of the layout, which begin with the prefix."""
        return build_name_table(self.build().state_dict(), self.rules[layout], self.block_layout, prefix)


def convert_tensors(
    part: CheckpointPart,
    layout: Layout,
    their_tensors: Mapping[str, Tensor],
    path: Path,
    ignored_pattern: str = "",
) -> dict[str, Tensor]:
    """The part's tensors by our names, from those at the path by the layout's names (without the prefix).

    InputError, by their names, where a tensor is missing, of another shape or not finite, or where one is unknown and
    does not begin as the regular expression ignored_pattern allows."""
    expected = part.build().state_dict()
    name_table = build_name_table(expected, part.rules[layout], part.block_layout)
    check_known(their_tensors, {stored_as.split("#")[0] for stored_as in name_table.values()}, path, ignored_pattern)
    our_tensors = to_our_names(name_table, their_tensors)
    labels = {our_name: _label(stored_as) for our_name, stored_as in name_table.items()}
    check_tensors(
        {labels[name]: tensor for name, tensor in expected.items()},
        {labels[name]: tensor for name, tensor in our_tensors.items()},
        path,
        "download",
    )
    return our_tensors


def check_known(names: Mapping[str, Tensor], known: set[str], path: Path, ignored_pattern: str = "") -> None:
    """InputError, naming the first, where there are tensors that are neither known nor to be ignored."""
    unknown = [
        name for name in names if name not in known and not (ignored_pattern and re.match(ignored_pattern, name))
    ]
    if unknown:
        raise InputError(f"{path}: has an unexpected tensor '{min(unknown)[:100]}' that no supported model has")


def _label(stored_as: str) -> str:
    """What a message calls a tensor of ours: its name in the file, and which third of that it is."""
    their_name, _, storage = stored_as.partition("#")
    return f"{their_name} (third {int(storage) + 1})" if storage.isdigit() else their_name
