"""A model of ours cut into graphs for other programs, and what these must know besides the graphs."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from unspeckle import configuration
from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.errors import InputError
from unspeckle.formats.export.graphs import (
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
from unspeckle.networks import NetworkConfig
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.transformer import TransformerConfig
from unspeckle.schedule import SCHEDULES
from unspeckle.text.text_encoder import TextEncoder
from unspeckle.text.tokenizer import PAD_ID, START_ID
from unspeckle.unclip import UnCLIPModel
from unspeckle.upsampler import UpsamplerModel


class TextEncoderGraph(nn.Module):
    """Ids (B, L) int32 to the tokens (B, L, D), their mean (B, D), and which of them are words (B, L)."""

    def __init__(self, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> TensorTuple:
        conditioning = self.text_encoder(input_ids)
        return conditioning.tokens, conditioning.vector, conditioning.mask


class DenoiserGraph(nn.Module):
    """The denoiser: x_t (B, C, H, W) and its time (1,) or (B,) in [0, 1] to the expected x, x̂ (B, C, H, W).

    extra_inputs: the names of the inputs behind encoder_attention_mask: "text_embeds" (B, P) and "concat"
    (B, C', H, W), or one of them."""

    def __init__(self, denoiser: Denoiser, extra_inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.denoiser, self.extra_inputs = denoiser, extra_inputs

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        *extras: Tensor,
    ) -> Tensor:
        extra_by_name = dict(zip(self.extra_inputs, extras, strict=True))
        conditioning = Conditioning(
            tokens=encoder_hidden_states,
            mask=encoder_attention_mask,
            vector=extra_by_name.get("text_embeds"),
            concat=extra_by_name.get("concat"),
        )
        out: Tensor = self.denoiser(sample, expand_to_batch(timestep, sample), conditioning)
        return out


class DecoderGraph(nn.Module):
    """Standardized latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1]."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.autoencoder.decode(latent_sample)


class EncoderGraph(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to standardized latents (B, C, h, w)."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, sample: Tensor) -> Tensor:
        return self.autoencoder.encode(sample)


def build_model_graphs(model: Model) -> list[ExportGraph]:
    """The graphs of a model of ours: text encoder, network, the student's network if there is one, autoencoder."""
    networks = [
        _denoiser_graph("transformer" if isinstance(model.network.config, TransformerConfig) else "unet", model)
    ]
    if model.student is not None:
        networks.append(_denoiser_graph("student", model.student))
    return [_text_encoder_graph(model), *networks, *_autoencoder_graphs(model.autoencoder)]


def _text_encoder_graph(model: Model) -> ExportGraph:
    if isinstance(model, UnCLIPModel | UpsamplerModel):
        raise InputError(f"{model.card.name!r}: no graphs of unCLIP models and upsamplers are supported")
    text_encoder = model.text_encoder
    if not isinstance(text_encoder, TextEncoder):
        raise InputError(f"{model.card.name!r}: graphs of its text encoder are not supported")

    def example_ids(alternate: bool) -> TensorTuple:
        prompts = [*model.card.vocabulary[:2], "a frog on stilts", ""]
        return (model.tokenizer.encode(prompts[:3] if alternate else prompts[-2:]).int(),)

    return ExportGraph(
        name="text_encoder",
        build_module=lambda: TextEncoderGraph(text_encoder).eval(),
        inputs={"input_ids": {0: BATCH_AXIS}},
        outputs=("last_hidden_state", "pooler_output", "attention_mask"),
        example_inputs=example_ids,
    )


def _autoencoder_graphs(autoencoder: Autoencoder) -> list[ExportGraph]:
    def example_latents(alternate: bool) -> TensorTuple:
        return (random_feature_maps(autoencoder.latent_channels, 8, alternate),)

    def example_images(alternate: bool) -> TensorTuple:
        return (random_feature_maps(3, 8 * autoencoder.downsampling_factor, alternate).clamp(-1, 1),)

    decoder = ExportGraph(
        name="vae_decoder",
        build_module=lambda: DecoderGraph(autoencoder).eval(),
        inputs={"latent_sample": image_axes(1)},
        outputs=("sample",),
        example_inputs=example_latents,
    )
    encoder = ExportGraph(
        name="vae_encoder",
        build_module=lambda: EncoderGraph(autoencoder).eval(),
        inputs={"sample": image_axes(autoencoder.downsampling_factor)},
        outputs=("latents",),
        example_inputs=example_images,
    )
    return [decoder, encoder]


def _denoiser_graph(name: str, model: Model) -> ExportGraph:
    config, context_length = cast(NetworkConfig, model.network.config), model.tokenizer.context_length
    multiple = config.size_multiple
    extra_axes: dict[str, DynamicAxes] = {}
    if config.vector_width:
        extra_axes["text_embeds"] = {0: BATCH_AXIS}
    if config.concat_channels:
        extra_axes["concat"] = image_axes(multiple)

    def example_inputs(alternate: bool) -> TensorTuple:
        x = random_feature_maps(config.channels, multiple, alternate)
        word_counts = torch.tensor([context_length, 2, 1])[: len(x), None]
        mask = torch.arange(context_length).expand(len(x), -1) < word_counts
        t = torch.tensor([0.6] if alternate else [0.6, 0.3])
        tokens = random_tensor(len(x), context_length, config.text_width)
        extras = []
        if config.vector_width:
            extras.append(random_tensor(len(x), config.vector_width))
        if config.concat_channels:
            extras.append(random_feature_maps(config.concat_channels, multiple, alternate))
        return x, t, tokens, mask, *extras

    axes: dict[str, DynamicAxes] = {
        "sample": image_axes(multiple),
        "timestep": {0: ("steps", 1)},
        "encoder_hidden_states": {0: BATCH_AXIS},
        "encoder_attention_mask": {0: BATCH_AXIS},
        **extra_axes,
    }
    return ExportGraph(
        name=name,
        build_module=lambda: DenoiserGraph(model.denoiser, tuple(extra_axes)).eval(),
        inputs=axes,
        outputs=("out_sample",),
        example_inputs=example_inputs,
    )


def describe_for_runtime(model: Model) -> dict[str, Any]:
    """What a program that draws with the graphs must know, as JSON values: the times of a drawing and the noise at
    each, how ids are padded, the latents, and the card."""
    card, denoiser = model.card, model.denoiser
    times = model.sampling_setup(card.sampler, card.timestep_spacing, card.steps).times
    alpha, sigma = denoiser.schedule(times)
    bounds = model.autoencoder.latent_bounds if card.clamp_denoised else None
    return {
        "format": 1,
        "predicts": "x",
        "schedule": configuration.kind_to_json(SCHEDULES, denoiser.schedule),
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
