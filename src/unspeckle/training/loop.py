"""The run: averages, held-out losses, samples and the choice at the end, around the walk along the plan's steps."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from unspeckle import atomic
from unspeckle.corpus import Batch, Corpus, batches
from unspeckle.denoiser import Network
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import Request, draw
from unspeckle.model import MODEL_FILE, ModelCard, Model, save
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.prompts import escape
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import checkpoint
from unspeckle.training.ema import PowerAverage
from unspeckle.training.encoded_corpus import encoded
from unspeckle.training.master_weights import DTYPES, Learner, Masters, Outcome, Weights, fresh
from unspeckle.training.plan import Plan
from unspeckle.training.stage import Failed, Look, Report, keep, walk
from unspeckle.training.validation import HeldOut, Judged

Module = TypeVar("Module", bound=nn.Module)
HELD_OUT = 128  # pictures

Judge = Callable[[Model], Judged]


@dataclass
class Course(ABC):
    """All that a run holds in memory, whatever it learns from. file: what it leaves in RUN."""

    file: ClassVar[str] = MODEL_FILE
    plan: Plan
    run: Path
    stop: Callable[[], bool] = field(default=lambda: False, kw_only=True)
    skipped: int = field(default=0, kw_only=True)
    learner: Masters = field(init=False)
    averages: list[PowerAverage] = field(init=False)

    def __post_init__(self) -> None:
        self.learner = self.learns()
        self.averages = [PowerAverage(width, self.learner.parameters()) for width in self.plan.averages]

    @abstractmethod
    def learns(self) -> Masters:
        """Who learns, from the beginning."""

    @abstractmethod
    def data(self, done: int) -> Iterator[Any]:
        """What the learner is given from the step after `done`, without end: a function of the plan and of `done`."""

    @abstractmethod
    def judge(self) -> Judge:
        """The examination that two moments of a run compare by."""

    @abstractmethod
    def model(self, tensors: list[Tensor], precision: str = "float32", weights: str = "") -> Model:
        """A model of these tensors, apart from the ones that learn. weights: which ones they are, for its card."""

    def write(self, model: Model) -> None:
        """Leave in RUN what was learnt, atomically."""
        save(model, self.run / self.file)

    @abstractmethod
    def asks(self) -> list[Request]:
        """The samples: fixed prompts and seeds."""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that a checkpoint keeps, by name: the very ones, to save or to copy into."""
        module, names = self.learner.weights, [name for name, _ in self.learner.weights.named_parameters()]
        kept = {f"weights.{name}": p.data for name, p in module.named_parameters()}
        kept |= {f"optimizer.{name}": t for name, t in self.learner.optimizer.memory().items()}
        for average in self.averages:
            kept |= {f"average-{average.width}.{n}": t for n, t in zip(names, average.average, strict=True)}
        return kept

    def step(self, batch: Any, step: int) -> Outcome:
        outcome = self.learner.step(batch, step)
        if step % self.plan.average_every == 0 or step == self.plan.steps:
            for average in self.averages:
                average.update(self.learner.parameters(), step)
        return outcome

    def look(self, step: int) -> Look:
        return Look(self.judged(self.model(self.learner.tensors(), self.plan.precision)), _samples(self, step))

    @cached_property
    def judged(self) -> Judge:
        return self.judge()

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


@dataclass
class Training(Course):
    """A course on captioned pictures."""

    corpus: Corpus
    tokenizer: Tokenizer
    autoencoder: Autoencoder
    card: ModelCard
    prompts: tuple[str, ...]
    weights: Weights

    def learns(self) -> Learner:
        return Learner(self.plan, self.weights, self.tokenizer, self.autoencoder)

    def data(self, done: int) -> Iterator[Batch]:
        plan, split, learner = self.plan, self.corpus.training, self.learner
        assert isinstance(learner, Learner)
        split = encoded(split, learner.encoder) if plan.encode_once else split
        start = done * plan.batch
        return batches(split, plan.batch, seed=plan.seed, start=start, flips=plan.mirror, balance=plan.balance)

    def judge(self) -> Judge:
        judged, learner = self.corpus.heldout if len(self.corpus.heldout) else self.corpus.training, self.learner
        assert isinstance(learner, Learner)
        schedule = learner.denoiser.schedule
        held = HeldOut(judged, self.tokenizer, self.autoencoder, learner.objective, learner.device, HELD_OUT, schedule)
        return lambda model: held(model.denoiser, model.text_encoder)

    def model(self, tensors: list[Tensor], precision: str = "float32", weights: str = "") -> Model:
        filled = copied(fresh(self.plan), tensors, precision, self.learner.device)
        card, denoiser = self.card, self.plan.denoiser(cast(Network, filled.network))
        card = replace(card, corpus={**card.corpus, "weights": weights}) if weights else card
        return Model(denoiser, self.tokenizer, filled.text, self.autoencoder, card)

    def asks(self) -> list[Request]:
        return [Request(escape(prompt), seed=i, steps=20) for i, prompt in enumerate(self.prompts)]


def copied(module: Module, tensors: list[Tensor], precision: str, device: torch.device) -> Module:
    """The module with copies of the tensors as its parameters, in that precision, as one draws with it."""
    module.to(device)
    with torch.no_grad():
        for parameter, tensor in zip(module.parameters(), tensors, strict=True):
            parameter.copy_(tensor)
    module.to(DTYPES[precision]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module.eval().requires_grad_(False)
    return module


def train(training: Course) -> Iterator[Report]:
    """Run the plan from its newest checkpoint to its end, leaving RUN/model.safetensors.

    Stops at a clean point, with a checkpoint, where training.stop() turns true. Failed where the loss stays infinite.
    """
    done = training.resume()
    yield from walk(training, training.data(done), done)
    if checkpoint.steps_done(training.run / "checkpoints") == training.plan.steps:
        yield _finish(training)


def _samples(training: Course, step: int, model: Model | None = None) -> Path:
    """Draw the samples as one PNG; training's own randomness is not touched."""
    averaged = [average.average for average in training.averages[:1] if average.seen]
    chosen = averaged[0] if averaged else training.learner.tensors()
    model = model or training.model(chosen, training.plan.precision)
    pictures = [draw(model, ask)[0] for ask in training.asks()]
    width, height = training.plan.size
    columns = math.ceil(math.sqrt(len(pictures)))
    grid = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height))
    for i, picture in enumerate(pictures):
        grid.paste(picture, (i % columns * width, i // columns * height))
    path = training.run / "samples" / f"step-{step:08d}.png"
    with atomic.replace_file(path) as beside:
        grid.save(beside, "PNG")
    return path


def _finish(training: Course) -> Report:
    """Keep the weights that do best in the examination."""
    best: tuple[Judged, str, list[Tensor]] | None = None
    for name, tensors in training.candidates().items():
        loss = training.judged(training.model(tensors, training.plan.precision))
        if best is None or loss.total < best[0].total:
            best = loss, name, tensors
    assert best is not None
    plan, run = training.plan, training.run
    samples = _samples(training, plan.steps, training.model(best[2], plan.precision))  # first: the model ends a run
    try:
        training.write(training.model(best[2], weights=best[1]))
    except (OSError, SafetensorError) as error:
        told = f"{training.file} cannot be written ({error}); free some space and give the same command again"
        raise Failed(told) from error
    return Report(
        plan.steps, plan.steps, math.nan, math.nan, 0, 0, training.skipped, best[0], samples, run / training.file
    )
