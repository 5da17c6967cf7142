"""A model of ours cut into graphs for other programs, and what these must be told beside them."""

from typing import Any

import torch
from torch import Tensor, nn

from unspeckle import configuration, schedule
from unspeckle.denoiser import Denoiser, Conditioning
from unspeckle.formats.export.stable_diffusion_graphs import BATCH, Graph, Sides, Tensors, each, maps, random, sides
from unspeckle.model import Model
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.transformer import TransformerConfig
from unspeckle.text.text_encoder import TextEncoder
from unspeckle.text.tokenizer import PAD, START


class Reader(nn.Module):
    """Ids (B, L) int32 to the tokens, which of them are words, and their mean."""

    def __init__(self, text: TextEncoder) -> None:
        super().__init__()
        self.text = text

    def forward(self, input_ids: Tensor) -> Tensors:
        given = self.text(input_ids)
        return given.tokens, given.vector, given.mask


class Expects(nn.Module):
    """The denoiser: x_t (B, C, H, W) and its time (1,) or (B,) in [0, 1] to the picture that is expected, x̂."""

    def __init__(self, denoiser: Denoiser, more: tuple[str, ...]) -> None:
        super().__init__()
        self.denoiser, self.more = denoiser, more

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor,
        *more: Tensor,
    ) -> Tensor:  # fmt: skip
        told = dict(zip(self.more, more, strict=True))
        given = Conditioning(encoder_hidden_states, encoder_attention_mask, told.get("text_embeds"), told.get("beside"))
        out: Tensor = self.denoiser(sample, each(timestep, sample), given)
        return out


class Decodes(nn.Module):
    """Latents of unit variance to pictures in [-1, 1]."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.autoencoder.decode(latent_sample)


class Encodes(nn.Module):
    """Pictures in [-1, 1] to latents of unit variance."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, sample: Tensor) -> Tensor:
        return self.autoencoder.encode(sample)


def own(model: Model) -> list[Graph]:
    """The parts of a model of ours, its student's network too."""
    text, coder = model.text_encoder, model.autoencoder
    assert isinstance(text, TextEncoder)

    def ids(other: bool) -> Tensors:
        words = [*model.card.vocabulary[:2], "a frog on stilts", ""]
        return (model.tokenizer.encode(words[:3] if other else words[-2:]).int(),)

    def latents(other: bool) -> Tensors:
        return (maps(coder.channels, 8, other),)

    def pictures(other: bool) -> Tensors:
        return (maps(3, 8 * coder.factor, other).clamp(-1, 1),)

    outputs = ("last_hidden_state", "pooler_output", "attention_mask")
    free: Sides = {0: BATCH}
    return [
        Graph("text_encoder", lambda: Reader(text).eval(), {"input_ids": free}, outputs, ids),
        _network("transformer" if isinstance(model.network.config, TransformerConfig) else "unet", model),
        *([] if model.student is None else [_network("student", model.student)]),
        Graph("vae_decoder", lambda: Decodes(coder).eval(), {"latent_sample": sides(1)}, ("sample",), latents),
        Graph("vae_encoder", lambda: Encodes(coder).eval(), {"sample": sides(coder.factor)}, ("latents",), pictures),
    ]


def _network(name: str, model: Model) -> Graph:
    config: Any = model.network.config
    long, unit = model.tokenizer.length, config.factor
    more: dict[str, Sides] = {}
    if config.vector_width:
        more["text_embeds"] = {0: BATCH}
    if config.beside:
        more["beside"] = sides(unit)

    def example(other: bool) -> Tensors:
        x = maps(config.channels, unit, other)
        mask = torch.arange(long).expand(len(x), -1) < torch.tensor([long, 2, 1])[: len(x), None]
        rest = (maps(config.beside, unit, other) if key == "beside" else random(len(x), config.vector_width)
                for key in more)  # fmt: skip
        t = torch.tensor([0.6] if other else [0.6, 0.3])
        return x, t, random(len(x), long, config.text_width), mask, *rest

    inputs: dict[str, Sides] = {
        "sample": sides(unit), "timestep": {0: ("steps", 1)}, "encoder_hidden_states": {0: BATCH},
        "encoder_attention_mask": {0: BATCH}, **more,
    }  # fmt: skip
    return Graph(name, lambda: Expects(model.denoiser, tuple(more)).eval(), inputs, ("out_sample",), example)


def told(model: Model) -> dict[str, Any]:
    """What a program must know that draws with the graphs: the times of a whole drawing and the noise at each, how ids
    are filled up, the latents, the card."""
    card, denoiser = model.card, model.denoiser
    times = model.sampling_setup(card.sampler, card.timestep_spacing, card.steps).times
    alpha, sigma = denoiser.schedule(times)
    bounds = model.autoencoder.bounds if card.clamp_denoised else None
    return {
        "format": 1,
        "predicts": "x",
        "schedule": configuration.kind_to_json(schedule.SCHEDULES, denoiser.schedule),
        "times": {"t": times.tolist(), "alpha": alpha.tolist(), "sigma": sigma.tolist()},
        "ids": {"length": model.tokenizer.length, "pad": PAD, "start": START},
        "latents": {
            "channels": model.autoencoder.channels,
            "factor": model.autoencoder.factor,
            "bounds": None if bounds is None else [side.flatten().tolist() for side in bounds],
        },
        "card": configuration.to_json(card),
        "student": None if model.student is None else configuration.to_json(model.student.card),
    }
