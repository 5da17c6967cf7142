"""A Stable Diffusion checkpoint as a Model: its own parts, with the conventions of the programs that it was made
for."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from unspeckle.denoiser import Denoiser, Network, SomeConditioning, with_fields
from unspeckle.errors import InputError
from unspeckle.formats.checkpoint_parts import CheckpointPart
from unspeckle.formats.stable_diffusion.checkpoint import NetworkInputs, SchedulerDefaults, StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.network_inputs import guidance_scale_embedding, size_embedding
from unspeckle.formats.stable_diffusion.noise import torch_generator_noise
from unspeckle.formats.stable_diffusion.scheduler_timesteps import SCHEDULER_SPACINGS, build_scheduler_timesteps
from unspeckle.formats.stable_diffusion.weights_hash import hash_weights
from unspeckle.formats.weight_dtypes import to_float32
from unspeckle.model import Model, ModelCard, SamplingSetup
from unspeckle.networks.autoencoder import Autoencoder, run_without_overflow
from unspeckle.networks.lora import find_attached_adapters
from unspeckle.quantization.precision import set_precision
from unspeckle.rng import NoiseFunction
from unspeckle.schedule import DiscreteSchedule
from unspeckle.text.clip import CLIPSkipEncoder, CLIPTextEncoder, CLIPTextEncoders

# The family of schedulers whose timesteps a sampler takes, for those that have a counterpart in diffusers
_SCHEDULER_FAMILIES = {
    "ddim": "ddim",
    "plms": "ddim",
    "ddpm": "ddim",
    "euler": "euler",
    "euler_ancestral": "euler",
    "heun": "euler",
    "lms": "euler",
    "dpmpp_sde": "euler",
    "dpmpp_2m": "dpm",
    "dpmpp_2m_sde": "dpm",
    "unipc": "dpm",
    "lcm": "lcm",
}
_DEFAULT_SCHEDULER_FAMILY = "euler"
_DEFAULT_STEPS = {"lcm": 4, "dpmpp_2m": 25, "dpmpp_2m_sde": 25, "unipc": 25, "heun": 20}
AESTHETIC_SCORES = (6.0, 2.5)  # those that SDXL's refiner is given for the positive and the negative prediction


@dataclass
class StableDiffusionModel(Model):
    """A Model that was read from a checkpoint of another program."""

    # how it is meant to be sampled
    scheduler_defaults: SchedulerDefaults = field(default_factory=SchedulerDefaults)
    # what its network takes besides x, the time and the text tokens
    network_inputs: NetworkInputs = field(default_factory=NetworkInputs)
    # what its parts are called in files of other programs
    parts: Mapping[str, CheckpointPart] = field(default_factory=dict)

    def noise(self, seeds: Sequence[int], shape: Sequence[int]) -> NoiseFunction:
        return torch_generator_noise(seeds, shape, self.device)

    def default_timestep_spacing(self, sampler: str) -> str:
        if self.scheduler_defaults.use_karras_sigmas and _scheduler_family(sampler) in ("euler", "dpm"):
            return "karras"
        return self._scheduler_spacing(sampler)

    def _scheduler_spacing(self, sampler: str) -> str:
        """The spacing of training timesteps where a request names none."""
        usual = "leading" if _scheduler_family(sampler) in ("ddim", "lcm") else "linspace"
        return self.scheduler_defaults.timestep_spacing or usual

    def sampling_setup(self, sampler: str, timestep_spacing: str, steps: int) -> SamplingSetup:
        family, defaults = _scheduler_family(sampler), self.scheduler_defaults
        use_karras_sigmas = timestep_spacing == "karras" and family in ("euler", "dpm")
        is_scheduler_spacing = use_karras_sigmas or timestep_spacing in SCHEDULER_SPACINGS
        if defaults.time_conditioning != "index" or not is_scheduler_spacing:
            # no scheduler's timesteps: any times, also between training timesteps
            return super().sampling_setup(sampler, timestep_spacing, steps)
        end_at = defaults.end_at or ("first" if sampler == "plms" else "zero")
        schedule = cast(DiscreteSchedule, defaults.schedule)
        timesteps = build_scheduler_timesteps(
            family,
            schedule,
            steps,
            self._scheduler_spacing(sampler) if use_karras_sigmas else timestep_spacing,
            steps_offset=defaults.steps_offset,
            use_karras_sigmas=use_karras_sigmas,
            end_at=end_at if sampler in ("ddim", "plms") else "zero",
        )
        network = self.denoiser.network
        denoiser = Denoiser(network, schedule, self.denoiser.prediction, timesteps.c_noise)
        return SamplingSetup(timesteps.times, timesteps.init_noise_sigma, denoiser)

    def add_conditioning(
        self, conditioning: SomeConditioning, positive: bool, guidance_scale: float, size: tuple[int, int]
    ) -> SomeConditioning:
        """The conditioning with what else the network takes: embeddings of the image's size and of the guidance scale,
        and for inpainting models the mask and the latents of an image to be painted from nothing."""
        inputs, batch_size = self.network_inputs, len(conditioning[0])
        vectors = [] if conditioning.vector is None else [conditioning.vector]
        if inputs.size_embedding_width:
            score = AESTHETIC_SCORES[0 if positive else 1]
            embedding = size_embedding(size, inputs.size_embedding_width, score)
            vectors.append(embedding.to(conditioning[0]).expand(batch_size, -1))
        if inputs.guidance_embedding_width:
            embedding = guidance_scale_embedding(guidance_scale, inputs.guidance_embedding_width)
            vectors.append(embedding.to(conditioning[0]).expand(batch_size, -1))
        conditioning = with_fields(conditioning, vector=torch.cat(vectors, 1) if vectors else None)
        if inputs.concat_channels and conditioning.concat is None:
            blank = self._blank_inpainting_latents(size).expand(batch_size, -1, -1, -1)
            conditioning = with_fields(conditioning, concat=blank)
        return conditioning

    @property
    def takes_mask(self) -> bool:
        return self.network_inputs.concat_channels > 0

    def with_clip_skip(self, clip_skip: int) -> Model:
        if clip_skip == 1:
            return self
        if not isinstance(self.text_encoder, CLIPTextEncoders):
            return super().with_clip_skip(clip_skip)
        max_layers = min(encoder.layers - encoder.skipped_layers for encoder in self.text_encoder.config.encoders)
        if clip_skip > max_layers:
            raise InputError(f" {clip_skip}: this text encoder has {max_layers} layers; choose fewer", "clip_skip")
        return replace(self, text_encoder=CLIPSkipEncoder(self.text_encoder, clip_skip - 1))

    def cfg_scale(self, guidance_scale: float) -> float:
        return 1.0 if self.network_inputs.guidance_embedding_width else guidance_scale

    def _blank_inpainting_latents(self, size: tuple[int, int]) -> Tensor:
        """(1, 1 + C, h, w): what an inpainting network takes where nothing is kept: a mask of ones, and a gray
        image."""
        gray = torch.zeros(1, 3, size[1], size[0], device=self.device)
        with torch.no_grad():
            latents = run_without_overflow(self.autoencoder, self.autoencoder.encode, gray)
        return torch.cat([torch.ones_like(latents[:, :1]), latents], 1)

    def require_float32(self, option: str) -> "StableDiffusionModel":
        """The model itself. InputError, naming what the option was to add, where its weights were made ready to draw in
        a lower precision, after which they cannot be changed."""
        if self.precision != "float32":
            raise InputError(
                f"{option}: must be added before the precision is lowered; load {self.card.name!r} in float32, add it, "
                f"then call set_precision(model, {self.precision!r})"
            )
        return self

    @property
    def hash(self) -> str:
        strengths = [
            adapter.strength * adapter.scale
            for module in self.modules().values()
            for adapter in find_attached_adapters(module)
        ]
        if not strengths:
            return self.weights_hash
        return hashlib.sha256(f"{self.weights_hash}{strengths}".encode()).hexdigest()[:12]

    @property
    def weights_hash(self) -> str:
        return self._weights_digest if self.stored_hash is None else self.stored_hash

    @cached_property
    def _weights_digest(self) -> str:
        """The hash of configurations and weights, computed once."""
        configs = [
            self.denoiser.prediction,
            self.scheduler_defaults.schedule,
            self.network.config,
            self.text_encoder.config,
            self.autoencoder.config,
        ]
        return hash_weights(configs, self.modules())

    def invalidate_hash(self) -> "StableDiffusionModel":
        """The model itself, its cached hash dropped: to be called by whoever changed its weights or attached adapters.
        The hash of a model in a lower precision stays, as its weights cannot be changed."""
        self.__dict__.pop("_weights_digest", None)
        self.stored_hash = None if self.precision == "float32" else self.stored_hash
        return self


def build_stable_diffusion_model(
    checkpoint: StableDiffusionCheckpoint, device: str | torch.device = "cpu", precision: str = "float32"
) -> StableDiffusionModel:
    """The checkpoint as a Model on the device, to draw in that precision, a name of PRECISIONS. In a lower one, no
    weight is ever in memory in float32."""
    modules = checkpoint.build_modules()
    for name, module in modules.items():
        tensors = checkpoint.part_tensors(name)
        if precision == "float32":
            tensors = {key: to_float32(tensor) for key, tensor in tensors.items()}
        module.load_state_dict(tensors, assign=True)
        module.eval().requires_grad_(False)
    for encoder in modules["text"].modules():
        if isinstance(encoder, CLIPTextEncoder):
            encoder.casts_on_use = precision != "float32"
    defaults = checkpoint.scheduler_defaults
    model = StableDiffusionModel(
        denoiser=Denoiser(
            cast(Network, modules["network"]), defaults.schedule, defaults.prediction, defaults.time_conditioning
        ),
        tokenizer=checkpoint.tokenizer,
        text_encoder=modules["text"],
        autoencoder=cast(Autoencoder, modules["autoencoder"]),
        card=_default_card(checkpoint),
        scheduler_defaults=defaults,
        network_inputs=checkpoint.network_inputs,
        parts=checkpoint.parts,
    )
    model.to(device)
    set_precision(model, precision)
    return model


def _scheduler_family(sampler: str) -> str:
    return _SCHEDULER_FAMILIES.get(sampler, _DEFAULT_SCHEDULER_FAMILY)


def _default_card(checkpoint: StableDiffusionCheckpoint) -> ModelCard:
    """The card of a checkpoint, which has none."""
    defaults = checkpoint.scheduler_defaults
    steps, guidance_scale = _DEFAULT_STEPS.get(defaults.sampler, 30), checkpoint.family.guidance_scale
    if defaults.sampler == "lcm":
        guidance_scale = 8.5
    if defaults.is_turbo:
        steps, guidance_scale = 4, 1.0
    return ModelCard(
        name=checkpoint.path.stem,
        sampler=defaults.sampler,
        steps=steps,
        guidance_scale=guidance_scale,
        size=(defaults.image_size, defaults.image_size),
        clamp_denoised=False,
    )
