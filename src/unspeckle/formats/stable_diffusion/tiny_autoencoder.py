"""Tiny autoencoders (TAESD): the AutoencoderTiny of diffusers, and the two files of the original."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.checkpoint_parts import CheckpointPart, convert_tensors
from unspeckle.formats.rename_tables import RenameRules
from unspeckle.formats.safetensors_io import read_safetensors
from unspeckle.formats.stable_diffusion.diffusers_config import ConfigDict, require_values
from unspeckle.networks.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig

CLASS_NAME = "AutoencoderTiny"
_TAESD_KEY = re.compile(r"\d+\.(?:conv\.\d\.)?(?:weight|bias)")
# The only values that our networks support; a file may leave them out
_REQUIRED_VALUES = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
}
_DIFFUSERS_NAMES: RenameRules = (("encoder", "encoder.layers", ()), ("decoder", "decoder.layers", ()))
_ORIGINAL_NAMES: RenameRules = (("encoder", "encoder", ()), ("decoder", "decoder", ()))


def tiny_autoencoder_part(config: TinyAutoencoderConfig) -> CheckpointPart:
    """A tiny autoencoder as a part of a checkpoint."""
    rules = {"diffusers": _DIFFUSERS_NAMES, "original": _ORIGINAL_NAMES}
    return CheckpointPart(TinyAutoencoder, config, rules=rules, folder="vae")  # type: ignore[arg-type]


def is_taesd(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of the original's encoder or decoder, which are numbered layers."""
    return bool(tensors) and all(_TAESD_KEY.fullmatch(name) for name in tensors)


def convert_taesd_file(tensors: Mapping[str, Tensor], file: Path) -> tuple[CheckpointPart, dict[str, Tensor]]:
    """The autoencoder whose decoder has these tensors, and its tensors by our names; with its encoder where that file
    lies beside it. InputError where the file is no decoder, or is incomplete."""
    if "1.weight" not in tensors or tensors["1.weight"].ndim != 4:
        raise InputError(f"{file}: is no tiny decoder; give taesd_decoder.safetensors (its encoder is found beside it)")
    encoder_file = file.with_name(file.name.replace("decoder", "encoder"))
    has_encoder = encoder_file != file and encoder_file.is_file()
    base_channels, latent_channels = tensors["1.weight"].shape[:2]
    part = tiny_autoencoder_part(
        TinyAutoencoderConfig(latent_channels=latent_channels, base_channels=base_channels, has_encoder=has_encoder)
    )
    their_tensors = {}
    for name, tensor in tensors.items():
        layer, _, rest = name.partition(".")
        their_tensors[f"decoder.{int(layer) - 1}.{rest}"] = (
            tensor  # their layer 0 is a clamp, which is no layer of ours
        )
    if has_encoder:
        _, encoder_tensors = read_safetensors(encoder_file, "download")
        their_tensors |= {f"encoder.{name}": tensor for name, tensor in encoder_tensors.items()}
    return part, convert_tensors(part, "original", their_tensors, file)


def convert_autoencoder_tiny(
    config_json: ConfigDict, tensors: Mapping[str, Tensor], folder: Path
) -> tuple[CheckpointPart, dict[str, Tensor]]:
    """The autoencoder of a diffusers folder with that config.json and tensors, and its tensors by our names. InputError
    where its sizes are not supported."""
    require_values(config_json, _REQUIRED_VALUES, folder)
    widths = {
        *config_json.get("encoder_block_out_channels", (64,)),
        *config_json.get("decoder_block_out_channels", (64,)),
    }
    encoder_blocks = tuple(config_json.get("num_encoder_blocks", ())) or TinyAutoencoderConfig.encoder_blocks
    decoder_blocks = tuple(config_json.get("num_decoder_blocks", ())) or TinyAutoencoderConfig.decoder_blocks
    latent_channels = config_json.get("latent_channels", 4)
    sizes: list[Any] = [*widths, *encoder_blocks, *decoder_blocks, latent_channels]
    has_sensible_sizes = all(type(size) is int and 0 < size < 4096 for size in sizes)
    if len(widths) != 1 or len(encoder_blocks) != len(decoder_blocks) or not has_sensible_sizes:
        raise InputError(f"{folder}: describes an {CLASS_NAME} that is not supported")
    config = TinyAutoencoderConfig(
        latent_channels=latent_channels,
        base_channels=widths.pop(),
        encoder_blocks=encoder_blocks,
        decoder_blocks=decoder_blocks,
        scaling_factor=float(config_json.get("scaling_factor") or 1.0),
        shift_factor=float(config_json.get("shift_factor") or 0.0),
    )
    part = tiny_autoencoder_part(config)
    return part, convert_tensors(part, "diffusers", tensors, folder)
