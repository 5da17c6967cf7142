"""Learning the autoencoder, before the network that denoises; from then on it is fixed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unspeckle import atomic
from unspeckle.corpus import Batch, Corpus, batches
from unspeckle.errors import InputError
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.rng import ExampleRNG
from unspeckle.training import checkpoint
from unspeckle.training.master_weights import MasterWeights, StepStats
from unspeckle.training.plan import Plan
from unspeckle.training.reconstruction_loss import COARSE_LOSS_EVERY, reconstruction_loss
from unspeckle.training.stage import Inspection, ProgressReport, save_checkpoint_or_raise, training_loop

AUTOENCODER_FOLDER = "autoencoder"  # of a RUN: its checkpoints, the last of which is the autoencoder, and its log
MAX_LATENT_NOISE_STD = (
    0.1  # largest deviation of what is added to latents, so that a denoiser's small errors do not show
)
STANDARDIZATION_IMAGES = 1024  # pictures that say how the latents are to be standardised
RECONSTRUCTION_IMAGES = 16  # held-out pictures beside their reconstructions
_LEVEL, _NOISE = 0, 1  # a Stream's purposes


class AutoencoderUpdater(MasterWeights):
    """Of the autoencoder. The latents' running mean and variance are kept in float32, shared by masters and workers."""

    weights: LatentAutoencoder
    compute_module: LatentAutoencoder

    def __init__(self, plan: Plan, weights: LatentAutoencoder) -> None:
        super().__init__(plan, weights)
        self.compute_module.latent_norm = self.weights.latent_norm

    def loss(self, batch: Batch, step: int) -> Tensor:
        """What is lost on the way there and back, with noise between."""
        rng = ExampleRNG(self.plan.seed, batch.example_indices.to(self.device))
        images = batch.images.to(self.device).float() / 127.5 - 1
        noise_std = MAX_LATENT_NOISE_STD * rng.uniform(_LEVEL).view(-1, 1, 1, 1)

        def add_noise(latents: Tensor) -> Tensor:
            return latents + noise_std * rng.normal(_NOISE, latents.shape[1:])

        return reconstruction_loss(
            self.compute_module, images, add_noise, with_coarse_loss=step % COARSE_LOSS_EVERY == 0
        )

    def step(self, batch: Batch, step: int) -> StepStats:
        """Learn from a batch as step 1…plan.steps."""
        return self.backward_and_update(self.loss(batch, step), step)

    def state_tensors(self) -> dict[str, Tensor]:
        """Every tensor that going on needs: the very ones, to save or to copy into."""
        tensors = {f"weights.{name}": tensor for name, tensor in self.weights.state_dict().items()}
        return tensors | {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state_tensors().items()}


