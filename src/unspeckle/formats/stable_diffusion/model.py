"""A Stable Diffusion checkpoint as a Model: its own parts, with the conventions of the programs that it was made
for."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.denoiser import Denoiser, Network, SomeConditioning, with_fields
from unspeckle.errors import InputError
from unspeckle.formats.checkpoint_parts import CheckpointPart
from unspeckle.formats.stable_diffusion.checkpoint import NetworkInputs, SchedulerDefaults, StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.noise import torch_generator_noise
from unspeckle.formats.stable_diffusion.scheduler_timesteps import SCHEDULER_SPACINGS, build_scheduler_timesteps
from unspeckle.model import Model, ModelCard, SamplingSetup
from unspeckle.model_io.precision import set_precision
from unspeckle.model_io.weight_dtypes import to_float32
from unspeckle.networks.autoencoder import Autoencoder, run_without_overflow
from unspeckle.networks.layers import sinusoidal_embedding
from unspeckle.networks.lora import find_attached_adapters
from unspeckle.old_names import old_repr, rename_tensor
from unspeckle.rng import Noise
from unspeckle.schedule import DiscreteSchedule
from unspeckle.text.clip import CLIPSkipEncoder, CLIPTextEncoder, CLIPTextEncoders

# The family of schedulers whose timesteps a sampler takes
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

    def noise(self, seeds: Sequence[int], shape: Sequence[int]) -> Noise:
        return torch_generator_noise(seeds, shape, self.device)

    def default_timestep_spacing(self, sampler: str) -> str:
        if self.scheduler_defaults.use_karras_sigmas and _SCHEDULER_FAMILIES[sampler] in ("euler", "dpm"):
            return "karras"
        return self._scheduler_spacing(sampler)

    def _scheduler_spacing(self, sampler: str) -> str:
        """The spacing of training timesteps where a request names none."""
        usual = "leading" if _SCHEDULER_FAMILIES[sampler] in ("ddim", "lcm") else "linspace"
        return self.scheduler_defaults.timestep_spacing or usual

    def sampling_setup(self, sampler: str, timestep_spacing: str, steps: int) -> SamplingSetup:
        family, defaults = _SCHEDULER_FAMILIES[sampler], self.scheduler_defaults
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
        """The hash, by the names that version 0.1 had: of sums over 64 interleaved parts of each tensor's bits, which
        takes a second for some gigabytes."""
        digest = hashlib.sha256(
            old_repr(
                [
                    self.denoiser.prediction,
                    self.scheduler_defaults.schedule,
                    self.network.config,
                    self.text_encoder.config,
                    self.autoencoder.config,
                ]
            ).encode()
        )
        old_tensors = {
            f"{part}.{rename_tensor(part, name, to_old=True)}": tensor
            for part, module in self.modules().items()
            for name, tensor in module.state_dict().items()
        }
        for name, tensor in sorted(old_tensors.items()):
            digest.update(f"{name}{tuple(tensor.shape)}{interleaved_bit_sums(tensor.detach().float())}".encode())
        return digest.hexdigest()[:12]

    def invalidate_hash(self) -> "StableDiffusionModel":
        """The model itself, its cached hash dropped: to be called by whoever changed its weights or attached adapters.
        The hash of a model in a lower precision stays, as its weights cannot be changed."""
        self.__dict__.pop("_weights_digest", None)
        self.stored_hash = None if self.precision == "float32" else self.stored_hash
        return self


def interleaved_bit_sums(tensor: Tensor) -> list[int]:
    """For each k < 64, the sum of the bits, as whole numbers, of the values at k, k + 64, k + 128, ...; the values of
    (O, C, H, W) are counted in the order (O, H, W, C)."""
    if tensor.ndim == 4 and tensor.shape[1] % 64 == 0 and tensor.is_contiguous():  # then the order changes no sum
        parts = tensor.view(torch.int32).view(-1, 64, tensor.shape[2] * tensor.shape[3])
    else:
        bits = (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).contiguous().view(torch.int32).flatten()
        parts = F.pad(bits, (0, -len(bits) % 64)).view(-1, 64, 1)
    parts = parts.cpu() if parts.device.type == "mps" else parts  # which has no float64
    # Sums of so many are exact in float64, which adds ten times as fast as int64
    chunk_size = max(2**13 // parts.shape[2], 1)
    sums = torch.zeros(64, dtype=torch.int64, device=parts.device)
    for start in range(0, len(parts), chunk_size):
        sums += parts[start : start + chunk_size].double().sum((0, 2)).long()
    return sums.tolist()


def size_embedding(size: tuple[int, int], width: int, aesthetic_score: float) -> Tensor:
    """(1, width): sinusoids of the image's height and width, of a crop at (0, 0), and of the size to draw (Podell et
    al. 2023, section 2.2). The refiner takes the aesthetic score in place of the last two; the width, a multiple of 6
    or not, tells which."""
    image_width, image_height = size
    last_values = [image_height, image_width] if width % 6 == 0 else [aesthetic_score]
    values = torch.tensor([image_height, image_width, 0, 0, *last_values], dtype=torch.float32)
    return sinusoidal_embedding(values, width // len(values)).view(1, width)


def guidance_scale_embedding(guidance_scale: float, width: int) -> Tensor:
    """(1, width): the guidance scale as latent consistency models take it (Luo et al. 2023, section 4.2)."""
    half_width = width // 2
    frequencies = torch.exp(-math.log(10_000) / (half_width - 1) * torch.arange(half_width, dtype=torch.float32))
    angles = 1000 * (guidance_scale - 1) * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()])[None], (0, width % 2))


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
        tokenizer=checkpoint.tokenizer,  # type: ignore[arg-type]
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
