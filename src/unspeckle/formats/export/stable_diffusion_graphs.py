"""A Stable Diffusion cut into graphs for other programs: a module for each part, which takes and gives tensors by the
names, and in the units, that optimum and diffusers' own ONNX pipeline expect."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning
from unspeckle.formats.stable_diffusion.checkpoint import Checkpoint
from unspeckle.model_io.weight_dtypes import to_float32
from unspeckle.networks.layers import sinusoids
from unspeckle.networks.unet import UNet
from unspeckle.networks.vae import Vae
from unspeckle.text.clip import ClipEncoder

BATCH = ("batch_size", 1)
Sides = dict[int, tuple[str, int]]  # the dimensions that are free: a name, and what they are a multiple of
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Graph:
    """One part. make: the module in float32, which takes the inputs in order; example: a question, of the sides to
    trace with, or of other ones."""

    name: str  # of its folder
    make: Callable[[], nn.Module]
    inputs: dict[str, Sides]
    outputs: tuple[str, ...]
    example: Callable[[bool], Tensors]
    said: dict[str, Any] = field(default_factory=dict)  # its config.json


class Reader(nn.Module):
    """CLIP's ids (B, L) int32 to what transformers' text models give: hidden states are those between all layers."""

    def __init__(self, encoder: ClipEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> Tensors:
        encoder = self.encoder
        states = [encoder.token(input_ids) + encoder.place[: input_ids.shape[1]]]
        for layer in encoder.layers:
            states.append(layer(states[-1]))
        last = encoder.norm(states[-1])
        ends = (input_ids == encoder.config.end).int().argmax(1)
        vector = encoder.project(last[torch.arange(last.shape[0]), ends])
        return ((vector, last) if encoder.config.projection else (last, vector)) + tuple(states)


class Guess(nn.Module):
    """What the U-Net predicts (eps or v), of what UNet2DConditionModel takes; timestep (1,) or (B,), an entry."""

    def __init__(self, unet: UNet, more: tuple[str, ...], waves: int) -> None:
        super().__init__()
        self.unet, self.more, self.waves = unet, more, waves

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *more: Tensor) -> Tensor:
        told, channels = dict(zip(self.more, more, strict=True)), self.unet.config.channels
        vector = [told["text_embeds"]] if "text_embeds" in told else []
        if "time_ids" in told:
            numbers = told["time_ids"]
            vector.append(sinusoids(numbers.flatten(), self.waves).view(numbers.shape[0], -1))
        vector += [told["timestep_cond"]] if "timestep_cond" in told else []
        beside = sample[:, channels:] if self.unet.config.beside else None
        given = Conditioning(encoder_hidden_states, None, torch.cat(vector, 1) if vector else None, beside)
        out: Tensor = self.unet(sample[:, :channels], each(timestep, sample), given)
        return out


class Decodes(nn.Module):
    """Latents, as the decoder itself wants them, to pictures in [-1, 1]."""

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        self.unmix, self.decoder = vae.unmix, vae.decoder

    def forward(self, latent_sample: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.unmix(latent_sample))
        return out


class Encodes(nn.Module):
    """Pictures to the mean and log-variance of latents, as the encoder itself gives them."""

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        self.encoder, self.mix = vae.encoder, vae.mix

    def forward(self, sample: Tensor) -> Tensor:
        out: Tensor = self.mix(self.encoder(sample))
        return out


def each(t: Tensor, x: Tensor) -> Tensor:
    """t (1,) or (B,) as (B,), by an index that is right for both: a graph knows no if."""
    return t[torch.minimum(torch.arange(x.shape[0]), torch.arange(t.shape[0])[-1])]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def sides(unit: int) -> Sides:
    """Of a batch of maps whose height and width are multiples of the unit."""
    return {0: BATCH, 2: ("height", unit), 3: ("width", unit)}


def maps(channels: int, unit: int, other: bool) -> Tensor:
    """Two of 2 × 3 units, or three of 4 × 2."""
    return random(3, channels, 4 * unit, 2 * unit) if other else random(2, channels, 2 * unit, 3 * unit)


def stable(checkpoint: Checkpoint, configs: dict[str, dict[str, Any]]) -> list[Graph]:
    """The parts of a Stable Diffusion. configs: what diffusers' folder says of each, by the names of its folders."""
    graphs = []
    readers = [name for name in configs if name.startswith("text_encoder")]
    for at, (name, config) in enumerate(zip(readers, checkpoint.texts.encoders, strict=True)):
        first = ("text_embeds", "last_hidden_state") if config.projection else ("last_hidden_state", "pooler_output")

        def ids(other: bool, at: int = at) -> Tensors:
            words = ["a photograph of an astronaut", "a horse, riding", ""][: 3 if other else 2]
            return (checkpoint.tokenizer.encode(words)[:, at].int(),)

        states = tuple(f"hidden_states.{i}" for i in range(config.layers + 1))
        make = _made(checkpoint, f"text.encoders.{at}", partial(ClipEncoder, config), Reader)
        graphs.append(Graph(name, make, {"input_ids": {0: BATCH}}, first + states, ids, configs[name]))
    return [*graphs, _guess(checkpoint, configs["unet"]), *_autoencoder(checkpoint, configs["vae"])]


