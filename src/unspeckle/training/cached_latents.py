"""A corpus as the latents of a fixed autoencoder, encoded once and kept in RUN."""

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
from unspeckle.corpus.batches import select_captions
from unspeckle.corpus.epoch_order import epoch_permutation, select_images
from unspeckle.corpus.splits import Corpus, Split
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.old_names import LATENTS_METADATA, LATENTS_TENSORS, rename_fields
from unspeckle.training.plan import LoraPlan

# In a RUN
LATENTS_FILE = "latents.safetensors"


class CachedLatents(NamedTuple):
    """Of a corpus' two splits."""

    # (N, C, H, W) float32
    training: Tensor
    # (M, C, H, W) float32
    validation: Tensor


class LatentBatch(NamedTuple):
    """Examples."""

    # Latents (B, C, H, W)
    x: Tensor
    captions: list[str]
    # Positions in the run, (B,) int64: start, start + 1, …
    indices: Tensor


@torch.no_grad()
def encode_images_alone(split: Split, autoencoder: Autoencoder, indices: range) -> Tensor:
    """The latents (N, C, H, W) of the center crops of those images, each encoded by itself: the means of what the
    encoder predicts."""
    device = next(autoencoder.parameters()).device
    images = (split.center_crops([i]).to(device).float() / 127.5 - 1 for i in indices)
    return torch.cat([autoencoder.encode(image).float().cpu().contiguous() for image in images])


def load_or_encode_latents(
    run_folder: Path, plan: LoraPlan, corpus: Corpus, autoencoder: Autoencoder, console: Console
) -> CachedLatents:
    """The corpus' latents, from the RUN's file if it holds these, else encoded into it."""
    path = run_folder / LATENTS_FILE
    metadata = {"corpus_fingerprint": plan.corpus_fingerprint, "base_hash": plan.lora.base_hash}
    try:
        with safe_open(path, framework="pt") as file:
            if rename_fields(file.metadata() or {}, LATENTS_METADATA) == metadata:
                tensors = {LATENTS_TENSORS.get(name, name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return CachedLatents(tensors["training"], tensors["validation"])
    except (SafetensorError, OSError):
        pass
    training, validation = (
        _encode_split(split, plan, autoencoder, console) for split in (corpus.training, corpus.validation)
    )
    latents = CachedLatents(training, validation)
    with replace_file(path) as temporary:
        save_file(latents._asdict(), temporary, metadata)
    return latents


def _encode_split(split: Split, plan: LoraPlan, autoencoder: Autoencoder, console: Console) -> Tensor:
    indices = track(range(len(split)), "encoding images", console=console, transient=True)
    latents = [encode_images_alone(split, autoencoder, range(i, i + 1)) for i in indices]
    width, height = plan.model.input_size
    return torch.cat(latents) if latents else torch.empty(0, autoencoder.latent_channels, height, width)


def latent_batches(latents: Tensor, split: Split, batch_size: int, *, seed: int, start: int) -> Iterator[LatentBatch]:
    """Batches without end from position `start`, as those of `corpus.batches`, but always of the same crops and not
    mirrored."""
    while True:
        positions = np.arange(start, start + batch_size, dtype=np.int64)
        indices = select_images(len(split), positions, partial(epoch_permutation, len(split), seed))
        yield LatentBatch(
            latents[indices], select_captions(split, seed, positions, indices), torch.from_numpy(positions)
        )
        start += batch_size
