"""A large picture in overlapping tiles, so that memory need hold but one at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

OVERLAP = 4  # neighbours share a quarter of a tile's side
MARGIN = (
    4  # of that, the outer quarter of each is dropped: there a tile sees the border that it has and the whole lacks
)


def map_tiles(code: Callable[[Tensor], Tensor], x: Tensor, tile: int, scale_in: int, scale_out: int) -> Tensor:
    """code of x (B, C, h · enter, w · enter), (B, C', h · leave, w · leave), from tiles of `side` places, blended in
    straight ramps; of the whole at once where side is 0 or a tile covers it.

    Not equal to the whole: normalisation and attention see a tile's own values. The ramps make the difference smooth.
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


def tile_positions(length: int, side: int) -> list[int]:
    """Where tiles begin: evenly, overlapping by a quarter at least."""
    count = 1 + max(0, -(-(length - side) // (side - side // OVERLAP)))
    return [round(i * max(0, length - side) / max(1, count - 1)) for i in range(count)]


def scale_slice(places: slice, by: int) -> slice:
    return slice(places.start * by, places.stop * by)


def tile_weights(positions: slice, length: int, tile: int, scale_out: int) -> Tensor:
    """Of a tile's values along one axis: 1, but for ramps toward its neighbours."""
    overlap = tile // OVERLAP * scale_out
    margin = overlap // MARGIN
    count = (positions.stop - positions.start) * scale_out
    at = torch.arange(count) + 0.5
    rise = ((at - margin) / (overlap - 2 * margin)).clamp(0, 1) if positions.start > 0 else torch.ones(count)
    fall = (
        ((count - at - margin) / (overlap - 2 * margin)).clamp(0, 1) if positions.stop < length else torch.ones(count)
    )
    return rise * fall