def _guess(checkpoint: Checkpoint, said: dict[str, Any]) -> Graph:
    unet, more = checkpoint.unet, {}
    pooled, waves = 0, int(said.get("addition_time_embed_dim") or 0)
    if unet.vector_width:
        pooled = checkpoint.texts.encoders[-1].projection
        numbers = (unet.vector_width - pooled) // waves
        more = {"text_embeds": (pooled,), "time_ids": (numbers,)}
    if unet.guidance_width:
        more["timestep_cond"] = (unet.guidance_width,)

    def example(other: bool) -> Tensors:
        x = maps(unet.channels + unet.beside, unet.factor, other)
        words = random(len(x), checkpoint.texts.length * (2 if other else 1), unet.text_width)
        t = torch.tensor([601.0] if other else [601.0, 333.0])
        rest = (64 * random(len(x), *shape).abs() if name == "time_ids" else random(len(x), *shape)
                for name, shape in more.items())  # fmt: skip
        return x, t, words, *rest

    make = _made(checkpoint, "network", lambda: UNet(unet), lambda held: Guess(held, tuple(more), waves))
    inputs: dict[str, Sides] = {
        "sample": sides(unet.factor),
        "timestep": {0: ("steps", 1)},
        "encoder_hidden_states": {0: BATCH, 1: ("sequence_length", 1)},
        **{name: {0: BATCH} for name in more},
    }
    return Graph("unet", make, inputs, ("out_sample",), example, said)


def _autoencoder(checkpoint: Checkpoint, said: dict[str, Any]) -> list[Graph]:
    vae = checkpoint.vae

    def latents(other: bool) -> Tensors:
        return (maps(vae.latents, 4, other) / vae.scale + vae.shift,)

    def pictures(other: bool) -> Tensors:
        return (maps(3, 4 * vae.factor, other),)

    makes = (_made(checkpoint, "autoencoder", lambda: Vae(vae), half) for half in (Decodes, Encodes))
    decoder, encoder = makes
    return [
        Graph("vae_decoder", decoder, {"latent_sample": sides(1)}, ("sample",), latents, said),
        Graph("vae_encoder", encoder, {"sample": sides(vae.factor)}, ("latent_parameters",), pictures, said),
    ]


def _made(
    checkpoint: Checkpoint, part: str, build: Callable[[], nn.Module], wrap: Callable[[Any], nn.Module]
) -> Callable[[], nn.Module]:
    """A function that makes the part, with weights as they are stored but in float32."""

    def make() -> nn.Module:
        with torch.device("meta"):
            module = build()
        held = {name: to_float32(tensor) for name, tensor in checkpoint.part(part).items()}
        module.load_state_dict(held, assign=True)
        return wrap(module).eval().requires_grad_(False)

    return make
