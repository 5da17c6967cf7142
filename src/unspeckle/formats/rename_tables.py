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

Pairs = Sequence[tuple[str, str]]
Rows = Sequence[tuple[str, str, Pairs]]
Names = dict[str, str]  # ours to theirs#how


@dataclass(frozen=True)
class Shape:
    """What turns a count of blocks into levels: blocks at each level on the way down, how many levels, and at which
    levels, the finest first, a transformer follows each block."""

    blocks: int = 1
    levels: int = 1
    followed: tuple[bool, ...] = ()


def names(ours: Iterable[str], rows: Rows, shape: Shape, prefix: str = "") -> Names:
    """Every name of ours with theirs. ValueError where the table has no row for one."""
    return {name: prefix + _theirs(name, rows, shape) for name in ours}


def _theirs(name: str, rows: Rows, shape: Shape) -> str:
    for ours, theirs, leaves in rows:
        found = re.match(re.escape(ours).replace(r"\{i\}", r"(\d+)") + r"(?:\.|$)", name)
        if found:
            rest = name[found.end() :]
            for mine, other in leaves:
                rest = re.sub(rf"(?<![^.]){re.escape(mine)}(?![^.])", other, rest)
            counted = _counted(ours, int(found[1]), shape) if found.lastindex else {}
            return ".".join(part for part in (theirs.format(**counted), rest) if part)
    raise ValueError(f"no row for {name}")


def _counted(ours: str, i: int, shape: Shape) -> dict[str, int]:
    whole = shape.blocks + 1
    if "shrink" in ours:
        return {"level": i, "n": (i + 1) * whole}
    if "grow" in ours:
        back = shape.levels - 1 - i
        k = 2 if shape.followed and shape.followed[back] else 1
        return {"level": i, "back": back, "n": (i + 1) * whole - 1, "k": k}
    if "up" in ours.split("."):
        level, block = divmod(i, whole)
        return {"level": level, "back": shape.levels - 1 - level, "block": block, "n": i}
    level, block = divmod(i, shape.blocks)
    return {"level": level, "block": block, "n": i + level + 1, "i": i}


def taken(table: Names, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors as ours, where they are there."""
    ours = {}
    for mine, said in table.items():
        theirs, _, how = said.partition("#")
        if theirs in held:
            tensor = held[theirs]
            if how.isdigit() and tensor.ndim and len(tensor) % 3 == 0:
                tensor = tensor.chunk(3)[int(how)]
            ours[mine] = tensor.T if how == "T" and tensor.ndim == 2 else tensor
            if how == "conv" and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
                ours[mine] = tensor[:, :, 0, 0]
    return ours


def given(table: Names, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors as theirs, contiguous."""
    theirs: dict[str, Tensor] = {}
    thirds: dict[str, list[Tensor]] = {}
    for mine, said in table.items():
        name, _, how = said.partition("#")
        tensor = ours[mine]
        if how.isdigit():
            thirds.setdefault(name, []).append(tensor)  # in the order query, key, value
            continue
        tensor = tensor[:, :, None, None] if how == "conv" else tensor.T if how == "T" else tensor
        theirs[name] = tensor.contiguous()
    return theirs | {name: torch.cat(parts) for name, parts in thirds.items()}
