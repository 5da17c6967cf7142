"""The network of a model of ours in the layout of diffusers, where diffusers has such a network."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from unspeckle.atomic import create_folder
from unspeckle.denoiser import Conditioning
from unspeckle.errors import InputError
from unspeckle.formats.checkpoint_parts import convert_tensors
from unspeckle.formats.export.graphs import random_feature_maps, random_tensor
from unspeckle.formats.rename_tables import to_their_names
from unspeckle.formats.stable_diffusion.diffusers_config import parse_unet_config
from unspeckle.formats.stable_diffusion.diffusers_folder import read_component_tensors, read_json_object
from unspeckle.formats.stable_diffusion.diffusers_json import unet_json
from unspeckle.formats.stable_diffusion.families import unet_part
from unspeckle.formats.stable_diffusion.writing import relative_difference, require_empty_folder, write_json_file
from unspeckle.model import Model
from unspeckle.networks.unet import UNet, UNetConfig


def unsupported_features(config: UNetConfig) -> list[str]:
    """What keeps a U-Net from being a UNet2DConditionModel of diffusers; empty where it is one."""
    has_transformer = [depth > 0 for depth in config.transformer_depths]
    attends = [attends for attends, used in zip(config.self_attention, has_transformer, strict=True) if used]
    features = {
        "a coarse image predictor": bool(config.coarse_predictor_layers),
        f"patches of {config.patch_size} pixels": config.patch_size > 1,
        "normalization by pixels (norm_groups 0)": not config.norm_groups,
        "attention without feed-forward layers": not config.feed_forward,
        "attention without projections around it": config.transformer_projection == "none",
        "levels without self-attention": not all([*attends, config.self_attention[-1]]),
        "a middle block with another depth than the last level": (
            config.transformer_depths[-1] not in (0, config.mid_transformer_depth)
        ),
        "no attention in the middle block": not config.mid_transformer_depth,
        "a text vector added to the time embedding": bool(config.vector_width),
    }
    return [feature for feature, is_present in features.items() if is_present]


@torch.no_grad()
def write_unet_folder(model: Model, source: str, target: Path) -> float:
    """Write `unet/` into the new folder, read it back, and return the relative difference of the outputs of the two
    networks. source: the path of the model, for messages. InputError, naming all reasons, where diffusers has no such
    network."""
    config = model.network.config
    reasons = unsupported_features(config) if isinstance(config, UNetConfig) else [f"a {type(model.network).__name__}"]
    if not isinstance(config, UNetConfig) or reasons or target.suffix == ".safetensors":
        problem = (
            f"has {', '.join(reasons)}, which no network of diffusers has" if reasons else "is no Stable Diffusion"
        )
        raise InputError(f"{source}: {problem}; write graphs of the whole model with --to onnx or --to openvino")
    require_empty_folder(target)
    part = unet_part(config)
    with create_folder(target) as temp_folder:
        sample_size = model.card.size[0] // model.autoencoder.downsampling_factor
        write_json_file(temp_folder / part.folder / "config.json", {**unet_json(config), "sample_size": sample_size})
        tensors = to_their_names(part.name_table("diffusers"), model.network.state_dict())
        save_file(tensors, temp_folder / part.folder / part.file_name, {"format": "pt"})
    reloaded = _read_unet(target / part.folder, config.time_scale)
    inputs = random_feature_maps(config.channels, config.size_multiple, False), torch.tensor([0.6, 0.3])
    concat = random_feature_maps(config.concat_channels, config.size_multiple, False)
    conditioning = Conditioning(
        random_tensor(2, model.tokenizer.context_length, config.text_width),
        concat=concat if config.concat_channels else None,
    )
    return relative_difference(reloaded(*inputs, conditioning), model.network(*inputs, conditioning))


def _read_unet(folder: Path, time_scale: float) -> UNet:
    """The U-Net of a component's folder. time_scale: what its times are multiplied by, which the folder does not
    say."""
    file = folder / "config.json"
    part = unet_part(replace(parse_unet_config(read_json_object(file), file), time_scale=time_scale))
    unet = UNet(part.config).eval()
    unet.load_state_dict(convert_tensors(part, "diffusers", read_component_tensors(folder), folder))
    return unet
