"""Rename tables: what a tensor of ours is called elsewhere, both ways.

A row says (ours, theirs, leaves). In ours {i} counts blocks from the entry on, as our modules do; theirs may use
{level} and {block} within it, {back}, the level counted from the other end, and {n}, the count with the resizings in
between, and {k}, 1 where the block before a resizing is alone and 2 where a transformer follows it. leaves are pairs
of dotted names to replace in the rest. Behind a # stands how theirs is stored: T transposed, conv as a 1 × 1
convolution, 0, 1 or 2 as that third of a joined tensor.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LeafRenames = Sequence[tuple[str, str]]
RenameRules = Sequence[tuple[str, str, LeafRenames]]
NameTable = dict[str, str]  # ours to theirs#how


@dataclass(frozen=True)
class BlockLayout:
    """What turns a count of blocks into levels: blocks at each level on the way down, how many levels, and at which
    levels, the finest first, a transformer follows each block."""

    blocks_per_level: int = 1
    levels: int = 1
    has_transformer: tuple[bool, ...] = ()


def build_name_table(our_names: Iterable[str], rules: RenameRules, layout: BlockLayout, prefix: str = "") -> NameTable:
    """Every name of ours with theirs. ValueError where the table has no row for one."""
    return {name: prefix + _their_name(name, rules, layout) for name in our_names}


def _their_name(name: str, rules: RenameRules, layout: BlockLayout) -> str:
    for our_pattern, their_pattern, leaf_renames in rules:
        match = re.match(re.escape(our_pattern).replace(r"\{i\}", r"(\d+)") + r"(?:\.|$)", name)
        if match:
            rest = name[match.end() :]
            for our_leaf, their_leaf in leaf_renames:
                rest = re.sub(rf"(?<![^.]){re.escape(our_leaf)}(?![^.])", their_leaf, rest)
            indices = _block_indices(our_pattern, int(match[1]), layout) if match.lastindex else {}
            return ".".join(part for part in (their_pattern.format(**indices), rest) if part)
    raise ValueError(f"no row for {name}")


def _block_indices(our_pattern: str, i: int, layout: BlockLayout) -> dict[str, int]:
    modules_per_level = layout.blocks_per_level + 1
    if "downsamplers" in our_pattern:
        return {"level": i, "n": (i + 1) * modules_per_level}
    if "upsamplers" in our_pattern:
        reverse_level = layout.levels - 1 - i
        k = 2 if layout.has_transformer and layout.has_transformer[reverse_level] else 1
        return {"level": i, "back": reverse_level, "n": (i + 1) * modules_per_level - 1, "k": k}
    if "up_blocks" in our_pattern.split("."):
        level, block = divmod(i, modules_per_level)
        return {"level": level, "back": layout.levels - 1 - level, "block": block, "n": i}
    level, block = divmod(i, layout.blocks_per_level)
    return {"level": level, "block": block, "n": i + level + 1, "i": i}


def to_our_names(table: NameTable, their_tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors as ours, where they are there."""
    our_tensors = {}
    for our_name, stored_as in table.items():
        their_name, _, transform = stored_as.partition("#")
        if their_name in their_tensors:
            tensor = their_tensors[their_name]
            if transform.isdigit() and tensor.ndim and len(tensor) % 3 == 0:
                tensor = tensor.chunk(3)[int(transform)]
            our_tensors[our_name] = tensor.T if transform == "T" and tensor.ndim == 2 else tensor
            if transform == "conv" and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
                our_tensors[our_name] = tensor[:, :, 0, 0]
    return our_tensors


def to_their_names(table: NameTable, our_tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors as theirs, contiguous."""
    their_tensors: dict[str, Tensor] = {}
    qkv_parts: dict[str, list[Tensor]] = {}
    for our_name, stored_as in table.items():
        their_name, _, transform = stored_as.partition("#")
        tensor = our_tensors[our_name]
        if transform.isdigit():
            qkv_parts.setdefault(their_name, []).append(tensor)  # in the order query, key, value
            continue
        tensor = tensor[:, :, None, None] if transform == "conv" else tensor.T if transform == "T" else tensor
        their_tensors[their_name] = tensor.contiguous()
    return their_tensors | {name: torch.cat(parts) for name, parts in qkv_parts.items()}
