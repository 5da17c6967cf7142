"""The learned functions, by the kind that a model file names: (configuration, module)."""

from unspeckle.networks.autoencoder import Identity, IdentityConfig
from unspeckle.networks.latents import LatentConfig, Latents
from unspeckle.networks.unet import UNet, UNetConfig

KINDS = {"unet": (UNetConfig, UNet)}
AUTOENCODERS = {"identity": (IdentityConfig, Identity), "latents": (LatentConfig, Latents)}
