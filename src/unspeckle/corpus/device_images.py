"""Images in the memory of a device, where batches are cropped without a copy from the host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unspeckle.corpus.splits import Corpus, Split

if TYPE_CHECKING:
    from torch import Tensor

COPY_CHUNK_BYTES = 1 << 28
"""Bytes that are copied to the device at a time."""


@dataclass(frozen=True)
class DeviceSplit(Split):
    """A split whose images are cropped on a device."""

    device_pixels: Tensor
    """uint8 (N, 3), all pixels of the store, on the device."""

    def crop_images(
        self, indices: NDArray[np.int64], tops: NDArray[np.int64], lefts: NDArray[np.int64], flip: NDArray[np.bool_]
    ) -> Tensor:
        """The same bytes as `Split.crop_images`: uint8 (B, 3, H, W), channels last in memory, on the device."""
        import torch

        device = self.device_pixels.device
        records = self.store.records[self.record_indices[indices]]
        width, height = self.size
        widths = records["width"].astype(np.int64)
        # A flipped image is read from its last column to its first.
        start_pixels = records["offset"].astype(np.int64) // 3 + tops * widths + lefts + flip * (width - 1)
        strides = np.stack([start_pixels, widths, np.where(flip, -1, 1)])  # (3, B)
        first_pixel, row_stride, column_stride = torch.from_numpy(strides).to(device).view(3, -1, 1, 1)
        rows = torch.arange(height, device=device)[:, None]
        columns = torch.arange(width, device=device)
        pixels = self.device_pixels[first_pixel + rows * row_stride + columns * column_stride]  # (B, H, W, 3)
        return pixels.permute(0, 3, 1, 2)


def move_training_images_to_device(corpus: Corpus, device: str) -> Corpus:
    """The corpus with its training images in the device's memory; the validation images stay on the host."""
    import torch

    split = corpus.training
    host_pixels = split.store.pixels
    device_pixels = torch.empty(len(host_pixels), dtype=torch.uint8, device=device)
    for start in range(0, len(host_pixels), COPY_CHUNK_BYTES):
        chunk = host_pixels[start : start + COPY_CHUNK_BYTES].copy()
        device_pixels[start : start + COPY_CHUNK_BYTES] = torch.from_numpy(chunk)
    device_split = DeviceSplit(split.store, split.record_indices, split.captions, split.size, device_pixels.view(-1, 3))
    return replace(corpus, training=device_split)
