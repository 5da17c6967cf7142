"""A linear map from latents to colors: a preview of the image, one pixel for each latent, without the decoder."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.networks.autoencoder import Autoencoder

# The map is fitted to one smooth image of random colors: height and width of its latents, and the number of random
# colors along each side, between which the image is interpolated.
LATENTS_PER_SIDE = 16
COLORS_PER_SIDE = 6


class LatentPreview(Autoencoder):
    """Decodes x (B, C, h, w) to images (B, 3, h, w). weight: (3, C + 1), whose last column is the color of zeros."""

    downsampling_factor = 1
    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.latent_channels = weight.shape[1] - 1
        self.register_buffer("weight", weight, persistent=False)

    def decode(self, latents: Tensor) -> Tensor:
        return F.conv2d(latents, self.weight[:, :-1, None, None], self.weight[:, -1])


@torch.no_grad()
def fit_latent_preview(autoencoder: Autoencoder, device: torch.device) -> LatentPreview:
    """The least-squares fit from the latents of a smooth image of random colors to the mean color of the pixels that
    each latent stands for. It costs encoding one small image."""
    colors = torch.rand(1, 3, COLORS_PER_SIDE, COLORS_PER_SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image_size = LATENTS_PER_SIDE * autoencoder.downsampling_factor
    image = F.interpolate(colors, (image_size, image_size), mode="bicubic").clamp(-1, 1)
    x = autoencoder.encode(image.to(device)).float()
    if not x.isfinite().all() and next(autoencoder.parameters()).dtype == torch.float16:
        # A copy, and not run_without_overflow, which converts the autoencoder in place: the final image must not depend
        # on whether there is a preview.
        x = deepcopy(autoencoder).float().encode(image.to(device))
    x = x.nan_to_num().cpu()
    mean_colors = F.avg_pool2d(image, autoencoder.downsampling_factor)
    design_matrix = torch.cat([x, torch.ones_like(x[:, :1])], 1).flatten(2)[0].T.double()  # (h·w, C + 1)
    weight = (torch.linalg.pinv(design_matrix) @ mean_colors.flatten(2)[0].T.double()).T  # (3, C + 1)
    return LatentPreview(weight.float().to(device))
