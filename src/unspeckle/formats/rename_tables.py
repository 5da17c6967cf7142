"""Rename tables: what a tensor of ours is called in another program's checkpoint, in both directions.

A table is a sequence of rows (our pattern, their pattern, leaf renames). Our modules number their blocks from the input
on, through all levels: {i} in our pattern is that number. Their pattern may use these placeholders:

    {level}          the level of the block, 0 being the first that the data passes
    {reverse_level}  the same, counted from the other end
    {block}          the number of the block within its level
    {n}              the number of the block, where down- and upsamplers are counted too
    {k}              the position of an upsampler behind its block: 1, or 2 where a transformer stands between
    {i}              our number

What follows the pattern in a tensor's name is the leaf; the leaf renames are pairs (ours, theirs) of dotted pieces of
it. A # in their name says how the tensor is stored: "#T" transposed, "#conv" as a 1 × 1 convolution, and "#0", "#1" or
"#2" as that third of one tensor that joins query, key and value.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LeafRenames = Sequence[tuple[str, str]]
RenameRules = Sequence[tuple[str, str, LeafRenames]]
NameTable = dict[str, str]  # our full name to theirs, with the "#" and how it is stored


@dataclass(frozen=True)
class BlockLayout:
    """How the blocks of a network stand on its levels, by which our numbers of blocks become theirs."""

    blocks_per_level: int = 1  # on the way down; there is one more on the way up
    levels: int = 1
    has_transformer: tuple[bool, ...] = ()  # for each level, the finest first: does a transformer follow each block


NO_LEVELS = BlockLayout()


def build_name_table(our_names: Iterable[str], rules: RenameRules, layout: BlockLayout, prefix: str = "") -> NameTable:
    """Each of our names with theirs, which begins with the prefix. ValueError where the rules have no row for a
    name."""
    return {name: prefix + _their_name(name, rules, layout) for name in our_names}


def _their_name(name: str, rules: RenameRules, layout: BlockLayout) -> str:
    for our_pattern, their_pattern, leaf_renames in rules:
        match = re.match(re.escape(our_pattern).replace(r"\{i\}", r"(\d+)") + r"(?:\.|$)", name)
        if match:
            leaf = name[match.end() :]
            for our_piece, their_piece in leaf_renames:
                leaf = re.sub(rf"(?<![^.]){re.escape(our_piece)}(?![^.])", their_piece, leaf)
            placeholders = _placeholders(our_pattern, int(match[1]), layout) if match.lastindex else {}
            return ".".join(part for part in (their_pattern.format(**placeholders), leaf) if part)
    raise ValueError(f"no row for {name}")


def _placeholders(our_pattern: str, i: int, layout: BlockLayout) -> dict[str, int]:
    modules_per_level = layout.blocks_per_level + 1
    pieces = our_pattern.split(".")
    if "downsamplers" in pieces:
        return {"level": i, "n": (i + 1) * modules_per_level}
    if "upsamplers" in pieces:
        reverse_level = layout.levels - 1 - i
        k = 2 if layout.has_transformer and layout.has_transformer[reverse_level] else 1
        return {"level": i, "reverse_level": reverse_level, "n": (i + 1) * modules_per_level - 1, "k": k}
    if "up_blocks" in pieces:
        level, block = divmod(i, modules_per_level)
        return {"level": level, "reverse_level": layout.levels - 1 - level, "block": block, "n": i}
    level, block = divmod(i, layout.blocks_per_level)
    return {"level": level, "block": block, "n": i + level + 1, "i": i}


def to_our_names(table: NameTable, their_tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors by our names and in our shapes. Tensors that are missing are missing in the result too."""
    our_tensors = {}
    for our_name, stored_as in table.items():
        their_name, _, storage = stored_as.partition("#")
        if their_name not in their_tensors:
            continue
        tensor = their_tensors[their_name]
        if storage.isdigit() and tensor.ndim and len(tensor) % 3 == 0:
            tensor = tensor.chunk(3)[int(storage)]
        elif storage == "T" and tensor.ndim == 2:
            tensor = tensor.T
        elif storage == "conv" and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        our_tensors[our_name] = tensor
    return our_tensors


def to_their_names(table: NameTable, our_tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors by their names and in their shapes, contiguous."""
    their_tensors: dict[str, Tensor] = {}
    thirds: dict[str, list[Tensor]] = {}  # of tensors that join query, key and value, in this order
    for our_name, stored_as in table.items():
        their_name, _, storage = stored_as.partition("#")
        tensor = our_tensors[our_name]
        if storage.isdigit():
            thirds.setdefault(their_name, []).append(tensor)
        elif storage == "conv":
            their_tensors[their_name] = tensor[:, :, None, None].contiguous()
        else:
            their_tensors[their_name] = (tensor.T if storage == "T" else tensor).contiguous()
    return their_tensors | {name: torch.cat(parts) for name, parts in thirds.items()}
