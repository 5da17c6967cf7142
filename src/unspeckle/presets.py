"""Named sizes, as one table each. The counts of parameters are those of the network alone, measured."""

from .networks.unet import UNetConfig

_T, _F = True, False

# name    patch width multipliers   blocks depths        middle sees_itself          feed   head  text
_OWN = {
    "atom":  (4,  32, (1, 2),       1, (1, 1),       1, (_F, _T),          _F,  32,  128),
}  # fmt: skip


def _stable(**changes: object) -> UNetConfig:
    common = dict(
        channels=4, width=320, multipliers=(1, 2, 4, 4), depths=(1, 1, 1, 0), middle_depth=1, sees_itself=(_T,) * 4,
        feed_forward=True, projection="linear", head_width=64, scale_shift=False, clock_scale=1.0,
    )  # fmt: skip
    return UNetConfig(**{**common, **changes})  # type: ignore[arg-type]


STABLE = {  # Rombach et al. 2022; Stability AI 2022; Podell et al. 2023
    "sd-1.5": _stable(projection="conv", heads=8, text_width=768),
    "sd-2.1": _stable(text_width=1024),
    "sd-xl": _stable(
        multipliers=(1, 2, 4), depths=(0, 2, 10), middle_depth=10, sees_itself=(_T,) * 3, text_width=2048, vector_width=2816
    ),
}
