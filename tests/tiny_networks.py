"""Networks small enough for tests, with weights under which every layer matters to the output."""

from typing import TypeVar

import torch
from torch import nn

from unspeckle.denoiser import Conditioning
from unspeckle.networks.transformer import TransformerConfig
from unspeckle.networks.unet import UNetConfig

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# Like Stable Diffusion's.
STABLE_DIFFUSION_UNET = UNetConfig(
    channels=4,
    base_channels=32,
    channel_multipliers=(1, 2),
    blocks_per_level=1,
    transformer_depths=(1, 1),
    self_attention=(True, True),
    feed_forward=True,
    transformer_projection="conv",
    heads=4,
    text_width=48,
    scale_shift=False,
    time_scale=1.0,
)
# Like those that are trained here.
OWN_UNET = UNetConfig(
    patch_size=2,
    base_channels=16,
    blocks_per_level=1,
    transformer_depths=(1, 1),
    self_attention=(False, True),
    head_width=8,
    text_width=12,
    vector_width=6,
    norm_groups=0,
)
TRANSFORMER = TransformerConfig(
    patch_size=2, widths=(12, 16), depths=(1, 2), head_width=8, text_width=12, vector_width=6
)


def fill_weights(module: ModuleT) -> ModuleT:
    """The module with random weights that bfloat16 cannot represent, without gradients: matrices and kernels as at
    initialization, vectors near 1. No layer is zero, and activations keep about their size."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        std = 0.7 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn(parameter.shape, generator=generator) * std + (parameter.ndim == 1)
    return module.eval().requires_grad_(False)


def randomize(network: ModuleT, std: float = 0.1) -> ModuleT:
    """The network with Gaussian weights of that standard deviation, and with gradients."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std)
    return network.eval()


def random_conditioning(batch_size: int = 2) -> Conditioning:
    """Tokens, mask and vector for OWN_UNET and TRANSFORMER."""
    torch.manual_seed(1)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])[:batch_size]
    return Conditioning(torch.randn(batch_size, 4, 12), mask, torch.randn(batch_size, 6))
