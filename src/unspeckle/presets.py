"""Named sizes, as one table each. The millions of parameters are the network's own; a test holds the table to them."""

from dataclasses import dataclass, replace
from typing import Any

from unspeckle.errors import InputError
from unspeckle.networks import Config
from unspeckle.networks.transformer import TransformerConfig
from unspeckle.networks.unet import UNetConfig


@dataclass(frozen=True)
class Preset:
    """A network trained here and its text encoder, before the picture's size decides the patch."""

    name: str
    millions: float
    network: Config
    text_layers: int

    def at(self, size: tuple[int, int], channels: int = 3) -> Config:
        """The network for x of (width, height) and so many channels: 16 places a side at 64 pixels, more above."""
        short = min(size)
        patch = 4 if short >= 64 else 2 if short >= 32 else 1
        return replace(self.network, patch=patch, channels=channels)


_F, _T = False, True
# name     millions width multipliers blocks middle self-attention feed head text layers
_TABLE = (
    ("nano",   0.7,  24, (1, 2),       1, 1, (_F, _F),          _F, 24,  64, 1),
    ("micro",  2.4,  48, (1, 2),       1, 1, (_F, _T),          _F, 24,  96, 1),
    ("tiny",   6.4,  56, (1, 2),       2, 4, (_F, _T),          _T, 28, 128, 3),
    ("small", 11.6,  80, (1, 2),       2, 3, (_F, _T),          _T, 40, 128, 3),
    ("base",  35.6, 128, (1, 2, 2),    2, 1, (_F, _T, _T),      _F, 64, 256, 4),
    ("large", 73.1, 160, (1, 2, 2),    2, 1, (_F, _T, _T),      _T, 40, 384, 6),
    ("huge", 161.0, 192, (1, 2, 3),    2, 1, (_F, _T, _T),      _T, 64, 512, 8),
)  # fmt: skip


def _own(
    name: str, millions: float, width: int, multipliers: tuple[int, ...], blocks: int, middle: int,
    sees: tuple[bool, ...], feed: bool, head: int, text: int, layers: int,
) -> Preset:  # fmt: skip
    network = UNetConfig(
        width=width, multipliers=multipliers, blocks=blocks, depths=(1,) * len(multipliers), middle_depth=middle,
        sees_itself=sees, feed_forward=feed, head_width=head, text_width=text, vector_width=text, groups=0, draft=2,
    )  # fmt: skip
    return Preset(name, millions, network, layers)


# name       millions widths   layers stretch head text layers
_TRANSFORMERS = (
    ("t-nano",   0.7, (48, 96),   (1, 3),  2, 32,  64, 1),
    ("t-tiny",   7.9, (128, 256), (2, 8),  2, 64, 128, 3),
    ("t-small", 10.8, (128, 256), (2, 12), 2, 64, 128, 3),
)  # fmt: skip


def _transformer(
    name: str, millions: float, widths: tuple[int, ...], layers: tuple[int, ...], stretch: int, head: int,
    text: int, text_layers: int,
) -> Preset:  # fmt: skip
    network = TransformerConfig(
        widths=widths, layers=layers, stretch=stretch, head_width=head, text_width=text, vector_width=text, draft=2
    )
    return Preset(name, millions, network, text_layers)


LADDER = {row[0]: _own(*row) for row in _TABLE}  # what `train` chooses from by itself
PRESETS = LADDER | {row[0]: _transformer(*row) for row in _TRANSFORMERS}


def preset(name: str) -> Preset:
    """The preset of that name; InputError with the names there are."""
    if name not in PRESETS:
        raise InputError(f"--preset {name}: unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _stable(**changes: Any) -> UNetConfig:
    common = UNetConfig(
        channels=4, width=320, multipliers=(1, 2, 4, 4), depths=(1, 1, 1, 0), sees_itself=(_T,) * 4, feed_forward=True,
        projection="linear", head_width=64, scale_shift=False, clock_scale=1.0,
    )  # fmt: skip
    return replace(common, **changes)


STABLE_DIFFUSION = {  # Rombach et al. 2022; Stability AI 2022; Podell et al. 2023
    "1.5": _stable(projection="conv", heads=8, text_width=768),
    "2.1": _stable(text_width=1024),
    "xl":  _stable(multipliers=(1, 2, 4), depths=(0, 2, 10), middle_depth=10, sees_itself=(_T,) * 3, text_width=2048,
                   vector_width=2816),
}  # fmt: skip