@dataclass
class AutoencoderTask:
    """All that the autoencoder's part of a run holds in memory."""

    plan: Plan  # of the whole run
    run_folder: Path
    corpus: Corpus
    autoencoder: LatentAutoencoder
    should_stop: Callable[[], bool] = lambda: False
    skipped_steps: int = 0
    updater: AutoencoderUpdater = field(init=False)

    def __post_init__(self) -> None:
        steps = self.plan.autoencoder_steps
        self.plan = replace(
            self.plan, steps=steps, warmup_steps=max(1, min(100, steps // 10)), text_steps=0, flops_per_image=0.0
        )
        self.updater = AutoencoderUpdater(self.plan, self.autoencoder)

    def step(self, batch: Batch, step: int) -> StepStats:
        return self.updater.step(batch, step)

    def inspect(self, step: int) -> Inspection:
        return Inspection(samples_path=self.save_reconstructions(step))

    def save_checkpoint(self, step: int) -> Path:
        return save_checkpoint_or_raise(
            self.run_folder / AUTOENCODER_FOLDER / "checkpoints",
            step,
            self.updater.state_tensors(),
            {"skipped": self.skipped_steps},
        )

    def resume(self) -> int:
        """Take up the newest checkpoint, if there is one; returns the steps done."""
        saved_checkpoint = checkpoint.load_latest_checkpoint(self.run_folder / AUTOENCODER_FOLDER / "checkpoints")
        if saved_checkpoint is None:
            return 0
        try:
            with torch.no_grad():
                checkpoint.restore_tensors(self.updater.state_tensors(), saved_checkpoint.tensors)
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{self.run_folder / AUTOENCODER_FOLDER}: does not fit the plan ({error}); give another --out"
            ) from error
        self.updater.refresh_compute_module()
        self.skipped_steps = int(saved_checkpoint.counters["skipped"])
        return saved_checkpoint.step

    @torch.no_grad()
    def standardize_latents(self) -> None:
        """Make the latents' mean 0 and variance 1 over training pictures, as the finished encoder sees them."""
        split, norm_layer = self.corpus.training, self.autoencoder.latent_norm
        norm_layer.reset_running_stats()
        norm_layer.momentum = None  # the plain mean of all batches
        self.autoencoder.train()
        indices = (
            np.arange(min(STANDARDIZATION_IMAGES, len(split))) * len(split) // min(STANDARDIZATION_IMAGES, len(split))
        )
        for chunk in np.array_split(indices, -(-len(indices) // 64)):
            self.autoencoder.encode(split.center_crops(chunk).to(self.updater.device).float() / 127.5 - 1)

    @torch.no_grad()
    def save_reconstructions(self, step: int) -> Path:
        """Held-out pictures above what comes back of them, as a PNG."""
        split = self.corpus.validation if len(self.corpus.validation) else self.corpus.training
        pixels = split.center_crops(np.arange(min(RECONSTRUCTION_IMAGES, len(split)))).to(self.updater.device)
        self.autoencoder.eval()
        reconstructions = self.autoencoder.decode(self.autoencoder.encode(pixels.float() / 127.5 - 1))
        self.autoencoder.train()
        reconstructions = ((reconstructions.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        grid = (
            torch.cat([pixels, reconstructions]).view(2, -1, *pixels.shape[1:]).permute(0, 3, 1, 4, 2)
        )  # (2, H, N, W, 3)
        path = self.run_folder / "samples" / f"autoencoder-{step:08d}.png"
        with atomic.replace_file(path) as temporary:
            Image.fromarray(grid.flatten(2, 3).flatten(0, 1).contiguous().cpu().numpy()).save(temporary, "PNG")
        return path


def train_autoencoder(task: AutoencoderTask) -> Iterator[ProgressReport]:
    """Take the autoencoder through its steps, from its newest checkpoint; where it comes to the end, it is fixed."""
    plan, steps_done = task.plan, task.resume()
    first_index = steps_done * plan.batch_size
    training_batches = batches(task.corpus.training, plan.batch_size, seed=plan.seed, start=first_index, flip=plan.flip)
    for report in training_loop(task, training_batches, steps_done):
        is_last = report.step == plan.steps
        yield replace(report, samples_path=task.save_reconstructions(report.step)) if is_last else report
    if task.should_stop() and checkpoint.latest_step(task.run_folder / AUTOENCODER_FOLDER / "checkpoints") < plan.steps:
        return
    task.standardize_latents()
    task.autoencoder.eval().requires_grad_(False)


def init_autoencoder(seed: int, config: LatentAutoencoderConfig | None = None) -> LatentAutoencoder:
    """An autoencoder that knows nothing yet, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LatentAutoencoder(config or LatentAutoencoderConfig())


def missing_autoencoder_error(run_folder: Path) -> InputError:
    """What is said of a run whose network has learnt from latents of an autoencoder that is no more."""
    return InputError(
        f"{run_folder / AUTOENCODER_FOLDER}: the autoencoder that this run learnt with is gone; put it back, or give another --out"
    )


def save_or_restore_autoencoder(run_folder: Path, autoencoder: LatentAutoencoder, is_trained: bool) -> None:
    """Keep another model's autoencoder for this run, or take up the one that this run kept so; it is fixed. given: this
    one is that model's, and has learnt. InputError where it is not, and none was kept."""
    saved_checkpoint = checkpoint.load_latest_checkpoint(run_folder / AUTOENCODER_FOLDER / "checkpoints")
    if saved_checkpoint is None and not is_trained:
        raise missing_autoencoder_error(run_folder)
    if saved_checkpoint is None:
        tensors = {f"weights.{name}": tensor for name, tensor in autoencoder.state_dict().items()}
        save_checkpoint_or_raise(run_folder / AUTOENCODER_FOLDER / "checkpoints", 0, tensors, {"skipped": 0})
    else:
        weights = {
            name.removeprefix("weights."): tensor
            for name, tensor in saved_checkpoint.tensors.items()
            if name.startswith("weights.")
        }
        autoencoder.load_state_dict(weights)
    autoencoder.eval().requires_grad_(False)
