"""The losses of a GAN's two networks, of the discriminator's values D(x) for real and for drawn images."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("relativistic", "original")


def discriminator_loss(real: Tensor, drawn: Tensor, loss: str) -> Tensor:
    """(B,) for values (B,) of real and of drawn images, row by row of the same caption.

    "relativistic": softplus(D(drawn) - D(real)), each pair compared (Jolicoeur-Martineau 2019; Huang et al. 2024,
    eq. 2). "original": softplus(-D(real)) + softplus(D(drawn)), which is -log of the two probabilities that Goodfellow
    et al. 2014 maximize in eq. 1.
    """
    if loss == "relativistic":
        return F.softplus(drawn - real)
    return F.softplus(-real) + F.softplus(drawn)


def generator_loss(real: Tensor, drawn: Tensor, loss: str) -> Tensor:
    """(B,) the same for the generator. "original": softplus(-D(drawn)), the form that does not saturate (Goodfellow et
    al. 2014, section 3)."""
    return F.softplus(real - drawn) if loss == "relativistic" else F.softplus(-drawn)


def gradient_penalty(discriminate: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """The values D(x) (B,) of images, and |dD(x)/dx|² (B,), which can be differentiated once more: of real images the
    penalty R1, of drawn ones R2 (Mescheder et al. 2018, eq. 9; Roth et al. 2017)."""
    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        values = discriminate(images)
        (gradient,) = torch.autograd.grad(values.sum(), images, create_graph=True)
    return values, gradient.square().flatten(1).sum(dim=1)
