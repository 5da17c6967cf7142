"""What a model is: a denoiser, the encoders of its words, its autoencoder, and a card that tells of it.

`model_io` reads and writes models; `formats.stable_diffusion.model` is the model of a Stable Diffusion checkpoint.
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
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.timesteps import timesteps

Kinds = Mapping[str, tuple[type[Any], Any]]  # by the name that model files give it: (configuration, module)
TEXT_ENCODERS: Kinds = {"transformer": (TextEncoderConfig, TextEncoder)}


@dataclass(frozen=True)
class ModelCard:
    """What a person should know of a model, and what a drawing takes where its request says nothing."""

    name: str = "unnamed"
    license: str = ""
    sampler: str = "dpmpp_2m"
    timestep_spacing: str = "uniform"
    steps: int = 30
    guidance_scale: float = 5.0
    size: tuple[int, int] = (64, 64)  # width, height in pixels
    clamp_denoised: bool = True  # keep x̂ within the autoencoder's bounds: for models of pixels
    step_counts: tuple[int, ...] = ()  # of a student: the only numbers of steps that it knows (see few_step.py)
    vocabulary: tuple[str, ...] = ()  # words worth suggesting
    recipe: str = ""  # the commands that made it
    corpus: dict[str, Any] = field(default_factory=dict)  # summary of what it was trained on


class SamplingSetup(NamedTuple):
    """Where a sampler evaluates the denoiser, and from what it starts."""

    times: Tensor  # (N + 1,) float64
    initial_scale: float  # x starts as initial_scale · noise
    denoiser: Denoiser  # which is evaluated at these times


@dataclass
class Model:
    """All that a drawing needs."""

    denoiser: Denoiser
    tokenizer: Tokenizer  # words to ids
    text_encoder: nn.Module  # ids to a Conditioning
    autoencoder: Autoencoder  # images to x and back
    card: ModelCard
    student: "Model | None" = None  # draws the same in few steps: its own network and card, all else shared
    precision: str = "float32"  # in which it draws, see quantization/precision.py
    stored_hash: str | None = None  # its weights_hash from before its precision changed it
    loras: tuple[LoraTag, ...] = ()  # those that prompts may name, as they are in its weights

    def noise(self, seeds: Sequence[int], shape: Sequence[int]) -> NoiseFunction:
        """The noise of drawings with those seeds, of x's shape (C, h, w)."""
        return noise_from_seeds(seeds, shape, self.device)

    def default_timestep_spacing(self, sampler: str) -> str:
        """The timestep spacing of the sampler where a request names none."""
        return self.card.timestep_spacing

    def sampling_setup(self, sampler: str, timestep_spacing: str, steps: int) -> SamplingSetup:
        """The times of that many steps, what x starts as, and the denoiser to evaluate."""
        times = timesteps(timestep_spacing, self.denoiser.schedule, steps)
        return SamplingSetup(times, float(self.denoiser.schedule(times[0])[1]), self.denoiser)

    def add_conditioning(
        self, conditioning: SomeConditioning, positive: bool, guidance_scale: float, size: tuple[int, int]
    ) -> SomeConditioning:
        """The conditioning of a positive or a negative prediction with what else the model takes as an input.

        guidance_scale, size (width, height in pixels): of the drawing."""
        return conditioning

    @property
    def takes_mask(self) -> bool:
        """Whether the network takes a mask and the latents of what it leaves as an input (an inpainting model)."""
        return False

    def with_clip_skip(self, clip_skip: int) -> "Model":
        """The model, its text read without the last clip_skip - 1 layers of CLIP. InputError where it has no CLIP."""
        if clip_skip != 1:
            raise InputError(f" {clip_skip}: this model reads its words without CLIP; leave it out", "clip_skip")
        return self

    def cfg_scale(self, guidance_scale: float) -> float:
        """The scale that is left for classifier-free guidance: 1 where the network itself takes it as an input."""
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
        """A model of another network and card that shares all else, as a student does."""
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

    def describe(self) -> dict[str, Any]:
        """All that explains the tensors, as JSON values: what a model file's metadata hold."""
        denoiser, student = self.denoiser, self.student
        if not isinstance(denoiser.time_conditioning, str):
            names = ", ".join(TIME_CONDITIONINGS)
            raise InputError(f"a time conditioning that is a function cannot be stored; choose one of {names}")
        description = {
            "network": _describe_module(self.network, NETWORKS),
            "schedule": configuration.kind_to_json(SCHEDULES, denoiser.schedule),
            "prediction": denoiser.prediction,
            "time_conditioning": denoiser.time_conditioning,
            "text": _describe_module(self.text_encoder, TEXT_ENCODERS),
            "tokenizer": self.tokenizer.to_json(),
            "autoencoder": _describe_module(self.autoencoder, AUTOENCODERS),
            "card": configuration.to_json(self.card),
        }
        if student is not None:
            description["student"] = {
                "network": _describe_module(student.network, NETWORKS),
                "card": configuration.to_json(student.card),
            }
        return description

    @property
    def hash(self) -> str:
        """12 hex digits of what decides the images: tensors and configuration, but not the card's words."""
        return self.weights_hash

    @property
    def weights_hash(self) -> str:
        """The hash, but for the strength of attached adapters, which may be changed at any time."""
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
        """The description by the names of format 1, by which the hash is defined, without the words of the cards."""
        description = {"format": 1, **rename_model_metadata(self.describe(), to_old=True)}
        for network in (description["network"], description.get("student", {}).get("network", {})):
            if not network.get("draft", True):  # models from before there were coarse predictors keep their hash
                del network["draft"]
        hashed: list[Any] = [description, self.card.clamp_denoised]
        if self.student is not None and self.student.card.clamp_denoised != ModelCard.clamp_denoised:
            hashed += [{"student": {"clamp": self.student.card.clamp_denoised}}]
        for card in (description.pop("card"), description.get("student", {}).pop("card", {})):
            hashed += [card["few"]] if card.get("few") else []
        return hashed


def _hashed_name(name: str) -> str:
    part, _, rest = name.partition(".")
    return f"{part}.{rename_tensor(part, rest, to_old=True)}"


def _describe_module(module: Any, kinds: Kinds) -> dict[str, Any]:
    kind = next((kind for kind, (_, build) in kinds.items() if type(module) is build), None)
    if kind is None:
        raise InputError(f"{type(module).__name__} is of no kind that can be stored; choose one of {', '.join(kinds)}")
    return {"kind": kind, **configuration.to_json(module.config)}
