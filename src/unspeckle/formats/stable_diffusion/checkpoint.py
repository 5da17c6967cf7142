"""A foreign checkpoint in our terms: configurations, and tensors by our names but as they were stored."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unspeckle.errors import InputError
from unspeckle.formats.rename_tables import BlockLayout, NameTable, RenameRules, build_name_table, to_our_names
from unspeckle.model_io.safetensors_io import check_tensors
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.networks.vae import VAE, VAEConfig
from unspeckle.schedule import STABLE_DIFFUSION, DiscreteSchedule
from unspeckle.text.clip import CLIPTextConfig, CLIPTextEncoders, CLIPTextEncodersConfig
from unspeckle.text.clip_tokenizer import CLIPTokenizer


@dataclass(frozen=True)
class SchedulerDefaults:
    """How a checkpoint wants to be drawn from. What it does not say is None or the other programs' default."""

    schedule: DiscreteSchedule = STABLE_DIFFUSION
    prediction: str = "eps"
    sampler: str = "dpmpp_2m"
    timestep_spacing: str | None = None  # of its time grids; None = what the sampler's own program does
    steps_offset: int = 1  # by which its leading grids are moved up
    end_at: str | None = "first"  # entry of the table on which DDIM and PLMS end, or "zero"
    use_karras_sigmas: bool = False
    image_size: int = 512  # of the pictures it learnt from, in pixels
    is_turbo: bool = False  # distilled to few steps without guidance


@dataclass
class StableDiffusionCheckpoint:
    """Everything in it. tensors: "network.*", "autoencoder.*" and "text.encoders.N.*"."""

    path: Path
    unet_config: UNetConfig
    vae_config: VAEConfig
    text_config: CLIPTextEncodersConfig
    tokenizer: CLIPTokenizer
    scheduler_defaults: SchedulerDefaults
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """Stable Diffusion's: "1", "2", "xl" or "xl-refiner"."""
        if self.unet_config.vector_width:
            return "xl" if len(self.text_config.encoders) == 2 else "xl-refiner"
        return "1" if self.unet_config.transformer_projection == "conv" else "2"

    def part_tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one module."""
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def build_modules(self) -> dict[str, nn.Module]:
        """The modules without their weights, by the prefix of their tensors."""
        with torch.device("meta"):
            return {
                "network": UNet(self.unet_config),
                "autoencoder": VAE(self.vae_config),
                "text": CLIPTextEncoders(self.text_config),
            }


def module_name_table(
    module_class: Callable[[Any], nn.Module], config: Any, rules: RenameRules, prefix: str = ""
) -> NameTable:
    """The names of everything in the module that the configuration makes, with theirs."""
    with torch.device("meta"):
        return build_name_table(module_class(config).state_dict(), rules, block_layout(config), prefix)


def block_layout(config: UNetConfig | VAEConfig | CLIPTextConfig) -> BlockLayout:
    """How the configuration's blocks stand on levels."""
    if isinstance(config, CLIPTextConfig):
        return BlockLayout()
    has_transformer = tuple(depth > 0 for depth in config.transformer_depths) if isinstance(config, UNetConfig) else ()
    return BlockLayout(config.blocks_per_level, len(config.channel_multipliers), has_transformer)


def convert_tensors(
    module_class: Callable[[Any], nn.Module],
    config: Any,
    name_table: NameTable,
    tensors: Mapping[str, Tensor],
    file: Path,
    ignored_pattern: str = "",
) -> dict[str, Tensor]:
    """The module's tensors out of those held. InputError, in their names, where one is missing, spare (but for those
    that the pattern `spare` allows), of another shape or not finite."""
    with torch.device("meta"):
        expected = module_class(config).state_dict()
    their_names = {stored_as.split("#")[0] for stored_as in name_table.values()}
    unknown = [
        name
        for name in tensors
        if name not in their_names and not (ignored_pattern and re.match(ignored_pattern, name))
    ]
    if unknown:
        raise InputError(f"{file}: has a spare tensor '{sorted(unknown)[0][:100]}' that no model known here has")
    our_tensors = to_our_names(name_table, tensors)
    display_names = {name: f"{name_table[name].split('#')[0]}{_third_label(name_table[name])}" for name in expected}
    by_display_name = [
        {display_names[name]: tensor for name, tensor in group.items()} for group in (expected, our_tensors)
    ]
    check_tensors(by_display_name[0], by_display_name[1], file, "download")
    return our_tensors


def _third_label(stored_as: str) -> str:
    transform = stored_as.partition("#")[2]
    return f" (third {int(transform) + 1})" if transform.isdigit() else ""
