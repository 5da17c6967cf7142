"""The loss of a LoRA: a Stable Diffusion stays as it is, and low-rank adapters beside its layers are trained."""

from typing import cast

import torch
from torch import Tensor

from unspeckle.denoiser import Conditioning
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.networks.lora import AdapterSet, init_adapters
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import DiscreteSchedule
from unspeckle.training.cached_latents import LatentBatch
from unspeckle.training.master_weights import MasterWeights
from unspeckle.training.plan import LoraPlan
from unspeckle.training.updater import Updater

# Purpose of an ExampleRNG
_NOISE = 1


class LoraUpdater(Updater):
    """Updates adapters, which compute in float32 whatever the precision of the base model is.

    Attributes: base_model, which the adapters are attached to; modules, its parts that have adapters.
    """

    plan: LoraPlan

    def __init__(self, plan: LoraPlan, base_model: StableDiffusionModel) -> None:
        modules = {"network": base_model.network}
        if plan.lora.train_text_encoder:
            modules["text"] = base_model.text_encoder
        adapters = init_adapters(modules, plan.lora.rank, plan.work.seed)
        in_float16 = plan.compute.precision == "float16"
        super().__init__(plan, MasterWeights(adapters, plan.compute.device, "float32", scales_loss=in_float16))
        adapters.attach(modules)
        self.base_model, self.modules = base_model, modules

    @property
    def adapters(self) -> AdapterSet:
        return cast(AdapterSet, self.weights.module)

    def detach_adapters(self) -> None:
        """Remove the adapters from the base model."""
        self.adapters.detach(self.modules)

    def condition_on(self, ids: Tensor) -> Conditioning:
        """The conditioning of captions, ids (B, encoders, L), with all that the network takes as an input."""
        with torch.set_grad_enabled(self.plan.lora.train_text_encoder and torch.is_grad_enabled()):
            conditioning: Conditioning = self.base_model.text_encoder(ids)
        size = self.plan.model.size
        return self.base_model.add_conditioning(conditioning, positive=True, guidance_scale=1.0, size=size)

    def loss(self, batch: LatentBatch, step: int) -> Tensor:
        """The mean loss () of a batch, each example's caption dropped or not."""
        objective, denoiser = self.plan.objective, self.base_model.denoiser
        rng = ExampleRNG(self.plan.work.seed, batch.indices.to(self.device))
        *caption_ids, empty_ids = self.base_model.tokenizer.encode([*batch.captions, ""]).to(self.device)
        ids = torch.where(objective.dropped_captions(rng)[:, None, None], empty_ids, torch.stack(caption_ids))
        x = batch.x.to(self.device)
        t = round_up_to_table(objective.sample_times(rng, denoiser.schedule), self.base_model)
        eps = rng.normal(_NOISE, x.shape[1:])
        return objective.loss_at(denoiser, x, self.condition_on(ids), t, eps).mean()


def round_up_to_table(t: Tensor, base_model: StableDiffusionModel) -> Tensor:
    """Times (B,) in (0, 1] moved up to the next entry of the base model's table: it was trained at no others."""
    schedule = base_model.denoiser.schedule
    assert isinstance(schedule, DiscreteSchedule)
    return (t * schedule.num_train_timesteps).ceil().clamp(min=1) / schedule.num_train_timesteps
