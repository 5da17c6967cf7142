"""Latents shown without their decoder: their channels to colours by a linear map, a pixel for each place."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.networks.autoencoder import Autoencoder

LATENTS_PER_SIDE = 16  # a side of the sheet of colours that the map is fitted to
COLORS_PER_SIDE = 6  # a side, of that sheet


class LatentPreview(Autoencoder):
    """Decodes only: x (B, C, h, w) to (B, 3, h, w). weight: (3, C + 1), the last column is the colour of zeros."""

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
    """The map that tells best (least squares) the mean colour of each place of a sheet of soft colours from what the
    autoencoder's encoder makes of it. Costs one small picture's encoding."""
    colors = torch.rand(1, 3, COLORS_PER_SIDE, COLORS_PER_SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image_size = LATENTS_PER_SIDE * autoencoder.downsampling_factor
    image = F.interpolate(colors, (image_size, image_size), mode="bicubic").clamp(-1, 1)
    x = autoencoder.encode(image.to(device)).float()
    if (
        not x.isfinite().all() and next(autoencoder.parameters()).dtype == torch.float16
    ):  # see border.py; but a picture is
        x = deepcopy(autoencoder).float().encode(image.to(device))  # not to depend on whether somebody watches
    x = x.nan_to_num().cpu()
    mean_colors = F.avg_pool2d(image, autoencoder.downsampling_factor)
    design_matrix = torch.cat([x, torch.ones_like(x[:, :1])], 1).flatten(2)[0].T.double()  # (places, C + 1)
    return LatentPreview((torch.linalg.pinv(design_matrix) @ mean_colors.flatten(2)[0].T.double()).T.float().to(device))
