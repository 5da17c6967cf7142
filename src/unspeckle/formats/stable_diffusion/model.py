"""A foreign checkpoint as a Model: the same parts as ours, with the habits of the programs that it was made for."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.denoiser import Denoiser, SomeConditioning, with_fields
from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.checkpoint import SchedulerDefaults, StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.noise import torch_generator_noise
from unspeckle.formats.stable_diffusion.scheduler_timesteps import SCHEDULER_SPACINGS, build_scheduler_timesteps
from unspeckle.model import Model, ModelCard, SamplingSetup
from unspeckle.model_io.precision import set_precision
from unspeckle.model_io.weight_dtypes import to_float32
from unspeckle.networks.autoencoder import run_without_overflow
from unspeckle.networks.layers import sinusoidal_embedding
from unspeckle.networks.lora import find_attached_adapters
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.rng import Noise
from unspeckle.text.clip import CLIPSkipEncoder, CLIPTextEncoders

_SCHEDULER_FAMILIES = {  # of time grids; what is not here walks on ours
    "ddim": "ddim", "plms": "ddim", "ddpm": "ddim", "euler": "euler", "euler_a": "euler", "heun": "euler",
    "lms": "euler", "dpmpp_sde": "euler", "dpmpp_2m": "dpm", "dpmpp_2m_sde": "dpm", "unipc": "dpm", "lcm": "lcm",
}  # fmt: skip
_DEFAULT_STEPS = {"lcm": 4, "dpmpp_2m": 25, "dpmpp_2m_sde": 25, "unipc": 25, "heun": 20}
_DEFAULT_GUIDANCE_SCALES = {"1": 7.5, "2": 7.5, "xl": 5.0, "xl-refiner": 5.0}
AESTHETIC_SCORES = (6.0, 2.5)  # the scores that XL's refiner is told of the wanted and the unwanted picture


@dataclass
class StableDiffusionModel(Model):
    """A Model from a foreign checkpoint."""

    scheduler_defaults: SchedulerDefaults = field(default_factory=SchedulerDefaults)

    def noise(self, seeds: Sequence[int], shape: Sequence[int]) -> Noise:
        return torch_generator_noise(seeds, shape, self.device)

    def default_timestep_spacing(self, sampler: str) -> str:
        if self.scheduler_defaults.use_karras_sigmas and _SCHEDULER_FAMILIES[sampler] in ("euler", "dpm"):
            return "karras"
        return self._default_spacing(sampler)

    def _default_spacing(self, sampler: str) -> str:
        return self.scheduler_defaults.timestep_spacing or (
            "leading" if _SCHEDULER_FAMILIES[sampler] in ("ddim", "lcm") else "linspace"
        )

    def sampling_setup(self, sampler: str, timestep_spacing: str, steps: int) -> SamplingSetup:
        family, schedule = _SCHEDULER_FAMILIES[sampler], self.scheduler_defaults.schedule
        use_karras_sigmas = timestep_spacing == "karras"
        if timestep_spacing not in SCHEDULER_SPACINGS and not (use_karras_sigmas and family in ("euler", "dpm")):
            return super().sampling_setup(
                sampler, timestep_spacing, steps
            )  # on no scheduler's entries: between those of the table too
        end_at = self.scheduler_defaults.end_at or ("first" if sampler == "plms" else "zero")
        timesteps = build_scheduler_timesteps(
            family, schedule, steps, self._default_spacing(sampler) if use_karras_sigmas else timestep_spacing, steps_offset=self.scheduler_defaults.steps_offset,
            use_karras_sigmas=use_karras_sigmas, end_at=end_at if sampler in ("ddim", "plms") else "zero",
        )  # fmt: skip
        denoiser = Denoiser(self.denoiser.network, schedule, self.denoiser.prediction, timesteps.c_noise)
        return SamplingSetup(timesteps.times, timesteps.init_noise_sigma, denoiser)

    def add_conditioning(
        self, conditioning: SomeConditioning, positive: bool, guidance_scale: float, size: tuple[int, int]
    ) -> SomeConditioning:
        """Sizes, the guidance scale and an unknown picture to paint, where the network wants to be told of them."""
        config, batch_size = self.network.config, len(conditioning[0])
        assert isinstance(config, UNetConfig)
        vectors = [] if conditioning.vector is None else [conditioning.vector]
        if config.vector_width:
            size_vector = size_embedding(
                size, config.vector_width - vectors[0].shape[1], AESTHETIC_SCORES[0 if positive else 1]
            )
            vectors.append(size_vector.to(conditioning[0]).expand(batch_size, -1))
        if config.guidance_width:
            vectors.append(
                guidance_scale_embedding(guidance_scale, config.guidance_width)
                .to(conditioning[0])
                .expand(batch_size, -1)
            )
        conditioning = with_fields(conditioning, vector=torch.cat(vectors, 1) if vectors else None)
        if config.concat_channels and conditioning.concat is None:
            blank = self._blank_inpainting_latents(size).expand(batch_size, -1, -1, -1)
            conditioning = with_fields(conditioning, concat=blank)
        return conditioning

    @property
    def takes_mask(self) -> bool:
        assert isinstance(self.network.config, UNetConfig)
        return self.network.config.concat_channels > 0

    def with_clip_skip(self, clip_skip: int) -> Model:
        assert isinstance(self.text_encoder, CLIPTextEncoders)
        max_layers = min(encoder.layers - encoder.skipped_layers for encoder in self.text_encoder.config.encoders)
        if clip_skip > max_layers:
            raise InputError(f"clip_skip {clip_skip}: this text encoder has {max_layers} layers to read; choose fewer")
        return self if clip_skip == 1 else replace(self, text_encoder=CLIPSkipEncoder(self.text_encoder, clip_skip - 1))

    def cfg_scale(self, guidance_scale: float) -> float:
        assert isinstance(self.network.config, UNetConfig)
        return 1.0 if self.network.config.guidance_width else guidance_scale

    def _blank_inpainting_latents(self, size: tuple[int, int]) -> Tensor:
        """What an inpainting network is given where nothing is to be kept: a mask of ones, and a grey picture."""
        with torch.no_grad():
            gray_latents = run_without_overflow(
                self.autoencoder, self.autoencoder.encode, torch.zeros(1, 3, size[1], size[0], device=self.device)
            )
        return torch.cat([torch.ones_like(gray_latents[:, :1]), gray_latents], 1)

    @cached_property
    def _weights_digest(self) -> str:
        """Sums of 64 interleaved parts of each tensor's bits: of some gigabytes in a second."""
        config_values = [
            self.denoiser.prediction,
            self.scheduler_defaults.schedule,
            self.network.config,
            self.text_encoder.config,
            self.autoencoder.config,
        ]
        digest = hashlib.sha256(repr(config_values).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{_interleaved_bit_sums(tensor.float())}".encode())
        return digest.hexdigest()[:12]

    def require_float32(self, option: str) -> "StableDiffusionModel":
        """Itself. InputError where its weights lie as only a drawing wants them, and take nothing more."""
        if self.precision != "float32":
            raise InputError(
                f"{option}: comes before the precision; load {self.card.name!r} in float32, add it, then "
                f"precision.lower(model, {self.precision!r})"
            )
        return self

    def invalidate_hash(self) -> "StableDiffusionModel":
        """To be called by whoever changed its weights or adapters: what is known of them is forgotten. Those of a
        lowered model do not change, and how strong adapters are is looked up anew each time."""
        self.__dict__.pop("_digest", None)
        self.stored_hash = None if self.precision == "float32" else self.stored_hash
        return self

    @property
    def weights_hash(self) -> str:
        return self._weights_digest if self.stored_hash is None else self.stored_hash

    @property
    def hash(self) -> str:
        strengths = [
            adapter.strength * adapter.scale
            for part in self.modules().values()
            for adapter in find_attached_adapters(part)
        ]
        if not strengths:
            return self.weights_hash
        return hashlib.sha256(f"{self.weights_hash}{strengths}".encode()).hexdigest()[:12]


def _interleaved_bit_sums(tensor: Tensor) -> list[int]:
    """The bits of every 64th number, as whole numbers, summed; of (O, C, H, W) in the order (O, H, W, C)."""
    if tensor.ndim == 4 and tensor.shape[1] % 64 == 0 and tensor.is_contiguous():  # no number changes its sum
        parts = tensor.view(torch.int32).view(-1, 64, tensor.shape[2] * tensor.shape[3])
    else:
        bits = (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).contiguous().view(torch.int32).flatten()
        parts = F.pad(bits, (0, -len(bits) % 64)).view(-1, 64, 1)
    parts = parts.cpu() if parts.device.type == "mps" else parts  # which has no float64
    chunk_size = max(2**13 // parts.shape[2], 1)  # whose sum is exact in float64, which adds ten times as fast as int64
    sums = torch.zeros(64, dtype=torch.int64, device=parts.device)
    for start in range(0, len(parts), chunk_size):
        sums += parts[start : start + chunk_size].double().sum((0, 2)).long()
    return sums.tolist()


def size_embedding(size: tuple[int, int], width: int, aesthetic_score: float) -> Tensor:
    """(1, width): waves of the picture's height and width, of a crop at 0, 0 and of the size to draw (Podell et al.
    2023, section 2.2), or, for the refiner, of a score in place of that. The count follows from the width."""
    image_width, image_height = size
    time_ids = (
        [image_height, image_width, 0, 0, image_height, image_width]
        if width % 6 == 0
        else [image_height, image_width, 0, 0, aesthetic_score]
    )
    return sinusoidal_embedding(torch.tensor(time_ids, dtype=torch.float32), width // len(time_ids)).view(1, width)


def guidance_scale_embedding(guidance_scale: float, width: int) -> Tensor:
    """(1, width): the guidance scale as consistency models of latents are told it. Luo et al. 2023, section 4.2."""
    half_width = width // 2
    angles = (
        1000
        * (guidance_scale - 1)
        * torch.exp(-math.log(10_000) / (half_width - 1) * torch.arange(half_width, dtype=torch.float32))
    )
    return F.pad(torch.cat([angles.sin(), angles.cos()])[None], (0, width % 2))


def build_stable_diffusion_model(
    checkpoint: StableDiffusionCheckpoint, device: str | torch.device = "cpu", precision: str = "float32"
) -> StableDiffusionModel:
    """The checkpoint as a Model, to draw in that precision. In a lower one, no weight is in memory in float32 too."""
    modules = checkpoint.build_modules()
    for name, module in modules.items():
        convert = to_float32 if precision == "float32" else _keep_dtype
        module.load_state_dict(
            {key: convert(tensor) for key, tensor in checkpoint.part_tensors(name).items()}, assign=True
        )
        module.eval().requires_grad_(False)
    for encoder in modules["text"].encoders:  # type: ignore[union-attr]
        encoder.casts_on_use = precision != "float32"
    defaults, network = checkpoint.scheduler_defaults, modules["network"]
    assert isinstance(network, UNet)
    card = ModelCard(
        name=checkpoint.path.stem,
        sampler=defaults.sampler,
        steps=4 if defaults.is_turbo else _DEFAULT_STEPS.get(defaults.sampler, 30),
        guidance_scale=1.0
        if defaults.is_turbo
        else 8.5
        if defaults.sampler == "lcm"
        else _DEFAULT_GUIDANCE_SCALES[checkpoint.family],
        size=(defaults.image_size, defaults.image_size),
        clamp_denoised=False,
    )
    denoiser = Denoiser(network, defaults.schedule, defaults.prediction, "index")
    sd_model = StableDiffusionModel(
        denoiser,
        checkpoint.tokenizer,  # type: ignore[arg-type]
        modules["text"],
        modules["autoencoder"],  # type: ignore[arg-type]
        card,
        scheduler_defaults=defaults,
    )
    sd_model.to(device)
    set_precision(sd_model, precision)
    return sd_model


def _keep_dtype(tensor: Tensor) -> Tensor:
    return tensor
