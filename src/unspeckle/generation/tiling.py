"""A function of an image evaluated on overlapping tiles, so that only one of them needs memory at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

# Neighboring tiles share 1 / OVERLAP of a tile's side.
OVERLAP = 4
# The outer 1 / MARGIN of that overlap is dropped: there a tile sees a border that the whole image does not have.
MARGIN = 4


def map_tiles(
    encode_or_decode: Callable[[Tensor], Tensor], x: Tensor, tile: int, scale_in: int, scale_out: int
) -> Tensor:
    """encode_or_decode(x), evaluated on square tiles and blended by linear ramps; on all of x at once where tile is 0
    or covers it.

    x is (B, C, h · scale_in, w · scale_in), the result (B, C', h · scale_out, w · scale_out). tile: the side of a tile,
    in units of h and w. The result differs a little from that of all of x, as normalization and attention see a tile's
    values only; the ramps make the difference smooth."""
    high, wide = x.shape[2] // scale_in, x.shape[3] // scale_in
    if not tile or (tile >= high and tile >= wide):
        return encode_or_decode(x)
    out, weights = None, None
    for top in tile_positions(high, tile):
        for left in tile_positions(wide, tile):
            rows, columns = slice(top, min(top + tile, high)), slice(left, min(left + tile, wide))
            part = encode_or_decode(x[:, :, scale_slice(rows, scale_in), scale_slice(columns, scale_in)])
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
    """Where the tiles along one axis start: evenly spaced, overlapping by at least a quarter."""
    count = 1 + max(0, -(-(length - tile) // (tile - tile // OVERLAP)))
    return [round(i * max(0, length - tile) / max(1, count - 1)) for i in range(count)]


def scale_slice(positions: slice, by: int) -> slice:
    """The same part of an axis that is `by` times as long."""
    return slice(positions.start * by, positions.stop * by)


def tile_weights(positions: slice, length: int, tile: int, scale_out: int) -> Tensor:
    """The weights of a tile's values along one axis: 1, with ramps toward its neighbors."""
    overlap = tile // OVERLAP * scale_out
    margin = overlap // MARGIN
    count = (positions.stop - positions.start) * scale_out
    at, ramp, ones = torch.arange(count) + 0.5, overlap - 2 * margin, torch.ones(count)
    rise = ((at - margin) / ramp).clamp(0, 1) if positions.start > 0 else ones
    fall = ((count - at - margin) / ramp).clamp(0, 1) if positions.stop < length else ones
    return rise * fall
