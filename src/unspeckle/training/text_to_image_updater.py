"""The loss of a model that is trained on captioned images: of the network that denoises, and of its text encoder."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.corpus.batches import Batch
from unspeckle.denoiser import Network, PreparedConditioning, SomeConditioning, map_fields
from unspeckle.networks import build_network
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.coarse_predictor import CoarseImagePredictor
from unspeckle.rng import ExampleRNG
from unspeckle.text.text_encoder import TextEncoder, TextEncoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.master_weights import DTYPES, MasterWeights
from unspeckle.training.plan import Plan
from unspeckle.training.updater import Updater


class TrainableModules(nn.Module):
    """The two parts that are trained, as one module: network.* and text_encoder.*"""

    network: nn.Module
    text_encoder: nn.Module

    def __init__(self, network: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.network, self.text_encoder = network, text_encoder


def init_modules(plan: Plan) -> TrainableModules:
    """The plan's network and text encoder with random weights, the same for the same seed."""
    assert isinstance(plan.model.text_encoder, TextEncoderConfig)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.work.seed)
        return TrainableModules(build_network(plan.model.network), TextEncoder(plan.model.text_encoder))


def compile_trunk(network: Any) -> None:
    """Let a UNet or Transformer run its trunk compiled by torch.compile.

    Its embeddings are left out: the last biases of the time's and the vector's have the same gradient, for which
    inductor (torch 2.13) writes one bfloat16 reduction into C++ twice under one name, which does not compile."""
    network.trunk = torch.compile(network.trunk, dynamic=False)


class TextToImageUpdater(Updater):
    """Updates a network that denoises, and its text encoder."""

    def __init__(self, plan: Plan, modules: TrainableModules, tokenizer: Tokenizer, autoencoder: Autoencoder) -> None:
        super().__init__(plan, MasterWeights.for_plan(modules, plan.compute))
        self.tokenizer, self.autoencoder = tokenizer, autoencoder.to(self.device)
        self.autoencoder_in_precision = self.autoencoder.with_dtype(DTYPES[plan.compute.precision])
        network: Any = self.compute_modules.network
        self.denoiser = plan.model.build_denoiser(cast(Network, network))
        self.objective = plan.objective
        if plan.compute.compile:
            compile_trunk(network)

    @property
    def compute_modules(self) -> TrainableModules:
        """The modules that compute, in the precision of the plan."""
        return cast(TrainableModules, self.weights.compute_module)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """The mean loss () of a batch, each example's caption dropped or not: in the first steps of the coarse image
        predictor alone, then of the network and the coarse image predictor. What depends on captions alone is computed
        once for each different caption."""
        rng = ExampleRNG(self.plan.work.seed, batch.example_indices.to(self.device))
        captions = list(dict.fromkeys(["", *batch.captions]))
        caption_index = {caption: index for index, caption in enumerate(captions)}
        indices = torch.tensor([caption_index[caption] for caption in batch.captions], device=self.device)
        indices = torch.where(self.objective.dropped_captions(rng), 0, indices)
        conditioning = self.compute_modules.text_encoder(self.tokenizer.encode_wordings(captions).to(self.device))
        x = encode_images(batch, self.autoencoder_in_precision, self.device)
        predictor: CoarseImagePredictor | None = getattr(self.compute_modules.network, "coarse_predictor", None)
        if predictor is not None and step <= self.plan.work.text_steps:
            return predictor.loss(gather_rows(predictor(conditioning), indices), x).mean()
        prepared = gather_conditioning(self.denoiser.prepare(conditioning), indices)
        prepared = self.complete_conditioning(prepared, batch, rng)
        loss = self.objective(self.denoiser, x, prepared, rng)
        if predictor is not None:
            assert prepared.coarse_image is not None
            loss = loss + predictor.loss(prepared.coarse_image, x)
        return loss.mean()

    def complete_conditioning(
        self, conditioning: PreparedConditioning, batch: Batch, rng: ExampleRNG
    ) -> PreparedConditioning:
        """The conditioning of the captions with what else the network takes: nothing here."""
        return conditioning


@torch.no_grad()
def encode_images(batch: Batch, autoencoder: Autoencoder, device: torch.device) -> Tensor:
    """x (B, C, H, W) of a batch's images, uint8; of a batch that holds latents, these."""
    images = batch.images.to(device, non_blocking=True)
    return images if images.is_floating_point() else autoencoder.encode(images.float() / 127.5 - 1)


def gather_conditioning(conditioning: SomeConditioning, indices: Tensor) -> SomeConditioning:
    """The conditioning of images whose captions are the rows indices (B,) of this one."""

    def gather(field: Tensor) -> Tensor:
        return gather_rows(field, indices) if field.is_floating_point() else field[indices]

    return map_fields(conditioning, gather)


def gather_rows(tensor: Tensor, indices: Tensor) -> Tensor:
    """tensor[indices], (N, …) to (B, …). Its gradient is summed in float32 and always in the same order, which that of
    indexing is not."""
    gathered = F.embedding(indices, tensor.float().flatten(1))
    return gathered.to(tensor.dtype).view(len(indices), *tensor.shape[1:])
