"""Painted scenes made to look like the images of an imperfect diffusion model, for the detector's training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.scoring.composition.detector_examples import X0, X1, Y0, Y1

UNCHANGED_SHARE = 0.2  # fraction of the images that stay as they are


def degrade_images(x: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Warp, blur or sharpen, discolor and add noise and patches to images (B, 3, H, H) in [-1, 1].

    Each image is changed to another degree. labels are those of an ExampleBlock.
    """
    count, _, side, _ = x.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    def smooth_noise(channels: int, cells: int) -> Tensor:
        coarse = torch.randn(count, channels, cells, cells, generator=generator)
        return F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)

    original = x
    noise_field, threshold = smooth_noise(1, 5), uniform(-1.2, 1.2)
    color = torch.rand(count, 3, 1, 1, generator=generator) * 2 - 1
    x = _add_patches(x, labels, noise_field, threshold, color)
    x = _warp(x, smooth_noise(2, 6) * uniform(0, 2.5 / 64))
    x = x + uniform(-0.9, 1.0) * (_blur(x) - x)
    gray = x.mean(1, keepdim=True)
    x = gray + uniform(0.85, 1.25) * (x - gray)
    x = uniform(0.85, 1.2) * x + 0.06 * torch.randn(count, 3, 1, 1, generator=generator)
    fine_noise = smooth_noise(3, side) * uniform(-0.1, 0.14).clamp(min=0)
    coarse_noise = smooth_noise(3, side // 4) * uniform(-0.1, 0.1).clamp(min=0)
    x = x + fine_noise + coarse_noise
    return torch.where(uniform(0, 1) < UNCHANGED_SHARE, original, x.clamp(-1, 1))


def _warp(x: Tensor, displacement: Tensor) -> Tensor:
    """x moved by the displacement (B, 2, H, H), in halves of the side."""
    side = x.shape[-1]
    coordinates = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)
    identity_grid = torch.stack((coordinates.expand(side, side), coordinates[:, None].expand(side, side)))
    grid = (identity_grid + displacement).permute(0, 2, 3, 1)  # (B, H, H, 2)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _blur(x: Tensor) -> Tensor:
    """x filtered twice with a 3 × 3 binomial kernel."""
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    for _ in range(2):
        x = F.conv2d(x, (kernel[:, None] * kernel).expand(3, 1, 3, 3), groups=3)
    return x


def _add_patches(x: Tensor, labels: Tensor, noise_field: Tensor, threshold: Tensor, color: Tensor) -> Tensor:
    """Patches of another color on some backgrounds, wherever there is no object."""
    pixel_centers = torch.arange(x.shape[-1]) + 0.5
    x0, y0, x1, y1 = (labels[..., column, None] for column in (X0, Y0, X1, Y1))  # (B, MAX_OBJECTS, 1)
    inside_x, inside_y = (pixel_centers > x0) & (pixel_centers < x1), (pixel_centers > y0) & (pixel_centers < y1)
    is_occupied = (inside_y[..., None] & inside_x[..., None, :]).any(1, keepdim=True)  # (B, 1, H, H)
    patch_mask = ((noise_field > threshold + 1) & ~is_occupied & (threshold > -0.6)).float() * 0.8
    return x + patch_mask * (color - x)
