"""Named sizes, as one table each. The millions of parameters are the network's own; a test holds the table to them."""

from dataclasses import dataclass, replace
from typing import Any

from unspeckle.errors import InputError
from unspeckle.networks import NetworkConfig
from unspeckle.networks.transformer import TransformerConfig
from unspeckle.networks.unet import UNetConfig


@dataclass(frozen=True)
class Preset:
    """A network trained here and its text encoder, before the picture's size decides the patch."""

    name: str
    million_parameters: float
    network: NetworkConfig
    text_layers: int

    def for_size(self, size: tuple[int, int], channels: int = 3) -> NetworkConfig:
        """The network for x of (width, height) and so many channels: 16 places a side at 64 pixels, more above."""
        shorter_side = min(size)
        patch_size = 4 if shorter_side >= 64 else 2 if shorter_side >= 32 else 1
        return replace(self.network, patch_size=patch_size, channels=channels)


_F, _T = False, True
# name     millions width multipliers blocks middle self-attention feed head text layers
_UNET_TABLE = (
    ("nano",   0.7,  24, (1, 2),       1, 1, (_F, _F),          _F, 24,  64, 1),
    ("micro",  2.4,  48, (1, 2),       1, 1, (_F, _T),          _F, 24,  96, 1),
    ("tiny",   6.4,  56, (1, 2),       2, 4, (_F, _T),          _T, 28, 128, 3),
    ("small", 11.6,  80, (1, 2),       2, 3, (_F, _T),          _T, 40, 128, 3),
    ("base",  35.6, 128, (1, 2, 2),    2, 1, (_F, _T, _T),      _F, 64, 256, 4),
    ("large", 73.1, 160, (1, 2, 2),    2, 1, (_F, _T, _T),      _T, 40, 384, 6),
    ("huge", 161.0, 192, (1, 2, 3),    2, 1, (_F, _T, _T),      _T, 64, 512, 8),
)  # fmt: skip


def _unet_preset(
    name: str, million_parameters: float, base_channels: int, channel_multipliers: tuple[int, ...], blocks_per_level: int, mid_transformer_depth: int,
    self_attention: tuple[bool, ...], feed_forward: bool, head_width: int, text_width: int, text_layers: int,
) -> Preset:  # fmt: skip
    network = UNetConfig(
        base_channels=base_channels, channel_multipliers=channel_multipliers, blocks_per_level=blocks_per_level, transformer_depths=(1,) * len(channel_multipliers), mid_transformer_depth=mid_transformer_depth,
        self_attention=self_attention, feed_forward=feed_forward, head_width=head_width, text_width=text_width, vector_width=text_width, norm_groups=0, coarse_predictor_layers=2,
    )  # fmt: skip
    return Preset(name, million_parameters, network, text_layers)


# name       millions widths   layers stretch head text layers
_TRANSFORMER_TABLE = (
    ("t-nano",   0.7, (48, 96),   (1, 3),  2, 32,  64, 1),
    ("t-tiny",   7.9, (128, 256), (2, 8),  2, 64, 128, 3),
    ("t-small", 10.8, (128, 256), (2, 12), 2, 64, 128, 3),
)  # fmt: skip


def _transformer_preset(
    name: str, million_parameters: float, widths: tuple[int, ...], depths: tuple[int, ...], mlp_ratio: int, head_width: int,
    text_width: int, text_layers: int,
) -> Preset:  # fmt: skip
    network = TransformerConfig(
        widths=widths,
        depths=depths,
        mlp_ratio=mlp_ratio,
        head_width=head_width,
        text_width=text_width,
        vector_width=text_width,
        coarse_predictor_layers=2,
    )
    return Preset(name, million_parameters, network, text_layers)


UNET_PRESETS = {row[0]: _unet_preset(*row) for row in _UNET_TABLE}  # what `train` chooses from by itself
PRESETS = UNET_PRESETS | {row[0]: _transformer_preset(*row) for row in _TRANSFORMER_TABLE}


def get_preset(name: str) -> Preset:
    """The preset of that name; InputError with the names there are."""
    if name not in PRESETS:
        raise InputError(f"--preset {name}: unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _stable_diffusion_config(**changes: Any) -> UNetConfig:
    defaults = UNetConfig(
        channels=4, base_channels=320, channel_multipliers=(1, 2, 4, 4), transformer_depths=(1, 1, 1, 0), self_attention=(_T,) * 4, feed_forward=True,
        transformer_projection="linear", head_width=64, scale_shift=False, time_scale=1.0,
    )  # fmt: skip
    return replace(defaults, **changes)


STABLE_DIFFUSION_CONFIGS = {  # Rombach et al. 2022; Stability AI 2022; Podell et al. 2023
    "1.5": _stable_diffusion_config(transformer_projection="conv", heads=8, text_width=768),
    "2.1": _stable_diffusion_config(text_width=1024),
    "xl":  _stable_diffusion_config(channel_multipliers=(1, 2, 4), transformer_depths=(0, 2, 10), mid_transformer_depth=10, self_attention=(_T,) * 3, text_width=2048,
                   vector_width=2816),
}  # fmt: skip
