"""A large image in overlapping tiles, so that memory need hold only one at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

OVERLAP = 4  # neighboring tiles share a quarter of a tile's side
MARGIN = 4  # the outer quarter of that overlap is dropped: there a tile sees its own border, which the whole lacks


def map_tiles(code: Callable[[Tensor], Tensor], x: Tensor, tile: int, scale_in: int, scale_out: int) -> Tensor:
    """code(x) from tiles of `tile` latents a side, blended in linear ramps; of the whole at once where tile is 0 or
    covers it. x is (B, C, h · scale_in, w · scale_in), the result (B, C', h · scale_out, w · scale_out).

    Not equal to the whole: normalization and attention see a tile's own values. The ramps make the difference smooth.
    """
    high, wide = x.shape[2] // scale_in, x.shape[3] // scale_in
    if not tile or (tile >= high and tile >= wide):
        return code(x)
    out, weights = None, None
    for top in tile_positions(high, tile):
        for left in tile_positions(wide, tile):
            rows, columns = slice(top, min(top + tile, high)), slice(left, min(left + tile, wide))
            part = code(x[:, :, scale_slice(rows, scale_in), scale_slice(columns, scale_in)])
            weight = tile_weights(rows, high, tile, scale_out)[:, None] * tile_weights(columns, wide, tile, scale_out)
            weight = weight.to(part.device)
            if out is None or weights is None:
                out = part.new_zeros(*part.shape[:2], high * scale_out, wide * scale_out, dtype=torch.float32)
                weights = out.new_zeros(out.shape[2:])
            out[:, :, scale_slice(rows, scale_out), scale_slice(columns, scale_out)] += weight * part
            weights[scale_slice(rows, scale_out), scale_slice(columns, scale_out)] += weight
    assert out is not None and weights is not None
    return out / weights


def tile_positions(length: int, tile: int) -> list[int]:
    """Where the tiles along one side begin: evenly spaced, overlapping by a quarter at least."""
    count = 1 + max(0, -(-(length - tile) // (tile - tile // OVERLAP)))
    return [round(i * max(0, length - tile) / max(1, count - 1)) for i in range(count)]


def scale_slice(positions: slice, by: int) -> slice:
    return slice(positions.start * by, positions.stop * by)


def tile_weights(positions: slice, length: int, tile: int, scale_out: int) -> Tensor:
    """The weights of a tile's values along one axis: 1, but for ramps toward its neighbors."""
    overlap = tile // OVERLAP * scale_out
    margin = overlap // MARGIN
    count = (positions.stop - positions.start) * scale_out
    at, ramp, ones = torch.arange(count) + 0.5, overlap - 2 * margin, torch.ones(count)
    rise = ((at - margin) / ramp).clamp(0, 1) if positions.start > 0 else ones
    fall = ((count - at - margin) / ramp).clamp(0, 1) if positions.stop < length else ones
    return rise * fall
