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
from unspeckle.corpus.batches import select_captions
from unspeckle.corpus.epoch_order import epoch_permutation, select_images
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.training.plan import LoraPlan

LATENTS_FILE = "latents.safetensors"  # in a RUN


class CachedLatents(NamedTuple):
    """Of a corpus' two splits, (N, C, H, W) float32 each."""

    training: Tensor
    validation: Tensor


class LatentBatch(NamedTuple):
    """Examples of the global positions `indices`."""

    x: Tensor  # (B, C, H, W)
    captions: list[str]
    indices: Tensor  # int64 (B,)


@torch.no_grad()
def encode_images_alone(split: Split, autoencoder: Autoencoder, indices: range) -> Tensor:
    """The latents of the middles of those pictures: the means of what they may be, not mirrored."""
    device = next(autoencoder.parameters()).device
    images = (split.center_crops([i]).to(device).float() / 127.5 - 1 for i in indices)
    return torch.cat([autoencoder.encode(image).float().cpu().contiguous() for image in images])


def load_or_encode_latents(
    run_folder: Path, plan: LoraPlan, corpus: Corpus, autoencoder: Autoencoder, console: Console
) -> CachedLatents:
    """The corpus' latents, from the RUN's file where that is theirs, else encoded into it."""
    path, metadata = run_folder / LATENTS_FILE, {"corpus": plan.corpus_fingerprint, "origin": plan.base_hash}
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() == metadata:
                return CachedLatents(file.get_tensor("training"), file.get_tensor("heldout"))
    except (SafetensorError, OSError):
        pass
    latents = []
    for split in (corpus.training, corpus.validation):
        chunks = [
            encode_images_alone(split, autoencoder, range(i, i + 1))
            for i in track(range(len(split)), "encoding pictures", console=console, transient=True)
        ]
        width, height = plan.input_size
        latents.append(torch.cat(chunks) if chunks else torch.empty(0, autoencoder.latent_channels, height, width))
    with replace_file(path) as temporary:
        save_file({"training": latents[0], "heldout": latents[1]}, temporary, metadata)
    return CachedLatents(*latents)


def latent_batches(latents: Tensor, split: Split, batch_size: int, *, seed: int, start: int) -> Iterator[LatentBatch]:
    """Batches without end from global position `start`: as those of `corpus.batches`, but neither cut nor mirrored
    otherwise each time."""
    while True:
        positions = np.arange(start, start + batch_size, dtype=np.int64)
        indices = select_images(len(split), positions, partial(epoch_permutation, len(split), seed))
        yield LatentBatch(
            latents[indices], select_captions(split, seed, positions, indices), torch.from_numpy(positions)
        )
        start += batch_size
