"""The network of a model of ours in diffusers' layout, where diffusers has such a network."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from unspeckle.atomic import create_folder
from unspeckle.denoiser import Conditioning
from unspeckle.errors import InputError
from unspeckle.formats.export.stable_diffusion_graphs import maps, random
from unspeckle.formats.rename_tables import given
from unspeckle.formats.stable_diffusion import diffusers_config, diffusers_names, writing
from unspeckle.formats.stable_diffusion.checkpoint import fetched, table
from unspeckle.formats.stable_diffusion.diffusers_folder import parsed, tensors
from unspeckle.model import Model
from unspeckle.networks.unet import UNet, UNetConfig


def traits(model: Model) -> list[str]:
    """What keeps the model's network from being a UNet2DConditionModel; empty where it is one."""
    config = model.network.config
    if not isinstance(config, UNetConfig):
        return ["a U-shaped transformer"]
    crossed = [sees for sees, depth in zip(config.sees_itself, config.depths, strict=True) if depth]
    found = {
        "a draft": bool(config.draft),
        f"patches of {config.patch} pixels": config.patch > 1,
        "normalisation by places (groups 0)": not config.groups,
        "attention without feed-forward layers": not config.feed_forward,
        "attention without projections around it": config.projection == "none",
        "levels whose places do not see one another": not all([*crossed, config.sees_itself[-1]]),
        "a middle deeper or flatter than the last level": config.depths[-1] not in (0, config.middle_depth),
        "no attention in the middle": not config.middle_depth,
        "a vector of the words beside the time": bool(config.vector_width),
    }
    return [trait for trait, there in found.items() if there]


@torch.no_grad()
def write(model: Model, source: str, target: Path) -> float:
    """Write `unet/` into the new folder, read it back, and return the relative difference of the two networks.
    InputError, naming every trait, where diffusers has no such network."""
    lacks = traits(model)
    if lacks or target.suffix == ".safetensors":
        why = f"has {', '.join(lacks)}, for which diffusers has no network" if lacks else "is no Stable Diffusion"
        raise InputError(f"{source}: {why}; write graphs of the whole model with --to onnx or --to openvino")
    writing.empty(target)
    config, network = model.network.config, model.network
    assert isinstance(config, UNetConfig)
    side = model.card.size[0] // model.autoencoder.factor
    with create_folder(target) as place:
        writing.json_file(place / "unet" / "config.json", writing.unet(config, side))
        theirs = given(table(UNet, config, diffusers_names.UNET), network.state_dict())
        save_file(theirs, place / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    print(
        "only the network is written: diffusers has no such encoder of words; its timestep is 1000 t", file=sys.stderr
    )
    file = target / "unet" / "config.json"
    read = replace(diffusers_config.network(parsed(file), file), clock_scale=config.clock_scale)
    again = UNet(read).eval()
    again.load_state_dict(
        fetched(UNet, read, table(UNet, read, diffusers_names.UNET), tensors(file.parent), file.parent)
    )
    question = maps(config.channels, config.factor, False), torch.tensor([0.6, 0.3])
    words = Conditioning(
        random(2, model.tokenizer.length, config.text_width),
        concat=maps(config.beside, config.factor, False) if config.beside else None,
    )
    error = writing.apart(again(*question, words), network(*question, words))
    print(f"network: relative difference {error:.1e}", file=sys.stderr)
    return error
