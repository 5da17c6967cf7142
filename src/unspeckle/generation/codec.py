"""Images to latents x and back: in tiles where memory is short, in float32 where half precision overflows."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from unspeckle.generation.tiling import map_tiles
from unspeckle.model import Model
from unspeckle.networks.autoencoder import run_without_overflow


@torch.no_grad()
def decode_to_images(model: Model, x: Tensor, tile_size: int = 0) -> list[Image.Image]:
    """Latents x (B, C, h, w), noisy or not, as RGB images. tile_size: see `decode_latents`."""
    pixels = decode_latents(model, x, tile_size).nan_to_num().clamp(-1, 1)
    data = ((pixels + 1) * 127.5).round().to("cpu", torch.uint8)
    return [Image.fromarray(image) for image in data.permute(0, 2, 3, 1).contiguous().numpy()]


@torch.no_grad()
def decode_latents(model: Model, x: Tensor, tile_size: int = 0) -> Tensor:
    """Latents x (B, C, h, w) as images (B, 3, H, W) float32 in about [-1, 1].

    tile_size: the side in pixels of tiles that are decoded one by one; 0 decodes the whole image at once."""
    autoencoder = model.autoencoder
    factor = autoencoder.downsampling_factor

    def decode(latents: Tensor) -> Tensor:
        return map_tiles(autoencoder.decode, latents, tile_size // factor, 1, factor)

    return run_without_overflow(autoencoder, decode, x.float())


@torch.no_grad()
def encode_images(model: Model, images: Tensor, noise: Callable[[], Tensor], tile_size: int = 0) -> Tensor:
    """Images (1, 3, H, W) in [-1, 1] as latents (1 or B, C, h, w) float32: mean + std · noise() of the autoencoder's
    posterior, or its mean where std is 0 and no noise is drawn. noise() is (B, C, h, w)."""
    autoencoder = model.autoencoder
    factor = autoencoder.downsampling_factor

    def posterior(part: Tensor) -> Tensor:
        return torch.cat(autoencoder.posterior(part), 1)

    def encode(whole: Tensor) -> Tensor:
        return map_tiles(posterior, whole, tile_size // factor, factor, 1)

    mean, std = run_without_overflow(autoencoder, encode, images).chunk(2, dim=1)
    return mean if not std.any() else mean + std * noise()
