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
from unspeckle.denoiser import Network, SomeConditioning, map_fields
from unspeckle.kernels.attention import use_attention_kernel
from unspeckle.networks import build_network
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.rng import ExampleRNG
from unspeckle.text.text_encoder import TextEncoder
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.optimizer import Optimizer, clip_grad_norm
from unspeckle.training.plan import Plan

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class TrainableModules(nn.Module):
    """The two parts that learn, as one module: network.* and text.*"""

    network: nn.Module
    text_encoder: nn.Module

    def __init__(self, network: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.network, self.text_encoder = network, text_encoder


def init_modules(plan: Plan) -> TrainableModules:
    """Untrained weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return TrainableModules(build_network(plan.network_config), TextEncoder(plan.text_config))


class StepStats(NamedTuple):
    """Of one step: mean loss, the gradient's norm before clipping, and whether the weights moved; of a device that
    works apart, they stay tensors until somebody reads them."""

    loss: float | Tensor
    grad_norm: float | Tensor
    is_updated: bool | Tensor


class StepNumbers(NamedTuple):
    """The same in plain numbers."""

    loss: float
    grad_norm: float
    is_updated: bool


def read_step_stats(stats: Sequence[StepStats]) -> list[StepNumbers]:
    """Outcomes of one learner, by one look at its device, which waits until they are known."""
    if not all(isinstance(step_stats.is_updated, Tensor) for step_stats in stats):
        return [StepNumbers(float(loss), float(grad_norm), bool(is_updated)) for loss, grad_norm, is_updated in stats]
    values = torch.stack(
        [torch.stack([torch.as_tensor(number).double() for number in step_stats]) for step_stats in stats]
    ).tolist()
    return [StepNumbers(loss, grad_norm, bool(is_updated)) for loss, grad_norm, is_updated in values]


@torch.no_grad()
def encode_images(batch: Batch, autoencoder: Autoencoder, device: torch.device) -> Tensor:
    """x (B, C, H, W) of a batch's bytes, or of its latents where they are kept."""
    images = batch.images.to(device, non_blocking=True)
    return images if images.is_floating_point() else autoencoder.encode(images.float() / 127.5 - 1)


def gather_conditioning(conditioning: SomeConditioning, indices: Tensor) -> SomeConditioning:
    """The conditioning of images whose captions are the rows indices (B,) of this one."""

    def gather(field: Tensor) -> Tensor:
        return gather_rows(field, indices) if field.is_floating_point() else field[indices]

    return map_fields(conditioning, gather)


def gather_rows(tensor: Tensor, indices: Tensor) -> Tensor:
    """part[rows], (N, …) to (B, …). Its gradient is summed in float32 and always in the same order, which that of
    indexing is not."""
    gathered = F.embedding(indices, tensor.float().flatten(1))
    return gathered.to(tensor.dtype).view(len(indices), *tensor.shape[1:])


class MasterWeights(ABC):
    """weights: a module's float32 masters. working: the copy that computes, in the plan's precision; the same module in
    float32. Between the two stands the optimiser."""

    def __init__(self, plan: Plan, weights: nn.Module) -> None:
        self.plan, self.device = plan, torch.device(plan.device)
        self.weights = weights.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.weights.train().requires_grad_(True)
        self.compute_module = self.create_compute_module()
        self.optimizer = Optimizer(self.weights, plan)

    def create_compute_module(self) -> nn.Module:
        """Who computes."""
        weights: nn.Module = self.weights
        is_float32 = self.plan.precision == "float32"
        if is_float32:
            return weights
        compute_module = copy.deepcopy(weights).to(DTYPES[self.plan.precision])
        use_attention_kernel(compute_module)  # for validation, which has no gradients
        return compute_module

    @property
    def is_asynchronous(self) -> bool:
        """Whether the device works apart from the processor, which then asks it only now and then how a step went."""
        return self.device.type == "cuda"

    def parameters(self) -> list[nn.Parameter]:
        return list(self.weights.parameters())

    def weight_tensors(self) -> list[Tensor]:
        """The masters, in the order of parameters(), as plain tensors."""
        return [p.detach() for p in self.parameters()]

    def _parameter_pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return zip(self.weights.parameters(), self.compute_module.parameters(), strict=True)

    @torch.no_grad()
    def refresh_compute_module(self) -> None:
        """Bring the working copy up to the masters."""
        if self.compute_module is not self.weights:
            for master, compute in self._parameter_pairs():
                compute.copy_(master)

    @abstractmethod
    def step(self, batch: Any, step: int) -> StepStats:
        """Learn from a batch as step 1…plan.steps."""

    def backward_and_update(self, loss: Tensor, step: int) -> StepStats:
        """Move the weights by the loss as step 1…plan.steps; not at all where loss or gradient is not finite."""
        loss.backward()  # type: ignore[no-untyped-call]
        if self.compute_module is not self.weights:
            for master, compute in self._parameter_pairs():
                master.grad = None if compute.grad is None else compute.grad.float()
                compute.grad = None
        grad_norm = clip_grad_norm(self.parameters(), self.plan.max_grad_norm)
        if self.is_asynchronous:
            is_finite = grad_norm.isfinite() & loss.detach().isfinite()
            self.optimizer.step(step, is_finite)
            self.refresh_compute_module()
            return StepStats(loss.detach(), grad_norm, is_finite)
        norm_value, loss_value = float(grad_norm), float(loss.detach())
        is_updated = math.isfinite(norm_value) and math.isfinite(loss_value)
        if is_updated:
            self.optimizer.step(step)
            self.refresh_compute_module()
        else:
            self.optimizer.zero_grad()
        return StepStats(loss_value, norm_value, is_updated)


def compile_trunk(network: Any) -> None:
    """Let a UNet or Transformer run its trunk compiled by torch.compile.

    Its embeddings are left out: the last biases of the time's and the vector's have the same gradient, for which
    inductor (torch 2.13) writes one bfloat16 reduction into C++ twice under one name, which does not compile."""
    network.trunk = torch.compile(network.trunk, dynamic=False)


class TextToImageUpdater(MasterWeights):
    """Of the network that denoises and its words."""

    weights: TrainableModules
    compute_module: TrainableModules

    def __init__(self, plan: Plan, weights: TrainableModules, tokenizer: Tokenizer, autoencoder: Autoencoder) -> None:
        super().__init__(plan, weights)
        self.tokenizer, self.autoencoder = tokenizer, autoencoder.to(self.device)
        self.autoencoder_in_precision = self.autoencoder.with_dtype(DTYPES[plan.precision])
        network = cast(Network, self.compute_module.network)
        self.denoiser = plan.build_denoiser(network)
        self.objective = plan.build_objective()
        if plan.compile:
            compile_trunk(self.compute_module.network)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Mean loss of a batch, captions dropped example by example: of the network, but for the first steps, and of
        its draft. What follows from words alone is worked out once for each different caption."""
        rng = ExampleRNG(self.plan.seed, batch.example_indices.to(self.device))
        captions = list(dict.fromkeys(["", *batch.captions]))
        caption_index = {caption: index for index, caption in enumerate(captions)}
        indices = torch.tensor([caption_index[caption] for caption in batch.captions], device=self.device)
        indices = torch.where(self.objective.dropped_captions(rng), 0, indices)
        conditioning = self.compute_module.text_encoder(self.tokenizer.encode(captions).to(self.device))
        x = encode_images(batch, self.autoencoder_in_precision, self.device)
        coarse_predictor = getattr(self.compute_module.network, "coarse_predictor", None)
        if coarse_predictor is not None and step <= self.plan.text_steps:
            return cast(Tensor, coarse_predictor.loss(gather_rows(coarse_predictor(conditioning), indices), x).mean())
        conditioning = gather_conditioning(self.denoiser.prepare(conditioning), indices)
        loss = self.objective(self.denoiser, x, conditioning, rng)
        return cast(
            Tensor,
            (loss if coarse_predictor is None else loss + coarse_predictor.loss(conditioning.coarse_image, x)).mean(),
        )

    def step(self, batch: Batch, step: int) -> StepStats:
        """Learn from a batch as step 1…plan.steps."""
        return self.backward_and_update(self.loss(batch, step), step)
