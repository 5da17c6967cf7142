"""Tiny autoencoders: as diffusers keeps them (AutoencoderTiny), and the two files of the original."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.rename_tables import Names
from unspeckle.formats.stable_diffusion.checkpoint import fetched
from unspeckle.formats.stable_diffusion.diffusers_config import Said, only
from unspeckle.model_io.safetensors_io import read_safetensors
from unspeckle.networks.tiny_autoencoder import TinyVae, TinyVaeConfig

KIND = "AutoencoderTiny"
_ORIGINAL = re.compile(r"\d+\.(?:conv\.\d\.)?(?:weight|bias)")
_ENCODER = "taesd_encoder.safetensors"
# What may be said only so, being how ours is built
_KNOWN = {
    "in_channels": 3, "out_channels": 3, "act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2,
}  # fmt: skip


def is_original(held: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of the original's encoder or decoder."""
    return bool(held) and all(_ORIGINAL.fullmatch(name) for name in held)


def original(held: Mapping[str, Tensor], file: Path) -> tuple[TinyVaeConfig, dict[str, Tensor]]:
    """The decoder's file, with the encoder's where that lies beside it. InputError where it is none or incomplete."""
    if "1.weight" not in held or held["1.weight"].ndim != 4:
        raise InputError(f"{file}: is no tiny decoder; give taesd_decoder.safetensors (its encoder is found beside it)")
    beside = file.with_name(file.name.replace("decoder", "encoder"))
    encodes = beside != file and beside.is_file()
    width, latents = held["1.weight"].shape[:2]
    config = TinyVaeConfig(latents=latents, width=width, encodes=encodes)
    # the original begins with a clamp, which is no layer of ours
    renamed = {f"decoder.{int(name.split('.')[0]) - 1}.{name.split('.', 1)[1]}": one for name, one in held.items()}
    if encodes:
        renamed |= {f"encoder.{name}": one for name, one in read_safetensors(beside, "download")[1].items()}
    return config, fetched(TinyVae, config, _same(config, ""), renamed, file)


def folder(said: Said, held: Mapping[str, Tensor], place: Path) -> tuple[TinyVaeConfig, dict[str, Tensor]]:
    """A folder of diffusers: its config.json and tensors. InputError where our networks lack what it says."""
    only(said, _KNOWN, place)
    widths = {*said.get("encoder_block_out_channels", (64,)), *said.get("decoder_block_out_channels", (64,))}
    down, up = (tuple(said.get(f"num_{half}_blocks", ())) for half in ("encoder", "decoder"))
    numbers: list[Any] = [*widths, *down, *up, said.get("latent_channels", 4)]
    if len(widths) != 1 or len(down) != len(up) or any(type(n) is not int or not 0 < n < 4096 for n in numbers):
        raise InputError(f"{place}: is of an {KIND} that is not known here")
    config = TinyVaeConfig(
        latents=numbers[-1], width=numbers[0], down=down or TinyVaeConfig.down, up=up or TinyVaeConfig.up,
        scale=float(said.get("scaling_factor") or 1.0), shift=float(said.get("shift_factor") or 0.0),
    )  # fmt: skip
    return config, fetched(TinyVae, config, _same(config, ".layers"), held, place)


def _same(config: TinyVaeConfig, between: str) -> Names:
    """Their names are ours, but for a word behind the first."""
    with torch.device("meta"):
        ours = TinyVae(config).state_dict()
    return {name: name.replace(".", f"{between}.", 1) for name in ours}
