"""A foreign checkpoint as a Model: the same parts as ours, with the habits of the programs that it was made for."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.denoiser import Denoiser, Conditioning
from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.checkpoint import Checkpoint, Habits
from unspeckle.formats.stable_diffusion.noise import ecosystem_noise
from unspeckle.formats.stable_diffusion.scheduler_timesteps import SPACINGS, grid
from unspeckle.model import ModelCard, Model, SamplingSetup
from unspeckle.model_io.precision import set_precision
from unspeckle.model_io.weight_dtypes import to_float32
from unspeckle.networks.autoencoder import finite
from unspeckle.networks.layers import sinusoids
from unspeckle.networks.lora import live
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.rng import Noise
from unspeckle.text.clip import ClipTexts, Skipping

_FAMILIES = {  # of time grids; what is not here walks on ours
    "ddim": "ddim", "plms": "ddim", "ddpm": "ddim", "euler": "euler", "euler_a": "euler", "heun": "euler",
    "lms": "euler", "dpmpp_sde": "euler", "dpmpp_2m": "dpm", "dpmpp_2m_sde": "dpm", "unipc": "dpm", "lcm": "lcm",
}  # fmt: skip
_STEPS = {"lcm": 4, "dpmpp_2m": 25, "dpmpp_2m_sde": 25, "unipc": 25, "heun": 20}
_SCALES = {"1": 7.5, "2": 7.5, "xl": 5.0, "xl-refiner": 5.0}
AESTHETIC = (6.0, 2.5)  # the scores that XL's refiner is told of the wanted and the unwanted picture


@dataclass
class Foreign(Model):
    """A Model from a foreign checkpoint."""

    habits: Habits = field(default_factory=Habits)

    def noise(self, seeds: Sequence[int], shape: Sequence[int]) -> Noise:
        return ecosystem_noise(seeds, shape, self.device)

    def default_timestep_spacing(self, sampler: str) -> str:
        if self.habits.karras and _FAMILIES[sampler] in ("euler", "dpm"):
            return "karras"
        return self._spacing(sampler)

    def _spacing(self, sampler: str) -> str:
        return self.habits.spacing or ("leading" if _FAMILIES[sampler] in ("ddim", "lcm") else "linspace")

    def sampling_setup(self, sampler: str, timestep_spacing: str, steps: int) -> SamplingSetup:
        family, table = _FAMILIES[sampler], self.habits.table
        karras = timestep_spacing == "karras"
        if timestep_spacing not in SPACINGS and not (karras and family in ("euler", "dpm")):
            return super().sampling_setup(sampler, timestep_spacing, steps)  # on no scheduler's entries: between those of the table too
        end = self.habits.end or ("first" if sampler == "plms" else "zero")
        found = grid(
            family, table, steps, self._spacing(sampler) if karras else timestep_spacing, offset=self.habits.offset,
            karras=karras, end=end if sampler in ("ddim", "plms") else "zero",
        )  # fmt: skip
        told = Denoiser(self.denoiser.network, table, self.denoiser.prediction, found.clock)
        return SamplingSetup(found.times, found.scale, told)

    def add_conditioning(self, conditioning: Conditioning, positive: bool, guidance_scale: float, size: tuple[int, int]) -> Conditioning:
        """Sizes, the guidance scale and an unknown picture to paint, where the network wants to be told of them."""
        config, rows = self.network.config, len(conditioning.tokens)
        assert isinstance(config, UNetConfig)
        told = [] if conditioning.vector is None else [conditioning.vector]
        if config.vector_width:
            said = sizes(size, config.vector_width - told[0].shape[1], AESTHETIC[0 if positive else 1])
            told.append(said.to(conditioning.tokens).expand(rows, -1))
        if config.guidance_width:
            told.append(scale_waves(guidance_scale, config.guidance_width).to(conditioning.tokens).expand(rows, -1))
        conditioning = conditioning._replace(vector=torch.cat(told, 1) if told else None)
        if config.beside and conditioning.concat is None:
            conditioning = conditioning._replace(beside=self._unknown(size).expand(rows, -1, -1, -1))
        return conditioning

    @property
    def takes_mask(self) -> bool:
        assert isinstance(self.network.config, UNetConfig)
        return self.network.config.beside > 0

    def with_clip_skip(self, clip_skip: int) -> Model:
        assert isinstance(self.text_encoder, ClipTexts)
        most = min(encoder.layers - encoder.skip for encoder in self.text_encoder.config.encoders)
        if clip_skip > most:
            raise InputError(f"clip_skip {clip_skip}: this text encoder has {most} layers to read; choose fewer")
        return self if clip_skip == 1 else replace(self, text=Skipping(self.text_encoder, clip_skip - 1))

    def cfg_scale(self, scale: float) -> float:
        assert isinstance(self.network.config, UNetConfig)
        return 1.0 if self.network.config.guidance_width else scale

    def _unknown(self, size: tuple[int, int]) -> Tensor:
        """What an inpainting network is given where nothing is to be kept: a mask of ones, and a grey picture."""
        with torch.no_grad():
            grey = finite(
                self.autoencoder, self.autoencoder.encode, torch.zeros(1, 3, size[1], size[0], device=self.device)
            )
        return torch.cat([torch.ones_like(grey[:, :1]), grey], 1)

    @cached_property
    def _digest(self) -> str:
        """Sums of 64 interleaved parts of each tensor's bits: of some gigabytes in a second."""
        said = [
            self.denoiser.prediction,
            self.habits.table,
            self.network.config,
            self.text_encoder.config,
            self.autoencoder.config,
        ]
        digest = hashlib.sha256(repr(said).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{_sums(tensor.float())}".encode())
        return digest.hexdigest()[:12]

    def changeable(self, option: str) -> "Foreign":
        """Itself. InputError where its weights lie as only a drawing wants them, and take nothing more."""
        if self.precision != "float32":
            raise InputError(
                f"{option}: comes before the precision; load {self.card.name!r} in float32, add it, then "
                f"precision.lower(model, {self.precision!r})"
            )
        return self

    def changed(self) -> "Foreign":
        """To be called by whoever changed its weights or adapters: what is known of them is forgotten. Those of a
        lowered model do not change, and how strong adapters are is looked up anew each time."""
        self.__dict__.pop("_digest", None)
        self.stored_hash = None if self.precision == "float32" else self.stored_hash
        return self

    @property
    def weights_hash(self) -> str:
        return self._digest if self.stored_hash is None else self.stored_hash

    @property
    def hash(self) -> str:
        strengths = [adapter.strength * adapter.scale for part in self.modules().values() for adapter in live(part)]
        if not strengths:
            return self.weights_hash
        return hashlib.sha256(f"{self.weights_hash}{strengths}".encode()).hexdigest()[:12]


def _sums(tensor: Tensor) -> list[int]:
    """The bits of every 64th number, as whole numbers, summed; of (O, C, H, W) in the order (O, H, W, C)."""
    if tensor.ndim == 4 and tensor.shape[1] % 64 == 0 and tensor.is_contiguous():  # no number changes its sum
        parts = tensor.view(torch.int32).view(-1, 64, tensor.shape[2] * tensor.shape[3])
    else:
        bits = (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).contiguous().view(torch.int32).flatten()
        parts = F.pad(bits, (0, -len(bits) % 64)).view(-1, 64, 1)
    parts = parts.cpu() if parts.device.type == "mps" else parts  # which has no float64
    few = max(2**13 // parts.shape[2], 1)  # whose sum is exact in float64, which adds ten times as fast as int64
    sums = torch.zeros(64, dtype=torch.int64, device=parts.device)
    for at in range(0, len(parts), few):
        sums += parts[at : at + few].double().sum((0, 2)).long()
    return sums.tolist()


def sizes(size: tuple[int, int], width: int, score: float) -> Tensor:
    """(1, width): waves of the picture's height and width, of a crop at 0, 0 and of the size to draw (Podell et al.
    2023, section 2.2), or, for the refiner, of a score in place of that. The count follows from the width."""
    wide, high = size
    numbers = [high, wide, 0, 0, high, wide] if width % 6 == 0 else [high, wide, 0, 0, score]
    return sinusoids(torch.tensor(numbers, dtype=torch.float32), width // len(numbers)).view(1, width)


def scale_waves(scale: float, width: int) -> Tensor:
    """(1, width): the guidance scale as consistency models of latents are told it. Luo et al. 2023, section 4.2."""
    half = width // 2
    angles = 1000 * (scale - 1) * torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, dtype=torch.float32))
    return F.pad(torch.cat([angles.sin(), angles.cos()])[None], (0, width % 2))


def model(checkpoint: Checkpoint, device: str | torch.device = "cpu", precision: str = "float32") -> Foreign:
    """The checkpoint as a Model, to draw in that precision. In a lower one, no weight is in memory in float32 too."""
    parts = checkpoint.pieces()
    for name, part in parts.items():
        own = to_float32 if precision == "float32" else _as_stored
        part.load_state_dict({key: own(held) for key, held in checkpoint.part(name).items()}, assign=True)
        part.eval().requires_grad_(False)
    for encoder in parts["text"].encoders:  # type: ignore[union-attr]
        encoder.as_stored = precision != "float32"
    habits, network = checkpoint.habits, parts["network"]
    assert isinstance(network, UNet)
    card = ModelCard(
        name=checkpoint.where.stem,
        sampler=habits.sampler,
        steps=4 if habits.turbo else _STEPS.get(habits.sampler, 30),
        guidance_scale=1.0 if habits.turbo else 8.5 if habits.sampler == "lcm" else _SCALES[checkpoint.family],
        size=(habits.size, habits.size),
        clamp_denoised=False,
    )
    denoiser = Denoiser(network, habits.table, habits.prediction, "index")
    made = Foreign(denoiser, checkpoint.tokenizer, parts["text"], parts["autoencoder"], card, habits=habits)  # type: ignore[arg-type]
    made.to(device)
    set_precision(made, precision)
    return made


def _as_stored(tensor: Tensor) -> Tensor:
    return tensor
