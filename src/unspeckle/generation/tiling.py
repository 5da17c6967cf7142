"""A large picture in overlapping tiles, so that memory need hold but one at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

OVERLAP = 4  # neighbours share a quarter of a tile's side
MARGIN = (
    4  # of that, the outer quarter of each is dropped: there a tile sees the border that it has and the whole lacks
)


def tiled(code: Callable[[Tensor], Tensor], x: Tensor, side: int, enter: int, leave: int) -> Tensor:
    """code of x (B, C, h · enter, w · enter), (B, C', h · leave, w · leave), from tiles of `side` places, blended in
    straight ramps; of the whole at once where side is 0 or a tile covers it.

    Not equal to the whole: normalisation and attention see a tile's own values. The ramps make the difference smooth.
    """
    high, wide = x.shape[2] // enter, x.shape[3] // enter
    if not side or (side >= high and side >= wide):
        return code(x)
    out, weights = None, None
    for top in _places(high, side):
        for left in _places(wide, side):
            rows, columns = slice(top, min(top + side, high)), slice(left, min(left + side, wide))
            part = code(x[:, :, _scaled(rows, enter), _scaled(columns, enter)])
            weight = _weights(rows, high, side, leave)[:, None] * _weights(columns, wide, side, leave)
            weight = weight.to(part.device)
            if out is None or weights is None:
                out = part.new_zeros(*part.shape[:2], high * leave, wide * leave, dtype=torch.float32)
                weights = out.new_zeros(out.shape[2:])
            out[:, :, _scaled(rows, leave), _scaled(columns, leave)] += weight * part
            weights[_scaled(rows, leave), _scaled(columns, leave)] += weight
    assert out is not None and weights is not None
    return out / weights


def _places(length: int, side: int) -> list[int]:
    """Where tiles begin: evenly, overlapping by a quarter at least."""
    count = 1 + max(0, -(-(length - side) // (side - side // OVERLAP)))
    return [round(i * max(0, length - side) / max(1, count - 1)) for i in range(count)]


def _scaled(places: slice, by: int) -> slice:
    return slice(places.start * by, places.stop * by)


def _weights(places: slice, length: int, side: int, leave: int) -> Tensor:
    """Of a tile's values along one axis: 1, but for ramps toward its neighbours."""
    overlap = side // OVERLAP * leave
    margin = overlap // MARGIN
    count = (places.stop - places.start) * leave
    at = torch.arange(count) + 0.5
    rise = ((at - margin) / (overlap - 2 * margin)).clamp(0, 1) if places.start > 0 else torch.ones(count)
    fall = ((count - at - margin) / (overlap - 2 * margin)).clamp(0, 1) if places.stop < length else torch.ones(count)
    return rise * fall
