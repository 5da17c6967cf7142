"""The network of a model of ours in diffusers' layout, where diffusers has such a network."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from unspeckle.atomic import create_folder
from unspeckle.denoiser import Conditioning
from unspeckle.errors import InputError
from unspeckle.formats.export.stable_diffusion_graphs import random_feature_maps, random_tensor
from unspeckle.formats.rename_tables import to_their_names
from unspeckle.formats.stable_diffusion import diffusers_config, diffusers_names, writing
from unspeckle.formats.stable_diffusion.checkpoint import convert_tensors, module_name_table
from unspeckle.formats.stable_diffusion.diffusers_folder import read_component_tensors, read_json_object
from unspeckle.model import Model
from unspeckle.networks.unet import UNet, UNetConfig


def unsupported_features(model: Model) -> list[str]:
    """What keeps the model's network from being a UNet2DConditionModel; empty where it is one."""
    config = model.network.config
    if not isinstance(config, UNetConfig):
        return ["a U-shaped transformer"]
    attention_levels = [
        self_attention
        for self_attention, depth in zip(config.self_attention, config.transformer_depths, strict=True)
        if depth
    ]
    features = {
        "a draft": bool(config.coarse_predictor_layers),
        f"patches of {config.patch_size} pixels": config.patch_size > 1,
        "normalisation by places (groups 0)": not config.norm_groups,
        "attention without feed-forward layers": not config.feed_forward,
        "attention without projections around it": config.transformer_projection == "none",
        "levels whose places do not see one another": not all([*attention_levels, config.self_attention[-1]]),
        "a middle deeper or flatter than the last level": config.transformer_depths[-1]
        not in (0, config.mid_transformer_depth),
        "no attention in the middle": not config.mid_transformer_depth,
        "a vector of the words beside the time": bool(config.vector_width),
    }
    return [feature for feature, is_present in features.items() if is_present]


@torch.no_grad()
def write_unet_folder(model: Model, source: str, target: Path) -> float:
    """Write `unet/` into the new folder, read it back, and return the relative difference of the two networks.
    InputError, naming every trait, where diffusers has no such network."""
    unsupported = unsupported_features(model)
    if unsupported or target.suffix == ".safetensors":
        reason = (
            f"has {', '.join(unsupported)}, for which diffusers has no network"
            if unsupported
            else "is no Stable Diffusion"
        )
        raise InputError(f"{source}: {reason}; write graphs of the whole model with --to onnx or --to openvino")
    writing.require_empty_folder(target)
    config, network = model.network.config, model.network
    assert isinstance(config, UNetConfig)
    sample_size = model.card.size[0] // model.autoencoder.downsampling_factor
    with create_folder(target) as temp_folder:
        writing.write_json_file(temp_folder / "unet" / "config.json", writing.unet_config_json(config, sample_size))
        tensors = to_their_names(module_name_table(UNet, config, diffusers_names.UNET), network.state_dict())
        save_file(tensors, temp_folder / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    print(
        "only the network is written: diffusers has no such encoder of words; its timestep is 1000 t", file=sys.stderr
    )
    file = target / "unet" / "config.json"
    loaded_config = replace(
        diffusers_config.parse_unet_config(read_json_object(file), file), time_scale=config.time_scale
    )
    reloaded = UNet(loaded_config).eval()
    reloaded.load_state_dict(
        convert_tensors(
            UNet,
            loaded_config,
            module_name_table(UNet, loaded_config, diffusers_names.UNET),
            read_component_tensors(file.parent),
            file.parent,
        )
    )
    inputs = random_feature_maps(config.channels, config.size_multiple, False), torch.tensor([0.6, 0.3])
    conditioning = Conditioning(
        random_tensor(2, model.tokenizer.context_length, config.text_width),
        concat=random_feature_maps(config.concat_channels, config.size_multiple, False)
        if config.concat_channels
        else None,
    )
    difference = writing.relative_difference(reloaded(*inputs, conditioning), network(*inputs, conditioning))
    print(f"network: relative difference {difference:.1e}", file=sys.stderr)
    return difference
