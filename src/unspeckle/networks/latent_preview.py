"""Latents shown without their decoder: their channels to colours by a linear map, a pixel for each place."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.networks.autoencoder import Autoencoder

PLACES = 16  # a side of the sheet of colours that the map is fitted to
COLOURS = 6  # a side, of that sheet


class Sketch(Autoencoder):
    """Decodes only: x (B, C, h, w) to (B, 3, h, w). weight: (3, C + 1), the last column is the colour of zeros."""

    factor = 1
    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.channels = weight.shape[1] - 1
        self.register_buffer("weight", weight, persistent=False)

    def decode(self, latents: Tensor) -> Tensor:
        return F.conv2d(latents, self.weight[:, :-1, None, None], self.weight[:, -1])


@torch.no_grad()
def sketch(coder: Autoencoder, device: torch.device) -> Sketch:
    """The map that tells best (least squares) the mean colour of each place of a sheet of soft colours from what the
    autoencoder's encoder makes of it. Costs one small picture's encoding."""
    colours = torch.rand(1, 3, COLOURS, COLOURS, generator=torch.Generator().manual_seed(0)) * 2 - 1
    side = PLACES * coder.factor
    sheet = F.interpolate(colours, (side, side), mode="bicubic").clamp(-1, 1)
    x = coder.encode(sheet.to(device)).float()
    if not x.isfinite().all() and next(coder.parameters()).dtype == torch.float16:  # see border.py; but a picture is
        x = deepcopy(coder).float().encode(sheet.to(device))  # not to depend on whether somebody watches
    x = x.nan_to_num().cpu()
    seen = F.avg_pool2d(sheet, coder.factor)
    rows = torch.cat([x, torch.ones_like(x[:, :1])], 1).flatten(2)[0].T.double()  # (places, C + 1)
    return Sketch((torch.linalg.pinv(rows) @ seen.flatten(2)[0].T.double()).T.float().to(device))
