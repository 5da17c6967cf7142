"""Pictures that lie in a device's own memory, where batches are cut without a copy from the host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unspeckle.corpus.splits import Corpus, Split

if TYPE_CHECKING:
    from torch import Tensor

COPY_CHUNK_BYTES = 1 << 28  # bytes on their way at once


@dataclass(frozen=True)
class DeviceSplit(Split):
    """A split whose pictures are cut from `held`, uint8 (N, 3): all pixels of its store, on the device."""

    device_pixels: Tensor

    def crop_images(
        self,
        indices: NDArray[np.int64],
        tops: NDArray[np.int64],
        lefts: NDArray[np.int64],
        flip: NDArray[np.bool_],
    ) -> Tensor:
        """The same bytes as any split's: uint8 (B, 3, H, W), channels last in memory, on the device."""
        import torch

        records = self.store.records[self.record_indices[indices]]
        width, height = self.size
        widths = records["width"].astype(np.int64)
        start_pixels = records["offset"].astype(np.int64) // 3 + tops * widths + lefts + flip * (width - 1)
        strides = np.stack([start_pixels, widths, np.where(flip, -1, 1)])
        first_pixel, row_stride, column_stride = (
            torch.from_numpy(strides).to(self.device_pixels.device).view(3, -1, 1, 1)
        )
        rows = torch.arange(height, device=self.device_pixels.device)[:, None]
        columns = torch.arange(width, device=self.device_pixels.device)
        pixels = self.device_pixels[first_pixel + rows * row_stride + columns * column_stride]  # (B, H, W, 3)
        return pixels.permute(0, 3, 1, 2)


def move_training_images_to_device(corpus: Corpus, device: str) -> Corpus:
    """The corpus with its training pictures in the device's memory; the held-out ones stay where they were."""
    import torch

    split = corpus.training
    host_pixels = split.store.pixels
    device_pixels = torch.empty(len(host_pixels), dtype=torch.uint8, device=device)
    for start in range(0, len(host_pixels), COPY_CHUNK_BYTES):
        device_pixels[start : start + COPY_CHUNK_BYTES] = torch.from_numpy(
            host_pixels[start : start + COPY_CHUNK_BYTES].copy()
        )
    device_split = DeviceSplit(split.store, split.record_indices, split.captions, split.size, device_pixels.view(-1, 3))
    return replace(corpus, training=device_split)
