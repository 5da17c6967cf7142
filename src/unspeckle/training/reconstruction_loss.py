"""What an autoencoder is trained for: how far images that come back are from those that went in."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from unspeckle.networks.latent_autoencoder import LatentAutoencoder

# Every so many steps the loss of halved latents is added, with this weight
COARSE_LOSS_EVERY, COARSE_LOSS_WEIGHT = 4, 0.5
PYRAMID_LEVELS = 3
# Pixels of the shortest side of an error that can still be halved
MIN_PYRAMID_SIDE = 4


def laplacian_pyramid_loss(error: Tensor) -> Tensor:
    """The mean absolute error () of images, error (B, 3, H, W), and of its bands, each an octave coarser: the distance
    of Laplacian pyramids (Bojanowski et al. 2018, eq. 2), which keeps edges sharper than the error of pixels alone."""
    total = error.abs().mean()
    for _ in range(PYRAMID_LEVELS):
        if min(error.shape[2:]) < MIN_PYRAMID_SIDE:
            break
        downsampled = F.avg_pool2d(error, 2)
        band = error - F.interpolate(downsampled, scale_factor=2.0, mode="bilinear", align_corners=False)
        total, error = total + band.abs().mean(), downsampled
    return total + error.abs().mean()


def reconstruction_loss(
    autoencoder: LatentAutoencoder, images: Tensor, add_noise: Callable[[Tensor], Tensor], *, with_coarse_loss: bool
) -> Tensor:
    """The distance () of images (B, 3, H, W) from what their latents decode to, with noise added to the latents.

    with_coarse_loss: also at half the resolution, which keeps latents smooth, so that they are easier to denoise
    (Skorokhodov et al. 2025)."""
    latents = autoencoder.encode(images)
    loss = laplacian_pyramid_loss(autoencoder.decode(add_noise(latents)) - images)
    if with_coarse_loss:
        coarse_error = autoencoder.decode(F.avg_pool2d(latents, 2)) - F.avg_pool2d(images, 2)
        loss = loss + COARSE_LOSS_WEIGHT * laplacian_pyramid_loss(coarse_error)
    return loss
