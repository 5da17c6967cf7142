"""Named sizes of networks: those that are trained here, and Stable Diffusion's."""

from dataclasses import dataclass, replace
from itertools import starmap
from typing import NamedTuple

from unspeckle.errors import InputError
from unspeckle.networks import PresetConfig
from unspeckle.networks.transformer import TransformerConfig
from unspeckle.networks.unet import UNetConfig


@dataclass(frozen=True)
class Preset:
    """A network and its text encoder, for images of any size."""

    name: str
    # Parameters of the network for images of 64 × 64 pixels, in millions; a test compares it with the network.
    million_parameters: float
    # The network, whose patch_size and channels are still to be decided.
    network: PresetConfig
    # Transformer layers of the text encoder, which is as wide as network.text_width.
    text_layers: int

    def for_size(self, size: tuple[int, int], channels: int = 3) -> PresetConfig:
        """The network for x of that size (width, height) and number of channels. Its first level has 16 × 16 pixels for
        x of 64 × 64 and of 32 × 32, and more for larger x."""
        shorter_side = min(size)
        patch_size = 4 if shorter_side >= 64 else 2 if shorter_side >= 32 else 1
        return replace(self.network, patch_size=patch_size, channels=channels)


class _UNetRow(NamedTuple):
    name: str
    million_parameters: float
    base_channels: int
    channel_multipliers: tuple[int, ...]
    blocks_per_level: int
    mid_transformer_depth: int
    self_attention: tuple[bool, ...]
    feed_forward: bool
    head_width: int
    text_width: int
    text_layers: int

    def preset(self) -> Preset:
        network = UNetConfig(
            base_channels=self.base_channels,
            channel_multipliers=self.channel_multipliers,
            blocks_per_level=self.blocks_per_level,
            transformer_depths=(1,) * len(self.channel_multipliers),
            mid_transformer_depth=self.mid_transformer_depth,
            self_attention=self.self_attention,
            feed_forward=self.feed_forward,
            head_width=self.head_width,
            text_width=self.text_width,
            vector_width=self.text_width,
            norm_groups=0,
            coarse_predictor_layers=2,
        )
        return Preset(self.name, self.million_parameters, network, self.text_layers)


class _TransformerRow(NamedTuple):
    name: str
    million_parameters: float
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratio: int
    head_width: int
    text_width: int
    text_layers: int

    def preset(self) -> Preset:
        network = TransformerConfig(
            widths=self.widths,
            depths=self.depths,
            mlp_ratio=self.mlp_ratio,
            head_width=self.head_width,
            text_width=self.text_width,
            vector_width=self.text_width,
            coarse_predictor_layers=2,
        )
        return Preset(self.name, self.million_parameters, network, self.text_layers)


_F, _T = False, True
_UNET_TABLE = (  # columns: the fields of _UNetRow
    ("nano",    0.7,  24, (1, 2),    1, 1, (_F, _F),     _F, 24,  64, 1),
    ("micro",   2.4,  48, (1, 2),    1, 1, (_F, _T),     _F, 24,  96, 1),
    ("tiny",    6.4,  56, (1, 2),    2, 4, (_F, _T),     _T, 28, 128, 3),
    ("small",  11.6,  80, (1, 2),    2, 3, (_F, _T),     _T, 40, 128, 3),
    ("base",   35.6, 128, (1, 2, 2), 2, 1, (_F, _T, _T), _F, 64, 256, 4),
    ("large",  73.1, 160, (1, 2, 2), 2, 1, (_F, _T, _T), _T, 40, 384, 6),
    ("huge",  161.0, 192, (1, 2, 3), 2, 1, (_F, _T, _T), _T, 64, 512, 8),
)  # fmt: skip
_TRANSFORMER_TABLE = (  # columns: the fields of _TransformerRow
    ("t-nano",   0.7, (48, 96),   (1, 3),  2, 32,  64, 1),
    ("t-tiny",   7.9, (128, 256), (2, 8),  2, 64, 128, 3),
    ("t-small", 10.8, (128, 256), (2, 12), 2, 64, 128, 3),
)  # fmt: skip

# By their names. `train` chooses among the U-Nets by itself.
UNET_PRESETS = {row.name: row.preset() for row in starmap(_UNetRow, _UNET_TABLE)}
PRESETS = UNET_PRESETS | {row.name: row.preset() for row in starmap(_TransformerRow, _TRANSFORMER_TABLE)}


def get_preset(name: str) -> Preset:
    """The preset of that name. InputError if there is none."""
    if name not in PRESETS:
        raise InputError(f" {name}: unknown; choose one of {', '.join(PRESETS)}", "preset")
    return PRESETS[name]


_STABLE_DIFFUSION_2 = UNetConfig(
    channels=4,
    base_channels=320,
    channel_multipliers=(1, 2, 4, 4),
    transformer_depths=(1, 1, 1, 0),
    self_attention=(True,) * 4,
    feed_forward=True,
    transformer_projection="linear",
    head_width=64,
    text_width=1024,
    scale_shift=False,
    time_scale=1.0,
)
# Rombach et al. 2022; Stability AI 2022; Podell et al. 2023.
STABLE_DIFFUSION_CONFIGS = {
    "1.5": replace(_STABLE_DIFFUSION_2, transformer_projection="conv", heads=8, text_width=768),
    "2.1": _STABLE_DIFFUSION_2,
    "xl": replace(
        _STABLE_DIFFUSION_2,
        channel_multipliers=(1, 2, 4),
        transformer_depths=(0, 2, 10),
        mid_transformer_depth=10,
        self_attention=(True,) * 3,
        text_width=2048,
        vector_width=2816,
    ),
}
