"""The neural networks, in plain PyTorch, and the kinds by which model files name them."""

from torch import nn

from unspeckle.networks.autoencoder import PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.networks.embedding_space import EmbeddingSpace, EmbeddingSpaceConfig
from unspeckle.networks.gan import Generator, GeneratorConfig
from unspeckle.networks.image_encoder import ImageEncoder, ImageEncoderConfig
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.networks.transformer import Transformer, TransformerConfig
from unspeckle.networks.unet import UNet, UNetConfig

PresetConfig = UNetConfig | TransformerConfig  # what presets.py has sizes of
NetworkConfig = PresetConfig | GeneratorConfig | ImageEncoderConfig  # what training plans have

# The classes of configuration and module for each kind that a model file names.
NETWORKS = {
    "unet": (UNetConfig, UNet),
    "transformer": (TransformerConfig, Transformer),
    "gan_generator": (GeneratorConfig, Generator),
}
AUTOENCODERS = {
    "pixels": (PixelAutoencoderConfig, PixelAutoencoder),
    "latents": (LatentAutoencoderConfig, LatentAutoencoder),
    "embeddings": (EmbeddingSpaceConfig, EmbeddingSpace),
}


def build_network(config: NetworkConfig) -> nn.Module:
    """The untrained network of that configuration."""
    if isinstance(config, GeneratorConfig):
        return Generator(config)
    if isinstance(config, ImageEncoderConfig):
        return ImageEncoder(config)
    return UNet(config) if isinstance(config, UNetConfig) else Transformer(config)
