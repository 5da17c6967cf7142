"""The border between pictures and x: in tiles where memory is short, in float32 where half precision overflows."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from unspeckle.generation.tiling import map_tiles
from unspeckle.model import Model
from unspeckle.networks.autoencoder import run_without_overflow


@torch.no_grad()
def decode_to_images(model: Model, x: Tensor, tiles: int = 0) -> list[Image.Image]:
    """x (B, C, H, W), of any time, as RGB pictures. tiles: see `decoded`."""
    data = ((decode_latents(model, x, tiles).nan_to_num().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    return [Image.fromarray(one) for one in data.permute(0, 2, 3, 1).contiguous().numpy()]


@torch.no_grad()
def decode_latents(model: Model, x: Tensor, tiles: int = 0) -> Tensor:
    """x as pictures (B, 3, H, W) float32. tiles: the side in pixels of the parts that are decoded, 0 = the whole."""
    coder = model.autoencoder

    def decode(latents: Tensor) -> Tensor:
        return map_tiles(coder.decode, latents, tiles // coder.downsampling_factor, 1, coder.downsampling_factor)

    return run_without_overflow(coder, decode, x.float())


@torch.no_grad()
def encode_images(model: Model, images: Tensor, noise: Callable[[], Tensor], tiles: int = 0) -> Tensor:
    """Pictures (1, 3, H, W) as x (1 or B, C, h, w) float32, drawn by noise() (B, C, h, w) from what they may be."""
    coder = model.autoencoder

    def moments(part: Tensor) -> Tensor:
        return torch.cat(coder.posterior(part), 1)

    def encode(whole: Tensor) -> Tensor:
        return map_tiles(moments, whole, tiles // coder.downsampling_factor, coder.downsampling_factor, 1)

    mean, deviation = run_without_overflow(coder, encode, images).chunk(2, dim=1)
    return mean if not deviation.any() else mean + deviation * noise()
