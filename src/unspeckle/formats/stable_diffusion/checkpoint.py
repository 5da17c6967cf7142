"""A foreign checkpoint in our terms: configurations, and tensors by our names but as they were stored."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unspeckle.errors import InputError
from unspeckle.formats.rename_tables import Names, Rows, Shape, names, taken
from unspeckle.model_io.safetensors_io import check_tensors
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.networks.vae import Vae, VaeConfig
from unspeckle.schedule import STABLE_DIFFUSION, DiscreteSchedule
from unspeckle.text.clip import ClipConfig, ClipTexts, ClipTextsConfig
from unspeckle.text.clip_tokenizer import ClipTokenizer


@dataclass(frozen=True)
class Habits:
    """How a checkpoint wants to be drawn from. What it does not say is None or the other programs' default."""

    table: DiscreteSchedule = STABLE_DIFFUSION
    prediction: str = "eps"
    sampler: str = "dpmpp_2m"
    spacing: str | None = None  # of its time grids; None = what the sampler's own program does
    offset: int = 1  # by which its leading grids are moved up
    end: str | None = "first"  # entry of the table on which DDIM and PLMS end, or "zero"
    karras: bool = False
    size: int = 512  # of the pictures it learnt from, in pixels
    turbo: bool = False  # distilled to few steps without guidance


@dataclass
class Checkpoint:
    """Everything in it. tensors: "network.*", "autoencoder.*" and "text.encoders.N.*"."""

    where: Path
    unet: UNetConfig
    vae: VaeConfig
    texts: ClipTextsConfig
    tokenizer: ClipTokenizer
    habits: Habits
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """Stable Diffusion's: "1", "2", "xl" or "xl-refiner"."""
        if self.unet.vector_width:
            return "xl" if len(self.texts.encoders) == 2 else "xl-refiner"
        return "1" if self.unet.projection == "conv" else "2"

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one module."""
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def pieces(self) -> dict[str, nn.Module]:
        """The modules without their weights, by the prefix of their tensors."""
        with torch.device("meta"):
            return {"network": UNet(self.unet), "autoencoder": Vae(self.vae), "text": ClipTexts(self.texts)}


def table(kind: Callable[[Any], nn.Module], config: Any, rows: Rows, prefix: str = "") -> Names:
    """The names of everything in the module that the configuration makes, with theirs."""
    with torch.device("meta"):
        return names(kind(config).state_dict(), rows, shape(config), prefix)


def shape(config: UNetConfig | VaeConfig | ClipConfig) -> Shape:
    """How the configuration's blocks stand on levels."""
    if isinstance(config, ClipConfig):
        return Shape()
    followed = tuple(depth > 0 for depth in config.depths) if isinstance(config, UNetConfig) else ()
    return Shape(config.blocks, len(config.multipliers), followed)


def fetched(
    kind: Callable[[Any], nn.Module], config: Any, named: Names, held: Mapping[str, Tensor], file: Path, spare: str = ""
) -> dict[str, Tensor]:
    """The module's tensors out of those held. InputError, in their names, where one is missing, spare (but for those
    that the pattern `spare` allows), of another shape or not finite."""
    with torch.device("meta"):
        wanted = kind(config).state_dict()
    theirs = {said.split("#")[0] for said in named.values()}
    unknown = [name for name in held if name not in theirs and not (spare and re.match(spare, name))]
    if unknown:
        raise InputError(f"{file}: has a spare tensor '{sorted(unknown)[0][:100]}' that no model known here has")
    ours = taken(named, held)
    said = {name: f"{named[name].split('#')[0]}{_third(named[name])}" for name in wanted}
    renamed = [{said[name]: tensor for name, tensor in some.items()} for some in (wanted, ours)]
    check_tensors(renamed[0], renamed[1], file, "download")
    return ours


def _third(said: str) -> str:
    how = said.partition("#")[2]
    return f" (third {int(how) + 1})" if how.isdigit() else ""
