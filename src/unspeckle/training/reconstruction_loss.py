"""What an autoencoder learns by: how far the pictures that come back are from those that went in."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from unspeckle.networks.latent_autoencoder import Latents

COARSE_EVERY, COARSE = 4, 0.5  # steps, and the weight of what halved latents should decode to
OCTAVES = 3


def pyramid(error: Tensor) -> Tensor:
    """The mean absolute error (B, 3, H, W) of the picture and of its bands, each an octave coarser: the Laplacian
    pyramid's distance (Bojanowski et al. 2018, eq. 2), which keeps edges sharper than the error of pixels alone."""
    total = error.abs().mean()
    for _ in range(OCTAVES):
        if min(error.shape[2:]) < 4:
            break
        small = F.avg_pool2d(error, 2)
        band = error - F.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=False)
        total, error = total + band.abs().mean(), small
    return total + error.abs().mean()


def reconstruction(autoencoder: Latents, pictures: Tensor, noised: Callable[[Tensor], Tensor], coarse: bool) -> Tensor:
    """The distance of pictures (B, 3, H, W) from what their latents decode to, noised. coarse: also at half the
    resolution, which keeps latents smooth, so that they are easier to denoise (Skorokhodov et al. 2025)."""
    latents = autoencoder.encode(pictures)
    loss = pyramid(autoencoder.decode(noised(latents)) - pictures)
    if coarse:
        halved = autoencoder.decode(F.avg_pool2d(latents, 2)) - F.avg_pool2d(pictures, 2)
        loss = loss + COARSE * pyramid(halved)
    return loss
