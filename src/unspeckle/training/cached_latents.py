"""Pictures as an autoencoder's latents, encoded once and kept: its weights never change."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unspeckle.atomic import replace_file
from unspeckle.corpus import Corpus, Split
from unspeckle.corpus.batches import permutation, shown, worded
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.training.plan import LoraPlan

FILE = "latents.safetensors"  # in a RUN


class CachedLatents(NamedTuple):
    """Of a corpus' two splits, (N, C, H, W) float32 each."""

    training: Tensor
    heldout: Tensor


class LatentBatch(NamedTuple):
    """Examples of the global positions `indices`."""

    x: Tensor  # (B, C, H, W)
    captions: list[str]
    indices: Tensor  # int64 (B,)


@torch.no_grad()
def encoded(split: Split, autoencoder: Autoencoder, chosen: range) -> Tensor:
    """The latents of the middles of those pictures: the means of what they may be, not mirrored."""
    device = next(autoencoder.parameters()).device
    each = (split.pictures([i]).to(device).float() / 127.5 - 1 for i in chosen)
    return torch.cat([autoencoder.encode(pictures).float().cpu().contiguous() for pictures in each])


def kept(run: Path, plan: LoraPlan, corpus: Corpus, autoencoder: Autoencoder, console: Console) -> CachedLatents:
    """The corpus' latents, from the RUN's file where that is theirs, else encoded into it."""
    path, proof = run / FILE, {"corpus": plan.corpus, "origin": plan.origin}
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() == proof:
                return CachedLatents(file.get_tensor("training"), file.get_tensor("heldout"))
    except (SafetensorError, OSError):
        pass
    found = []
    for split in (corpus.training, corpus.heldout):
        parts = [
            encoded(split, autoencoder, range(i, i + 1))
            for i in track(range(len(split)), "encoding pictures", console=console, transient=True)
        ]
        width, height = plan.extent
        found.append(torch.cat(parts) if parts else torch.empty(0, autoencoder.channels, height, width))
    with replace_file(path) as beside:
        save_file({"training": found[0], "heldout": found[1]}, beside, proof)
    return CachedLatents(*found)


def batches(latents: Tensor, split: Split, size: int, *, seed: int, start: int) -> Iterator[LatentBatch]:
    """Batches without end from global position `start`: as those of `corpus.batches`, but neither cut nor mirrored
    otherwise each time."""
    while True:
        positions = np.arange(start, start + size, dtype=np.int64)
        chosen = shown(len(split), positions, partial(permutation, len(split), seed))
        yield LatentBatch(latents[chosen], worded(split, seed, positions, chosen), torch.from_numpy(positions))
        start += size
