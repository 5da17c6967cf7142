"""A model of ours cut into graphs for other programs, and what these must be told beside them."""

from typing import Any

import torch
from torch import Tensor, nn

from unspeckle import configuration, schedule
from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.formats.export.stable_diffusion_graphs import (
    BATCH_AXIS,
    DynamicAxes,
    ExportGraph,
    TensorTuple,
    expand_to_batch,
    image_axes,
    random_feature_maps,
    random_tensor,
)
from unspeckle.model import Model
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.transformer import TransformerConfig
from unspeckle.text.text_encoder import TextEncoder
from unspeckle.text.tokenizer import PAD_ID, START_ID


class TextEncoderGraph(nn.Module):
    """Ids (B, L) int32 to the tokens, which of them are words, and their mean."""

    def __init__(self, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> TensorTuple:
        conditioning = self.text_encoder(input_ids)
        return conditioning.tokens, conditioning.vector, conditioning.mask


class DenoiserGraph(nn.Module):
    """The denoiser: x_t (B, C, H, W) and its time (1,) or (B,) in [0, 1] to the picture that is expected, x̂."""

    def __init__(self, denoiser: Denoiser, extra_inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.denoiser, self.extra_inputs = denoiser, extra_inputs

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor,
        *extras: Tensor,
    ) -> Tensor:  # fmt: skip
        extra_by_name = dict(zip(self.extra_inputs, extras, strict=True))
        conditioning = Conditioning(
            encoder_hidden_states, encoder_attention_mask, extra_by_name.get("text_embeds"), extra_by_name.get("beside")
        )
        out: Tensor = self.denoiser(sample, expand_to_batch(timestep, sample), conditioning)
        return out


class DecoderGraph(nn.Module):
    """Latents of unit variance to pictures in [-1, 1]."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.autoencoder.decode(latent_sample)


class EncoderGraph(nn.Module):
    """Pictures in [-1, 1] to latents of unit variance."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, sample: Tensor) -> Tensor:
        return self.autoencoder.encode(sample)


def build_model_graphs(model: Model) -> list[ExportGraph]:
    """The parts of a model of ours, its student's network too."""
    text_encoder, autoencoder = model.text_encoder, model.autoencoder
    assert isinstance(text_encoder, TextEncoder)

    def example_ids(alternate: bool) -> TensorTuple:
        prompts = [*model.card.vocabulary[:2], "a frog on stilts", ""]
        return (model.tokenizer.encode(prompts[:3] if alternate else prompts[-2:]).int(),)

    def example_latents(alternate: bool) -> TensorTuple:
        return (random_feature_maps(autoencoder.latent_channels, 8, alternate),)

    def example_images(alternate: bool) -> TensorTuple:
        return (random_feature_maps(3, 8 * autoencoder.downsampling_factor, alternate).clamp(-1, 1),)

    outputs = ("last_hidden_state", "pooler_output", "attention_mask")
    batch_axes: DynamicAxes = {0: BATCH_AXIS}
    return [
        ExportGraph(
            "text_encoder",
            lambda: TextEncoderGraph(text_encoder).eval(),
            {"input_ids": batch_axes},
            outputs,
            example_ids,
        ),
        _denoiser_graph("transformer" if isinstance(model.network.config, TransformerConfig) else "unet", model),
        *([] if model.student is None else [_denoiser_graph("student", model.student)]),
        ExportGraph(
            "vae_decoder",
            lambda: DecoderGraph(autoencoder).eval(),
            {"latent_sample": image_axes(1)},
            ("sample",),
            example_latents,
        ),
        ExportGraph(
            "vae_encoder",
            lambda: EncoderGraph(autoencoder).eval(),
            {"sample": image_axes(autoencoder.downsampling_factor)},
            ("latents",),
            example_images,
        ),
    ]


def _denoiser_graph(name: str, model: Model) -> ExportGraph:
    config: Any = model.network.config
    sequence_length, multiple = model.tokenizer.context_length, config.size_multiple
    extra_axes: dict[str, DynamicAxes] = {}
    if config.vector_width:
        extra_axes["text_embeds"] = {0: BATCH_AXIS}
    if config.concat_channels:
        extra_axes["beside"] = image_axes(multiple)

    def example_inputs(alternate: bool) -> TensorTuple:
        x = random_feature_maps(config.channels, multiple, alternate)
        mask = torch.arange(sequence_length).expand(len(x), -1) < torch.tensor([sequence_length, 2, 1])[: len(x), None]
        extras = (random_feature_maps(config.concat_channels, multiple, alternate) if key == "beside" else random_tensor(len(x), config.vector_width)
                for key in extra_axes)  # fmt: skip
        t = torch.tensor([0.6] if alternate else [0.6, 0.3])
        return x, t, random_tensor(len(x), sequence_length, config.text_width), mask, *extras

    inputs: dict[str, DynamicAxes] = {
        "sample": image_axes(multiple), "timestep": {0: ("steps", 1)}, "encoder_hidden_states": {0: BATCH_AXIS},
        "encoder_attention_mask": {0: BATCH_AXIS}, **extra_axes,
    }  # fmt: skip
    return ExportGraph(
        name, lambda: DenoiserGraph(model.denoiser, tuple(extra_axes)).eval(), inputs, ("out_sample",), example_inputs
    )


def describe_for_runtime(model: Model) -> dict[str, Any]:
    """What a program must know that draws with the graphs: the times of a whole drawing and the noise at each, how ids
    are filled up, the latents, the card."""
    card, denoiser = model.card, model.denoiser
    times = model.sampling_setup(card.sampler, card.timestep_spacing, card.steps).times
    alpha, sigma = denoiser.schedule(times)
    bounds = model.autoencoder.latent_bounds if card.clamp_denoised else None
    return {
        "format": 1,
        "predicts": "x",
        "schedule": configuration.kind_to_json(schedule.SCHEDULES, denoiser.schedule),
        "times": {"t": times.tolist(), "alpha": alpha.tolist(), "sigma": sigma.tolist()},
        "ids": {"length": model.tokenizer.context_length, "pad": PAD_ID, "start": START_ID},
        "latents": {
            "channels": model.autoencoder.latent_channels,
            "factor": model.autoencoder.downsampling_factor,
            "bounds": None if bounds is None else [bound.flatten().tolist() for bound in bounds],
        },
        "card": configuration.to_json(card),
        "student": None if model.student is None else configuration.to_json(model.student.card),
    }
