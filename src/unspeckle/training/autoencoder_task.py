"""Training the autoencoder, before the network that denoises its latents; from then on it is fixed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unspeckle import atomic
from unspeckle.corpus.batches import Batch, batches
from unspeckle.corpus.splits import Corpus
from unspeckle.errors import InputError
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.training import checkpoint
from unspeckle.training.autoencoder_updater import AutoencoderUpdater
from unspeckle.training.best_weights_task import SAMPLES_FOLDER
from unspeckle.training.plan import Plan
from unspeckle.training.progress import ProgressReport
from unspeckle.training.task import Stage, Task
from unspeckle.training.validation import validation_split

# In a RUN: the autoencoder's checkpoints, the last of which is the autoencoder, and its log
AUTOENCODER_FOLDER = "autoencoder"
MAX_WARMUP_STEPS = 100
# Training images by which the latents are standardized
STANDARDIZATION_IMAGES = 1024
STANDARDIZATION_BATCH_SIZE = 64
# Validation images that are shown beside their reconstructions
RECONSTRUCTION_IMAGES = 16


class AutoencoderTask(Task):
    """Trains an autoencoder on the images of a corpus, for the autoencoder_steps of a plan."""

    updater: AutoencoderUpdater
    model_part = "autoencoder"

    def __init__(self, plan: Plan, run_folder: Path, corpus: Corpus, autoencoder: LatentAutoencoder) -> None:
        steps = plan.work.autoencoder_steps
        plan = plan.with_changes(
            work={"steps": steps, "text_steps": 0},
            optimizer={"warmup_steps": max(1, min(MAX_WARMUP_STEPS, steps // 10)), "ema_widths": ()},
            measured={"flops_per_image": 0.0},
        )
        super().__init__(plan, run_folder / AUTOENCODER_FOLDER, AutoencoderUpdater(plan, autoencoder))
        self.corpus, self.autoencoder = corpus, autoencoder
        self.samples_folder = run_folder / SAMPLES_FOLDER

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("autoencoder", self.plan.work.steps),)

    def batches(self, start: int) -> Iterator[Batch]:
        work = self.plan.work
        first_index = start * work.batch_size
        return batches(self.corpus.training, work.batch_size, seed=work.seed, start=first_index, flip=work.flip)

    def validate(self) -> None:
        """Nothing: its samples show how well it does."""

    @torch.no_grad()
    def save_samples(self, step: int) -> Path:
        """Validation images above their reconstructions, as a PNG."""
        split = validation_split(self.corpus)
        pixels = split.center_crops(np.arange(min(RECONSTRUCTION_IMAGES, len(split)))).to(self.updater.device)
        self.autoencoder.eval()
        reconstructions = self.autoencoder.decode(self.autoencoder.encode(pixels.float() / 127.5 - 1))
        self.autoencoder.train()
        reconstructions = ((reconstructions.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        rows = torch.cat([pixels, reconstructions]).view(2, -1, *pixels.shape[1:])  # (2, N, 3, H, W)
        grid = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (2·H, N·W, 3)
        path = self._samples_path(step)
        with atomic.replace_file(path) as temporary:
            Image.fromarray(grid.contiguous().cpu().numpy()).save(temporary, "PNG")
        return path

    def finish(self) -> Iterator[ProgressReport]:
        """Standardize the latents and freeze the autoencoder; show its reconstructions the first time."""
        steps = self.plan.work.steps
        if not self._samples_path(steps).exists():
            yield ProgressReport(step=steps, steps=steps, stage="autoencoder", samples_path=self.save_samples(steps))
        self._standardize_latents()
        self.autoencoder.eval().requires_grad_(False)

    @torch.no_grad()
    def _standardize_latents(self) -> None:
        """Make the latents' mean 0 and variance 1 over training images, as the trained encoder sees them."""
        split, latent_norm = self.corpus.training, self.autoencoder.latent_norm
        latent_norm.reset_running_stats()
        # The plain mean of all batches
        latent_norm.momentum = None
        self.autoencoder.train()
        count = min(STANDARDIZATION_IMAGES, len(split))
        indices = np.arange(count) * len(split) // count
        for chunk in np.array_split(indices, -(-count // STANDARDIZATION_BATCH_SIZE)):
            self.autoencoder.encode(split.center_crops(chunk).to(self.updater.device).float() / 127.5 - 1)

    def _samples_path(self, step: int) -> Path:
        return self.samples_folder / f"autoencoder-{step:08d}.png"


def init_autoencoder(seed: int, config: LatentAutoencoderConfig | None = None) -> LatentAutoencoder:
    """An untrained autoencoder, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LatentAutoencoder(config or LatentAutoencoderConfig())


def check_autoencoder_kept(plan: Plan, run_folder: Path) -> None:
    """InputError if the network has been trained on latents of an autoencoder that RUN no longer has."""
    autoencoder_steps = checkpoint.latest_step(run_folder / AUTOENCODER_FOLDER)
    if checkpoint.latest_step(run_folder) and autoencoder_steps < plan.work.autoencoder_steps:
        raise _missing_autoencoder_error(run_folder)


def save_or_restore_autoencoder(run_folder: Path, autoencoder: LatentAutoencoder, is_trained: bool) -> None:
    """Keep another model's autoencoder in RUN, or load the one that is kept there; it is fixed.

    is_trained: the autoencoder given is that model's, and not an untrained one. InputError if it is untrained and RUN
    has none."""
    folder = run_folder / AUTOENCODER_FOLDER
    saved = checkpoint.load_latest_checkpoint(folder, AutoencoderTask.rename_old_tensor)
    if saved is None and not is_trained:
        raise _missing_autoencoder_error(run_folder)
    if saved is None:
        tensors = {f"weights.{name}": tensor.detach().cpu() for name, tensor in autoencoder.state_dict().items()}
        checkpoint.save_checkpoint(folder, checkpoint.Checkpoint(0, tensors, {"skipped_steps": 0}))
    else:
        autoencoder.load_state_dict(_weights(saved.tensors))
    autoencoder.eval().requires_grad_(False)


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of a checkpoint's tensors that are weights, without the prefix of their names."""
    return {k.removeprefix("weights."): tensor for k, tensor in tensors.items() if k.startswith("weights.")}


def _missing_autoencoder_error(run_folder: Path) -> InputError:
    return InputError(
        f"{run_folder / AUTOENCODER_FOLDER}: the autoencoder that this run was trained with is gone; put it back, or "
        "give another --out"
    )
