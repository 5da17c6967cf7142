"""One training step: float32 weights, a copy of them in which the work is done, and the optimiser between."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.corpus import Batch
from unspeckle.denoiser import Conditioning, Network
from unspeckle.networks import build
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.rng import ExampleRNG
from unspeckle.text.text_encoder import TextEncoder
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.optimizer import Optimizer, clipped
from unspeckle.training.plan import Plan

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Weights(nn.Module):
    """The two parts that learn, as one module: network.* and text.*"""

    network: nn.Module
    text: nn.Module

    def __init__(self, network: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.network, self.text = network, text


def fresh(plan: Plan) -> Weights:
    """Untrained weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return Weights(build(plan.network), TextEncoder(plan.text))


class Outcome(NamedTuple):
    """Of one step: mean loss, the gradient's norm before clipping, and whether the weights moved; of a device that
    works apart, they stay tensors until somebody reads them."""

    loss: float | Tensor
    norm: float | Tensor
    moved: bool | Tensor


class Told(NamedTuple):
    """The same in plain numbers."""

    loss: float
    norm: float
    moved: bool


def read(outcomes: Sequence[Outcome]) -> list[Told]:
    """Outcomes of one learner, by one look at its device, which waits until they are known."""
    if not all(isinstance(outcome.moved, Tensor) for outcome in outcomes):
        return [Told(float(loss), float(norm), bool(moved)) for loss, norm, moved in outcomes]
    numbers = torch.stack([torch.stack([torch.as_tensor(part).double() for part in one]) for one in outcomes]).tolist()
    return [Told(loss, norm, bool(moved)) for loss, norm, moved in numbers]


@torch.no_grad()
def pictures_in(batch: Batch, autoencoder: Autoencoder, device: torch.device) -> Tensor:
    """x (B, C, H, W) of a batch's bytes, or of its latents where they are kept."""
    pictures = batch.pictures.to(device, non_blocking=True)
    return pictures if pictures.is_floating_point() else autoencoder.encode(pictures.float() / 127.5 - 1)


def of_rows(given: Conditioning, rows: Tensor) -> Conditioning:
    """What belongs to pictures whose captions are these rows (B,) of it."""
    vector, beside = (None if part is None else spread(part, rows) for part in (given.vector, given.concat))
    mask = None if given.mask is None else given.mask[rows]
    return given._replace(tokens=spread(given.tokens, rows), mask=mask, vector=vector, beside=beside)


def spread(part: Tensor, rows: Tensor) -> Tensor:
    """part[rows], (N, …) to (B, …). Its gradient is summed in float32 and always in the same order, which that of
    indexing is not."""
    taken = F.embedding(rows, part.float().flatten(1))
    return taken.to(part.dtype).view(len(rows), *part.shape[1:])


class Masters(ABC):
    """weights: a module's float32 masters. working: the copy that computes, in the plan's precision; the same module in
    float32. Between the two stands the optimiser."""

    def __init__(self, plan: Plan, weights: nn.Module) -> None:
        self.plan, self.device = plan, torch.device(plan.device)
        self.weights = weights.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.weights.train().requires_grad_(True)
        self.working = self.worker()
        self.optimizer = Optimizer(self.weights, plan)

    def worker(self) -> nn.Module:
        """Who computes."""
        weights: nn.Module = self.weights
        same = self.plan.precision == "float32"
        return weights if same else copy.deepcopy(weights).to(DTYPES[self.plan.precision])

    @property
    def apart(self) -> bool:
        """Whether the device works apart from the processor, which then asks it only now and then how a step went."""
        return self.device.type == "cuda"

    def parameters(self) -> list[nn.Parameter]:
        return list(self.weights.parameters())

    def tensors(self) -> list[Tensor]:
        """The masters, in the order of parameters(), as plain tensors."""
        return [p.detach() for p in self.parameters()]

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return zip(self.weights.parameters(), self.working.parameters(), strict=True)

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the working copy up to the masters."""
        if self.working is not self.weights:
            for master, worker in self._pairs():
                worker.copy_(master)

    @abstractmethod
    def step(self, batch: Any, step: int) -> Outcome:
        """Learn from a batch as step 1…plan.steps."""

    def descend(self, loss: Tensor, step: int) -> Outcome:
        """Move the weights by the loss as step 1…plan.steps; not at all where loss or gradient is not finite."""
        loss.backward()  # type: ignore[no-untyped-call]
        if self.working is not self.weights:
            for master, worker in self._pairs():
                master.grad = None if worker.grad is None else worker.grad.float()
                worker.grad = None
        found = clipped(self.parameters(), self.plan.clip)
        if self.apart:
            finite = found.isfinite() & loss.detach().isfinite()
            self.optimizer.step(step, finite)
            self.refresh()
            return Outcome(loss.detach(), found, finite)
        norm, value = float(found), float(loss.detach())
        moved = math.isfinite(norm) and math.isfinite(value)
        if moved:
            self.optimizer.step(step)
            self.refresh()
        else:
            self.optimizer.forget()
        return Outcome(value, norm, moved)


class Learner(Masters):
    """Of the network that denoises and its words."""

    weights: Weights
    working: Weights

    def __init__(self, plan: Plan, weights: Weights, tokenizer: Tokenizer, autoencoder: Autoencoder) -> None:
        super().__init__(plan, weights)
        self.tokenizer, self.autoencoder = tokenizer, autoencoder.to(self.device)
        self.encoder = self.autoencoder.at(DTYPES[plan.precision])
        network = cast(Network, self.working.network)
        self.denoiser = plan.denoiser(network)
        self.objective = plan.objective()
        if plan.compile:
            whole: Any = self.working.network
            whole.compiled_trunk = torch.compile(whole.trunk, dynamic=False)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Mean loss of a batch, captions dropped example by example: of the network, but for the first steps, and of
        its draft. What follows from words alone is worked out once for each different caption."""
        stream = ExampleRNG(self.plan.seed, batch.indices.to(self.device))
        captions = list(dict.fromkeys(["", *batch.captions]))
        place = {caption: row for row, caption in enumerate(captions)}
        rows = torch.tensor([place[caption] for caption in batch.captions], device=self.device)
        rows = torch.where(self.objective.dropped_captions(stream), 0, rows)
        given = self.working.text(self.tokenizer.encode(captions).to(self.device))
        x = pictures_in(batch, self.encoder, self.device)
        draft = getattr(self.working.network, "draft", None)
        if draft is not None and step <= self.plan.word_steps:
            return cast(Tensor, draft.loss(spread(draft(given), rows), x).mean())
        given = of_rows(self.denoiser.prepare(given), rows)
        loss = self.objective(self.denoiser, x, given, stream)
        return cast(Tensor, (loss if draft is None else loss + draft.loss(given.concat, x)).mean())

    def step(self, batch: Batch, step: int) -> Outcome:
        """Learn from a batch as step 1…plan.steps."""
        return self.descend(self.loss(batch, step), step)
