"""A split whose crops are made smaller, for models that draw small images which another one enlarges."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unspeckle.corpus.splits import Corpus, Split


@dataclass(frozen=True)
class ShrunkSplit(Split):
    """A split whose crops are shrunk; `size` is that of the small images."""

    large: Split
    """The same images as they are."""
    factor: int
    """Pixels of a large image's side for each of a small one's."""

    def crop_margins(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.large.crop_margins(indices)

    def crop_images(
        self, indices: NDArray[np.int64], tops: NDArray[np.int64], lefts: NDArray[np.int64], flip: NDArray[np.bool_]
    ) -> Tensor:
        import torch

        large = self.large.crop_images(indices, tops, lefts, flip).float()
        small = torch.nn.functional.avg_pool2d(large, self.factor).round().to(torch.uint8)
        return small.contiguous(memory_format=torch.channels_last)


def shrink_split(split: Split, factor: int) -> Split:
    """The split with crops whose sides are divided by the factor, which must divide them; for a factor of 1 itself."""
    if factor == 1:
        return split
    width, height = split.size
    size = (width // factor, height // factor)
    return ShrunkSplit(split.store, split.record_indices, split.captions, size, split, factor)


def shrink_corpus(corpus: Corpus, factor: int) -> Corpus:
    """The corpus with both splits shrunk."""
    training, validation = (shrink_split(split, factor) for split in (corpus.training, corpus.validation))
    return replace(corpus, training=training, validation=validation)
