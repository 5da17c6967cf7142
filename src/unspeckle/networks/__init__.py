"""The learned functions, by the kind that a model file names: (configuration, module)."""

from torch import nn

from unspeckle.networks.autoencoder import Identity, IdentityConfig
from unspeckle.networks.latent_autoencoder import LatentConfig, Latents
from unspeckle.networks.transformer import Transformer, TransformerConfig
from unspeckle.networks.unet import UNet, UNetConfig

Config = UNetConfig | TransformerConfig
KINDS = {"unet": (UNetConfig, UNet), "transformer": (TransformerConfig, Transformer)}
AUTOENCODERS = {"identity": (IdentityConfig, Identity), "latents": (LatentConfig, Latents)}


def build(config: Config) -> nn.Module:
    """The untrained network of that configuration."""
    return UNet(config) if isinstance(config, UNetConfig) else Transformer(config)
