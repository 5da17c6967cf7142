"""The run: steps, averages, held-out losses, samples and checkpoints, as a stream of reports."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from unspeckle import atomic
from unspeckle.corpus import Batch, Corpus, batches
from unspeckle.denoiser import Denoiser
from unspeckle.draw import Ask, draw
from unspeckle.errors import InputError
from unspeckle.model import FILE, Card, Model, save
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.schedule import from_config
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import checkpoint
from unspeckle.training.ema import PowerAverage
from unspeckle.training.heldout import HeldOut, HeldOutLoss
from unspeckle.training.learner import DTYPES, Learner, Outcome, Weights, fresh
from unspeckle.training.plan import Plan
from unspeckle.training.stage import Failed, Look, Report, keep, walk

HELD_OUT = 128  # pictures


@dataclass
class Training:
    """All that a run holds in memory."""

    plan: Plan
    run: Path
    corpus: Corpus
    tokenizer: Tokenizer
    autoencoder: Autoencoder
    card: Card
    prompts: tuple[str, ...]
    weights: Weights
    stop: Callable[[], bool] = lambda: False
    skipped: int = 0
    learner: Learner = field(init=False)
    averages: list[PowerAverage] = field(init=False)
    held: HeldOut = field(init=False)

    def __post_init__(self) -> None:
        self.learner = learner = Learner(self.plan, self.weights, self.tokenizer, self.autoencoder)
        self.averages = [PowerAverage(width, learner.parameters()) for width in self.plan.averages]
        judged = self.corpus.heldout if len(self.corpus.heldout) else self.corpus.training
        self.held = HeldOut(judged, self.tokenizer, self.autoencoder, learner.objective, learner.device, HELD_OUT)

    def step(self, batch: Batch, step: int) -> Outcome:
        outcome = self.learner.step(batch, step)
        if step % self.plan.average_every == 0 or step == self.plan.steps:
            for average in self.averages:
                average.update(self.learner.parameters(), step)
        return outcome

    def look(self, step: int) -> Look:
        model = self.model(self.learner.tensors(), self.plan.precision)
        return Look(self.held(model.denoiser, model.text), _samples(self, step))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that a checkpoint keeps, by name: the very ones, to save or to copy into."""
        module, names = self.learner.weights, [name for name, _ in self.learner.weights.named_parameters()]
        kept = {f"weights.{name}": p.data for name, p in module.named_parameters()}
        kept |= {f"optimizer.{name}": t for name, t in self.learner.optimizer.memory().items()}
        for average in self.averages:
            kept |= {f"average-{average.width}.{n}": t for n, t in zip(names, average.average, strict=True)}
        return kept

    def save(self, step: int) -> Path:
        counters = {"skipped": self.skipped, **{f"seen-{a.width}": a.seen for a in self.averages}}
        return keep(self.run / "checkpoints", step, self.tensors(), counters)

    def resume(self) -> int:
        """Take up the newest checkpoint, if there is one; returns the steps done."""
        found = checkpoint.latest(self.run / "checkpoints")
        if found is None:
            return 0
        try:
            with torch.no_grad():
                checkpoint.restore(self.tensors(), found.tensors)
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{self.run}: its checkpoint does not fit its plan ({error}); give another --out"
            ) from error
        self.learner.refresh()
        self.skipped = int(found.counters["skipped"])
        for average in self.averages:
            average.seen = int(found.counters[f"seen-{average.width}"])
        return found.step

    def candidates(self) -> dict[str, list[Tensor]]:
        """The weights a model may end with."""
        raw = {"raw": self.learner.tensors()}
        return raw | {f"EMA {a.width:g}": a.average for a in self.averages if a.seen}

    def model(self, tensors: list[Tensor], precision: str = "float32") -> Model:
        """A model of these weights, apart from the ones that learn."""
        weights = fresh(self.plan).to(self.learner.device)
        with torch.no_grad():
            for parameter, tensor in zip(weights.parameters(), tensors, strict=True):
                parameter.copy_(tensor)
        weights = weights.to(DTYPES[precision]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        weights.eval().requires_grad_(False)
        plan = self.plan
        denoiser = Denoiser(weights.network, from_config(plan.schedule), plan.prediction, plan.clock)
        return Model(denoiser, self.tokenizer, weights.text, self.autoencoder, self.card)


def train(training: Training) -> Iterator[Report]:
    """Run the plan from its newest checkpoint to its end, leaving RUN/model.safetensors.

    Stops at a clean point, with a checkpoint, where training.stop() turns true. Failed where the loss stays infinite.
    """
    plan, done = training.plan, training.resume()
    yield from walk(
        training, batches(training.corpus.training, plan.batch, seed=plan.seed, start=done * plan.batch), done
    )
    if checkpoint.steps_done(training.run / "checkpoints") == plan.steps:
        yield _finish(training)


def _samples(training: Training, step: int, model: Model | None = None) -> Path:
    """Draw the fixed prompts from fixed seeds as one PNG; training's own randomness is not touched."""
    chosen = training.averages[0].average if training.averages[0].seen else training.learner.tensors()
    model = model or training.model(chosen, training.plan.precision)
    pictures = [draw(model, Ask(prompt, seed=i, steps=20))[0] for i, prompt in enumerate(training.prompts)]
    width, height = training.plan.size
    columns = math.ceil(math.sqrt(len(pictures)))
    grid = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height))
    for i, picture in enumerate(pictures):
        grid.paste(picture, (i % columns * width, i // columns * height))
    path = training.run / "samples" / f"step-{step:08d}.png"
    with atomic.replacing(path) as beside:
        grid.save(beside, "PNG")
    return path


def _finish(training: Training) -> Report:
    """Keep the weights that do best on held-out pictures."""
    best: tuple[HeldOutLoss, str, list[Tensor]] | None = None
    for name, tensors in training.candidates().items():
        model = training.model(tensors, training.plan.precision)
        loss = training.held(model.denoiser, model.text)
        if best is None or loss.total < best[0].total:
            best = loss, name, tensors
    assert best is not None
    plan, run = training.plan, training.run
    model = training.model(best[2])
    model.card = replace(model.card, corpus={**model.card.corpus, "weights": best[1]})
    try:
        save(model, run / FILE)
    except (OSError, SafetensorError) as error:
        raise Failed(f"{FILE} cannot be written ({error}); free some space and give the same command again") from error
    samples = _samples(training, plan.steps, training.model(best[2], plan.precision))
    return Report(plan.steps, plan.steps, math.nan, math.nan, 0, 0, training.skipped, best[0], samples, run / FILE)
