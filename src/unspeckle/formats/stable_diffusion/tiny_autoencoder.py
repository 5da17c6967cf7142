"""Tiny autoencoders: as diffusers keeps them (AutoencoderTiny), and the two files of the original."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.rename_tables import NameTable
from unspeckle.formats.stable_diffusion.checkpoint import convert_tensors
from unspeckle.formats.stable_diffusion.diffusers_config import ConfigDict, require_values
from unspeckle.model_io.safetensors_io import read_safetensors
from unspeckle.networks.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig

CLASS_NAME = "AutoencoderTiny"
_TAESD_KEY = re.compile(r"\d+\.(?:conv\.\d\.)?(?:weight|bias)")
_TAESD_ENCODER_FILE = "taesd_encoder.safetensors"
# What may be said only so, being how ours is built
_REQUIRED_VALUES = {
    "in_channels": 3, "out_channels": 3, "act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2,
}  # fmt: skip


def is_taesd(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of the original's encoder or decoder."""
    return bool(tensors) and all(_TAESD_KEY.fullmatch(name) for name in tensors)


def convert_taesd_file(tensors: Mapping[str, Tensor], file: Path) -> tuple[TinyAutoencoderConfig, dict[str, Tensor]]:
    """The decoder's file, with the encoder's where that lies beside it. InputError where it is none or incomplete."""
    if "1.weight" not in tensors or tensors["1.weight"].ndim != 4:
        raise InputError(f"{file}: is no tiny decoder; give taesd_decoder.safetensors (its encoder is found beside it)")
    encoder_file = file.with_name(file.name.replace("decoder", "encoder"))
    has_encoder = encoder_file != file and encoder_file.is_file()
    width, latents = tensors["1.weight"].shape[:2]
    config = TinyAutoencoderConfig(latent_channels=latents, base_channels=width, has_encoder=has_encoder)
    # the original begins with a clamp, which is no layer of ours
    renamed = {
        f"decoder.{int(name.split('.')[0]) - 1}.{name.split('.', 1)[1]}": tensor for name, tensor in tensors.items()
    }
    if has_encoder:
        renamed |= {f"encoder.{name}": tensor for name, tensor in read_safetensors(encoder_file, "download")[1].items()}
    return config, convert_tensors(TinyAutoencoder, config, _infix_name_table(config, ""), renamed, file)


def convert_autoencoder_tiny(
    config_json: ConfigDict, tensors: Mapping[str, Tensor], folder_path: Path
) -> tuple[TinyAutoencoderConfig, dict[str, Tensor]]:
    """A folder of diffusers: its config.json and tensors. InputError where our networks lack what it says."""
    require_values(config_json, _REQUIRED_VALUES, folder_path)
    widths = {
        *config_json.get("encoder_block_out_channels", (64,)),
        *config_json.get("decoder_block_out_channels", (64,)),
    }
    down_blocks, up_blocks = (tuple(config_json.get(f"num_{half}_blocks", ())) for half in ("encoder", "decoder"))
    sizes: list[Any] = [*widths, *down_blocks, *up_blocks, config_json.get("latent_channels", 4)]
    if (
        len(widths) != 1
        or len(down_blocks) != len(up_blocks)
        or any(type(size) is not int or not 0 < size < 4096 for size in sizes)
    ):
        raise InputError(f"{folder_path}: is of an {CLASS_NAME} that is not known here")
    config = TinyAutoencoderConfig(
        latent_channels=sizes[-1], base_channels=sizes[0], encoder_blocks=down_blocks or TinyAutoencoderConfig.encoder_blocks, decoder_blocks=up_blocks or TinyAutoencoderConfig.decoder_blocks,
        scaling_factor=float(config_json.get("scaling_factor") or 1.0), shift_factor=float(config_json.get("shift_factor") or 0.0),
    )  # fmt: skip
    return config, convert_tensors(TinyAutoencoder, config, _infix_name_table(config, ".layers"), tensors, folder_path)


def _infix_name_table(config: TinyAutoencoderConfig, infix: str) -> NameTable:
    """Their names are ours, but for a word behind the first."""
    with torch.device("meta"):
        our_names = TinyAutoencoder(config).state_dict()
    return {name: name.replace(".", f"{infix}.", 1) for name in our_names}
