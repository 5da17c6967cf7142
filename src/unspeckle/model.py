"""What a model is: a denoiser, a tokenizer and a text encoder, an autoencoder, and a card.

`model_io` loads and saves models; `formats.stable_diffusion.model` is the model of a Stable Diffusion checkpoint.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unspeckle import configuration
from unspeckle.denoiser import TIME_CONDITIONINGS, Denoiser, SomeConditioning
from unspeckle.errors import InputError
from unspeckle.networks import AUTOENCODERS, NETWORKS
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.old_names import rename_model_metadata, rename_tensor
from unspeckle.prompts import LoraTag
from unspeckle.rng import NoiseFunction, noise_from_seeds
from unspeckle.schedule import SCHEDULES
from unspeckle.text.text_encoder import TextEncoder, TextEncoderConfig
from unspeckle.text.tokenizer import CaptionTokenizer, Tokenizer
from unspeckle.timesteps import timesteps

# The modules that models of format 1 had
FORMAT_1_PARTS = ("network", "text", "autoencoder", "student")
# By the name in model files: (configuration, module)
Kinds = Mapping[str, tuple[type[Any], Any]]
TEXT_ENCODERS: Kinds = {"transformer": (TextEncoderConfig, TextEncoder)}


@dataclass(frozen=True)
class ModelCard:
    """What a user should know of a model, and the options of a drawing that a request leaves open."""

    name: str = "unnamed"
    license: str = ""
    # Defaults of a Request
    sampler: str = "dpmpp_2m"
    timestep_spacing: str = "uniform"
    steps: int = 30
    guidance_scale: float = 5.0
    # (width, height) in pixels of the images that it was trained on
    size: tuple[int, int] = (64, 64)
    # Whether x̂ is clamped to the values of images; for models that denoise pixels
    clamp_denoised: bool = True
    # Of a few-step student: the numbers of steps for which it was trained
    step_counts: tuple[int, ...] = ()
    # Words that make good prompts
    vocabulary: tuple[str, ...] = ()
    # The commands that made it
    recipe: str = ""
    # A summary of the images that it was trained on
    corpus: dict[str, Any] = field(default_factory=dict)


class SamplingSetup(NamedTuple):
    """The times at which a sampler evaluates the denoiser, and what it starts from."""

    times: Tensor  # (N + 1,) float64, falling
    initial_scale: float  # x starts as initial_scale · noise
    denoiser: Denoiser


@dataclass
class Model:
    """All that a drawing needs."""

    denoiser: Denoiser
    tokenizer: CaptionTokenizer  # text to token ids
    text_encoder: nn.Module  # token ids to a Conditioning
    autoencoder: Autoencoder  # images to latents x and back
    card: ModelCard
    # A few-step student: it has its own network and card, and shares all else.
    student: "Model | None" = None
    # The precision in which it computes, see quantization/precision.py.
    precision: str = "float32"
    # The weights_hash from before its precision was changed.
    stored_hash: str | None = None
    # The LoRA that are merged into its weights, as prompts name them.
    loras: tuple[LoraTag, ...] = ()

    def noise(self, seeds: Sequence[int], shape: Sequence[int]) -> NoiseFunction:
        """The noise of drawings with these seeds, for x of shape (C, h, w)."""
        return noise_from_seeds(seeds, shape, self.device)

    def default_timestep_spacing(self, sampler: str) -> str:
        """The timestep spacing of a sampler, where a request names none."""
        return self.card.timestep_spacing

    def sampling_setup(self, sampler: str, timestep_spacing: str, steps: int) -> SamplingSetup:
        """The setup of a whole drawing, from noise, in so many steps."""
        times = timesteps(timestep_spacing, self.denoiser.schedule, steps)
        return SamplingSetup(times, float(self.denoiser.schedule(times[0])[1]), self.denoiser)

    def add_conditioning(
        self, conditioning: SomeConditioning, positive: bool, guidance_scale: float, size: tuple[int, int]
    ) -> SomeConditioning:
        """The conditioning of a positive or negative prediction, with what else the network takes as an input.

        guidance_scale, size (width, height in pixels): those of the drawing."""
        return conditioning

    @property
    def takes_mask(self) -> bool:
        """Whether the network takes a mask and the masked image's latents as an input (an inpainting model)."""
        return False

    def with_clip_skip(self, clip_skip: int) -> "Model":
        """The model without the last clip_skip - 1 layers of its CLIP text encoder. InputError where it has none."""
        if clip_skip != 1:
            raise InputError(f" {clip_skip}: this model has no CLIP text encoder; leave it out", "clip_skip")
        return self

    def cfg_scale(self, guidance_scale: float) -> float:
        """The scale for classifier-free guidance: 1 where the network itself takes the guidance scale as an input."""
        return guidance_scale

    def modules(self) -> dict[str, nn.Module]:
        """The modules whose tensors are stored, by the prefix of their names."""
        own = {"network": self.network, "text": self.text_encoder, "autoencoder": self.autoencoder}
        return own if self.student is None else {**own, "student": self.student.network}

    @property
    def network(self) -> nn.Module:
        assert isinstance(self.denoiser.network, nn.Module)
        return self.denoiser.network

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> "Model":
        """Move every module to the device, in place."""
        for module in self.modules().values():
            module.to(device)
        return self

    def with_network(self, network: Any, card: ModelCard) -> "Model":
        """A model with another network and card that shares all else, as a student does."""
        shared = self.denoiser
        denoiser = Denoiser(network, shared.schedule, shared.prediction, shared.time_conditioning)
        return Model(denoiser, self.tokenizer, self.text_encoder, self.autoencoder, card)

    def state_dict(self) -> dict[str, Tensor]:
        """Every stored tensor by its full name, such as "network.conv_in.weight"."""
        return {
            f"{part}.{name}": tensor.detach()
            for part, module in self.modules().items()
            for name, tensor in module.state_dict().items()
        }

    def _repr_html_(self) -> str:
        """For notebooks: what the model is, and the defaults of a drawing."""
        card, parameters = self.card, sum(p.numel() for part in self.modules().values() for p in part.parameters())
        few_steps = () if self.student is None else self.student.card.step_counts
        rows = {
            "size": f"{card.size[0]} × {card.size[1]} pixels",
            "parameters": f"{parameters / 1e6:,.1f} million, in {self.precision} on {self.device}",
            "draws with": f"{card.sampler}, {card.steps} steps, guidance scale {card.guidance_scale:g}",
            "student": few_steps and f"draws in {', '.join(map(str, few_steps))} steps",
            "knows such words as": ", ".join(card.vocabulary[:40]),
            "license": card.license,
            "hash": self.hash,
        }
        return configuration.to_html(card.name, rows)

    def describe(self) -> dict[str, Any]:
        """All that is needed to build the model from its tensors, as JSON values: the metadata of a model file.

        InputError where the model has parts that cannot be stored."""
        denoiser, student = self.denoiser, self.student
        if not isinstance(denoiser.time_conditioning, str):
            names = ", ".join(TIME_CONDITIONINGS)
            raise InputError(f"a time conditioning that is a function cannot be stored; choose one of {names}")
        description = {
            "network": describe_module(self.network, NETWORKS),
            "schedule": configuration.kind_to_json(SCHEDULES, denoiser.schedule),
            "prediction": denoiser.prediction,
            "time_conditioning": denoiser.time_conditioning,
            "text": describe_module(self.text_encoder, TEXT_ENCODERS),
            "tokenizer": _describe_tokenizer(self.tokenizer),
            "autoencoder": describe_module(self.autoencoder, AUTOENCODERS),
            "card": configuration.to_json(self.card),
        }
        if student is not None:
            description["student"] = {
                "network": describe_module(student.network, NETWORKS),
                "card": configuration.to_json(student.card),
            }
        return description

    @property
    def hash(self) -> str:
        """12 hex digits of all that decides the images: tensors and configuration, but not the texts of the card."""
        return self.weights_hash

    @property
    def weights_hash(self) -> str:
        """The hash without the strengths of attached adapters, which can change at any time."""
        if self.stored_hash is not None:
            return self.stored_hash
        digest = hashlib.sha256(json.dumps(self._hashed_description(), sort_keys=True).encode())
        tensors = {_hashed_name(name): tensor for name, tensor in self.state_dict().items()}
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            stored = tensor.to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
            digest.update(stored.numpy().data)
        return digest.hexdigest()[:12]

    def _hashed_description(self) -> list[Any]:
        """The description by the names of format 1, which define the hash, without the texts of the cards."""
        description = {"format": 1, **rename_model_metadata(self.describe(), to_old=True)}
        for network in (description["network"], description.get("student", {}).get("network", {})):
            if not network.get("draft", True):  # models without one had no such field, and keep their hash
                del network["draft"]
        hashed: list[Any] = [description, self.card.clamp_denoised]
        if self.student is not None and self.student.card.clamp_denoised != ModelCard.clamp_denoised:
            hashed += [{"student": {"clamp": self.student.card.clamp_denoised}}]
        for card in (description.pop("card"), description.get("student", {}).pop("card", {})):
            hashed += [card["few"]] if card.get("few") else []
        return hashed


def _hashed_name(name: str) -> str:
    part, _, rest = name.partition(".")
    return f"{part}.{rename_tensor(part, rest, to_old=True)}" if part in FORMAT_1_PARTS else name


def _describe_tokenizer(tokenizer: CaptionTokenizer) -> str:
    if not isinstance(tokenizer, Tokenizer):
        raise InputError(f"{type(tokenizer).__name__} is a tokenizer that cannot be stored; only a Tokenizer can")
    return tokenizer.to_json()


def describe_module(module: Any, kinds: Kinds) -> dict[str, Any]:
    """The module's configuration as JSON values, with the name of its kind. InputError where it has none."""
    kind = next((kind for kind, (_, build) in kinds.items() if type(module) is build), None)
    if kind is None:
        raise InputError(f"{type(module).__name__} is of no kind that can be stored; choose one of {', '.join(kinds)}")
    return {"kind": kind, **configuration.to_json(module.config)}
