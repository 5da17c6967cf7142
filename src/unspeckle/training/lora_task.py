"""Fine-tuning a Stable Diffusion: it stays as it is, in the precision of the work, and adapters beside it learn."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from unspeckle.corpus import Corpus
from unspeckle.denoiser import Conditioning
from unspeckle.formats.lora import lora_file
from unspeckle.formats.stable_diffusion.model import Foreign
from unspeckle.generation.pipeline import Request
from unspeckle.model import LORA_FILE, Model
from unspeckle.networks.lora import Adapters, fresh, live
from unspeckle.prompts import escape
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import DiscreteSchedule
from unspeckle.training.cached_latents import CachedLatents, LatentBatch, batches
from unspeckle.training.loop import Course, Judge
from unspeckle.training.master_weights import DTYPES, Masters, Outcome
from unspeckle.training.plan import LoraPlan
from unspeckle.training.validation import LEVELS, PIXELS, SHARE, HeldOut

FILE = LORA_FILE
HELD_OUT = 16  # pictures
PROMPTS, STEPS = 4, 20  # of the samples
_NOISE = 1  # a Stream's purpose


class Tuner(Masters):
    """weights: the adapters, float32 whatever the base is; they stand beside the layers of the base."""

    plan: LoraPlan
    weights: Adapters

    def __init__(self, plan: LoraPlan, base: Foreign) -> None:
        parts = {"network": base.network, **({"text": base.text_encoder} if plan.words else {})}
        super().__init__(plan, fresh(parts, plan.rank, plan.seed))
        self.weights.attach(parts)
        self.base, self.parts = base, parts
        self.objective = replace(plan.objective(), floor=1e-3)

    def worker(self) -> nn.Module:
        return self.weights

    def leave(self) -> None:
        """Take the adapters away from the base."""
        self.weights.detach(self.parts)

    def given(self, ids: Tensor) -> Conditioning:
        """Of captions' ids (B, encoders, L): all that the network wants to be told."""
        with torch.set_grad_enabled(self.plan.words and torch.is_grad_enabled()):
            read: Conditioning = self.base.text_encoder(ids)
        return self.base.add_conditioning(read, positive=True, guidance_scale=1.0, size=self.plan.size)

    def loss(self, batch: LatentBatch) -> Tensor:
        """Mean loss of a batch, captions dropped example by example."""
        stream = ExampleRNG(self.plan.seed, batch.indices.to(self.device))
        *said, nothing = self.base.tokenizer.encode([*batch.captions, ""]).to(self.device)
        ids = torch.where(self.objective.dropped_captions(stream)[:, None, None], nothing, torch.stack(said))
        x = batch.x.to(self.device)
        t = entry(self.objective.sample_times(stream, self.base.denoiser.schedule), self.base)
        eps = stream.normal(_NOISE, x.shape[1:])
        return self.objective.loss_at(self.base.denoiser, x, self.given(ids), t, eps).mean()

    def step(self, batch: LatentBatch, step: int) -> Outcome:
        return self.descend(self.loss(batch), step)


def entry(t: Tensor, base: Foreign) -> Tensor:
    """Times (B,) in (0, 1] moved up to the next entry of the base's table: it was told of no others."""
    table = base.denoiser.schedule
    assert isinstance(table, DiscreteSchedule)
    return (t * table.num_train_timesteps).ceil().clamp(min=1) / table.num_train_timesteps


class HeldOutLatents(HeldOut):
    """The same examination, on latents that are there already, at times from the checkpoint's table."""

    def __init__(self, x: Tensor, captions: list[str], tuner: Tuner) -> None:
        self.objective = tuner.objective
        middles = (torch.arange(LEVELS, dtype=torch.float32) + 0.5) / LEVELS
        self.times = entry(middles, tuner.base).to(tuner.device)
        self.rows = max(1, min(SHARE, PIXELS // math.prod(tuner.plan.size)))
        self.x, self.ids = x.to(tuner.device), tuner.base.tokenizer.encode(captions).to(tuner.device)


@dataclass
class Tuning(Course):
    """A course on captioned pictures for adapters of the base. said: for the file's metadata."""

    file: ClassVar[str] = FILE
    plan: LoraPlan
    base: Foreign
    corpus: Corpus
    latents: CachedLatents
    said: dict[str, str]

    def learns(self) -> Tuner:
        return Tuner(self.plan, self.base)

    @property
    def tuner(self) -> Tuner:
        assert isinstance(self.learner, Tuner)
        return self.learner

    def data(self, done: int) -> Iterator[LatentBatch]:
        plan = self.plan
        return batches(self.latents.training, self.corpus.training, plan.batch, seed=plan.seed, start=done * plan.batch)

    def _unseen(self) -> tuple[Tensor, list[str]]:
        """Latents and captions to be judged by: held out, if there are some."""
        held = len(self.corpus.heldout) > 0
        x, split = (
            (self.latents.heldout, self.corpus.heldout) if held else (self.latents.training, self.corpus.training)
        )
        return x[:HELD_OUT], split.captions(range(min(HELD_OUT, len(split))))

    def judge(self) -> Judge:
        tuner = self.tuner
        held = HeldOutLatents(*self._unseen(), tuner)
        return lambda model: held(model.denoiser, model.text_encoder, lambda given: _told(model, given, tuner.plan.size))

    @torch.no_grad()
    def model(self, tensors: list[Tensor], precision: str = "float32", weights: str = "") -> Model:
        """The base itself, its adapters made those: there is no second one."""
        for parameter, tensor in zip(self.learner.parameters(), tensors, strict=True):
            parameter.copy_(tensor)
        return self.base

    def write(self, model: Model) -> None:
        lora_file.write(self.tuner.weights, self.base, self.run / self.file, self.plan.layout, self.said)

    def asks(self) -> list[Request]:
        prompts = list(dict.fromkeys(self._unseen()[1]))[:PROMPTS]
        common = {"steps": STEPS, "size": self.plan.size, "scale": self.plan.scale}
        return [Request(escape(prompt), seed=i, **common) for i, prompt in enumerate(prompts)]  # type: ignore[arg-type]


def _told(model: Model, given: Conditioning, size: tuple[int, int]) -> Conditioning:
    return model.add_conditioning(given, positive=True, guidance_scale=1.0, size=size)


def hired(base: Foreign, plan: LoraPlan) -> Foreign:
    """The base on the plan's device, in the precision of the work; it stays so. Its autoencoder keeps its own."""
    base.to(plan.device)
    assert not any(live(part) for part in base.modules().values())
    for part in (base.network, base.text_encoder):
        part.to(DTYPES[plan.precision]).requires_grad_(False)
    return base
