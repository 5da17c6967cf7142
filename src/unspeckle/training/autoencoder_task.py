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
from unspeckle.networks.latent_autoencoder import LatentConfig, Latents
from unspeckle.rng import ExampleRNG
from unspeckle.training import checkpoint
from unspeckle.training.master_weights import Masters, Outcome
from unspeckle.training.plan import Plan
from unspeckle.training.reconstruction_loss import COARSE_EVERY, reconstruction
from unspeckle.training.stage import Look, Report, keep, walk

FOLDER = "autoencoder"  # of a RUN: its checkpoints, the last of which is the autoencoder, and its log
NOISE = 0.1  # largest deviation of what is added to latents, so that a denoiser's small errors do not show
MEASURED = 1024  # pictures that say how the latents are to be standardised
SHOWN = 16  # held-out pictures beside their reconstructions
_LEVEL, _NOISE = 0, 1  # a Stream's purposes


class LatentLearner(Masters):
    """Of the autoencoder. The latents' running mean and variance are kept in float32, shared by masters and workers."""

    weights: Latents
    working: Latents

    def __init__(self, plan: Plan, weights: Latents) -> None:
        super().__init__(plan, weights)
        self.working.standard = self.weights.standard

    def loss(self, batch: Batch, step: int) -> Tensor:
        """What is lost on the way there and back, with noise between."""
        stream = ExampleRNG(self.plan.seed, batch.indices.to(self.device))
        pictures = batch.pictures.to(self.device).float() / 127.5 - 1
        deviation = NOISE * stream.uniform(_LEVEL).view(-1, 1, 1, 1)

        def noised(latents: Tensor) -> Tensor:
            return latents + deviation * stream.normal(_NOISE, latents.shape[1:])

        return reconstruction(self.working, pictures, noised, coarse=step % COARSE_EVERY == 0)

    def step(self, batch: Batch, step: int) -> Outcome:
        """Learn from a batch as step 1…plan.steps."""
        return self.descend(self.loss(batch, step), step)

    def tensors_by_name(self) -> dict[str, Tensor]:
        """Every tensor that going on needs: the very ones, to save or to copy into."""
        held = {f"weights.{name}": tensor for name, tensor in self.weights.state_dict().items()}
        return held | {f"optimizer.{name}": tensor for name, tensor in self.optimizer.memory().items()}


@dataclass
class LatentTraining:
    """All that the autoencoder's part of a run holds in memory."""

    plan: Plan  # of the whole run
    run: Path
    corpus: Corpus
    autoencoder: Latents
    stop: Callable[[], bool] = lambda: False
    skipped: int = 0
    learner: LatentLearner = field(init=False)

    def __post_init__(self) -> None:
        steps = self.plan.latent_steps
        self.plan = replace(self.plan, steps=steps, warmup=max(1, min(100, steps // 10)), word_steps=0, work=0.0)
        self.learner = LatentLearner(self.plan, self.autoencoder)

    def step(self, batch: Batch, step: int) -> Outcome:
        return self.learner.step(batch, step)

    def look(self, step: int) -> Look:
        return Look(samples=self.shown(step))

    def save(self, step: int) -> Path:
        return keep(self.run / FOLDER / "checkpoints", step, self.learner.tensors_by_name(), {"skipped": self.skipped})

    def resume(self) -> int:
        """Take up the newest checkpoint, if there is one; returns the steps done."""
        found = checkpoint.latest(self.run / FOLDER / "checkpoints")
        if found is None:
            return 0
        try:
            with torch.no_grad():
                checkpoint.restore(self.learner.tensors_by_name(), found.tensors)
        except (KeyError, RuntimeError) as error:
            raise InputError(f"{self.run / FOLDER}: does not fit the plan ({error}); give another --out") from error
        self.learner.refresh()
        self.skipped = int(found.counters["skipped"])
        return found.step

    @torch.no_grad()
    def standardise(self) -> None:
        """Make the latents' mean 0 and variance 1 over training pictures, as the finished encoder sees them."""
        split, normal = self.corpus.training, self.autoencoder.standard
        normal.reset_running_stats()
        normal.momentum = None  # the plain mean of all batches
        self.autoencoder.train()
        chosen = np.arange(min(MEASURED, len(split))) * len(split) // min(MEASURED, len(split))
        for some in np.array_split(chosen, -(-len(chosen) // 64)):
            self.autoencoder.encode(split.pictures(some).to(self.learner.device).float() / 127.5 - 1)

    @torch.no_grad()
    def shown(self, step: int) -> Path:
        """Held-out pictures above what comes back of them, as a PNG."""
        split = self.corpus.heldout if len(self.corpus.heldout) else self.corpus.training
        pixels = split.pictures(np.arange(min(SHOWN, len(split)))).to(self.learner.device)
        self.autoencoder.eval()
        back = self.autoencoder.decode(self.autoencoder.encode(pixels.float() / 127.5 - 1))
        self.autoencoder.train()
        back = ((back.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        rows = torch.cat([pixels, back]).view(2, -1, *pixels.shape[1:]).permute(0, 3, 1, 4, 2)  # (2, H, N, W, 3)
        path = self.run / "samples" / f"autoencoder-{step:08d}.png"
        with atomic.replace_file(path) as beside:
            Image.fromarray(rows.flatten(2, 3).flatten(0, 1).contiguous().cpu().numpy()).save(beside, "PNG")
        return path


def learn(training: LatentTraining) -> Iterator[Report]:
    """Take the autoencoder through its steps, from its newest checkpoint; where it comes to the end, it is fixed."""
    plan, done = training.plan, training.resume()
    begin = done * plan.batch
    data = batches(training.corpus.training, plan.batch, seed=plan.seed, start=begin, flips=plan.mirror)
    for report in walk(training, data, done):
        last = report.step == plan.steps
        yield replace(report, samples=training.shown(report.step)) if last else report
    if training.stop() and checkpoint.steps_done(training.run / FOLDER / "checkpoints") < plan.steps:
        return
    training.standardise()
    training.autoencoder.eval().requires_grad_(False)


def unlearnt(seed: int, config: LatentConfig | None = None) -> Latents:
    """An autoencoder that knows nothing yet, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Latents(config or LatentConfig())


def lost(run: Path) -> InputError:
    """What is said of a run whose network has learnt from latents of an autoencoder that is no more."""
    return InputError(
        f"{run / FOLDER}: the autoencoder that this run learnt with is gone; put it back, or give another --out"
    )


def settle(run: Path, autoencoder: Latents, given: bool) -> None:
    """Keep another model's autoencoder for this run, or take up the one that this run kept so; it is fixed. given: this
    one is that model's, and has learnt. InputError where it is not, and none was kept."""
    found = checkpoint.latest(run / FOLDER / "checkpoints")
    if found is None and not given:
        raise lost(run)
    if found is None:
        kept = {f"weights.{name}": tensor for name, tensor in autoencoder.state_dict().items()}
        keep(run / FOLDER / "checkpoints", 0, kept, {"skipped": 0})
    else:
        weights = {n.removeprefix("weights."): t for n, t in found.tensors.items() if n.startswith("weights.")}
        autoencoder.load_state_dict(weights)
    autoencoder.eval().requires_grad_(False)
