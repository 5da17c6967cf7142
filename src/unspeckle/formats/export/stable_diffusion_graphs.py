"""A Stable Diffusion cut into graphs for other programs.

Each part is a module that takes and gives tensors by the names, and in the units, that optimum and the ONNX pipeline of
diffusers expect."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning
from unspeckle.errors import InputError
from unspeckle.formats.checkpoint_parts import CheckpointPart
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
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.weight_dtypes import to_float32
from unspeckle.networks.layers import sinusoidal_embedding
from unspeckle.networks.unet import UNet
from unspeckle.networks.vae import VAE
from unspeckle.text.clip import CLIPTextEncoder

GraphBuilder = Callable[[StableDiffusionCheckpoint, str, CheckpointPart, dict[str, Any]], list[ExportGraph]]
EXAMPLE_PROMPTS = ("a photograph of an astronaut", "a horse, riding", "")


class CLIPTextGraph(nn.Module):
    """CLIP's ids (B, L) int32 to what transformers' text models return: last_hidden_state (B, L, D) and the pooled
    vector (in the order of the model class), then hidden_states, those before, between and behind all layers."""

    def __init__(self, encoder: CLIPTextEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> TensorTuple:
        encoder = self.encoder
        hidden_states = [encoder.token_embedding(input_ids) + encoder.position_embedding[: input_ids.shape[1]]]
        for layer in encoder.layers:
            hidden_states.append(layer(hidden_states[-1]))
        last = encoder.final_norm(hidden_states[-1])
        end_positions = (input_ids == encoder.config.eos_token_id).int().argmax(1)
        vector = encoder.text_projection(last[torch.arange(last.shape[0]), end_positions])
        first_outputs = (vector, last) if encoder.config.projection_width else (last, vector)
        return first_outputs + tuple(hidden_states)


class UNetGraph(nn.Module):
    """What the U-Net predicts (eps or v) from the inputs of UNet2DConditionModel.

    timestep: (1,) or (B,), counted from 0. extra_inputs: the names of the inputs behind encoder_hidden_states.
    time_embed_dim: width of the sinusoids of each of SDXL's time_ids."""

    def __init__(self, unet: UNet, extra_inputs: tuple[str, ...], time_embed_dim: int) -> None:
        super().__init__()
        self.unet, self.extra_inputs, self.time_embed_dim = unet, extra_inputs, time_embed_dim

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *extras: Tensor) -> Tensor:
        extra_by_name, channels = dict(zip(self.extra_inputs, extras, strict=True)), self.unet.config.channels
        vectors = [extra_by_name["text_embeds"]] if "text_embeds" in extra_by_name else []
        if "time_ids" in extra_by_name:
            time_ids = extra_by_name["time_ids"]
            vectors.append(sinusoidal_embedding(time_ids.flatten(), self.time_embed_dim).view(time_ids.shape[0], -1))
        vectors += [extra_by_name["timestep_cond"]] if "timestep_cond" in extra_by_name else []
        concat = sample[:, channels:] if self.unet.config.concat_channels else None
        conditioning = Conditioning(encoder_hidden_states, None, torch.cat(vectors, 1) if vectors else None, concat)
        out: Tensor = self.unet(sample[:, :channels], expand_to_batch(timestep, sample), conditioning)
        return out


class VAEDecoderGraph(nn.Module):
    """Latents (B, C, h, w), not standardized, to images (B, 3, H, W) in [-1, 1]."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent_sample: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.post_quant_conv(latent_sample))
        return out


class VAEEncoderGraph(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to mean and log-variance of their latents (B, 2·C, h, w), not standardized."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, sample: Tensor) -> Tensor:
        out: Tensor = self.quant_conv(self.encoder(sample))
        return out


def build_stable_diffusion_graphs(
    checkpoint: StableDiffusionCheckpoint, configs: Mapping[str, dict[str, Any]]
) -> list[ExportGraph]:
    """The graphs of all parts, text encoders first. configs: the content of each part's config.json in a diffusers
    folder, by the part's folder. InputError where there are no graphs for one of the parts."""
    graphs = []
    for name, part in {**checkpoint.text_encoder_parts, **checkpoint.parts}.items():
        if part.module_class not in GRAPH_BUILDERS:
            raise InputError(f"{checkpoint.path}: graphs of its part {part.folder!r} are not supported")
        graphs += GRAPH_BUILDERS[part.module_class](checkpoint, name, part, configs[part.folder])
    return graphs


def _clip_graphs(
    checkpoint: StableDiffusionCheckpoint, name: str, part: CheckpointPart, config_json: dict[str, Any]
) -> list[ExportGraph]:
    index = list(checkpoint.text_encoder_parts).index(name)
    with_projection, without = ("text_embeds", "last_hidden_state"), ("last_hidden_state", "pooler_output")
    outputs = with_projection if part.config.projection_width else without
    hidden_states = tuple(f"hidden_states.{i}" for i in range(part.config.layers + 1))

    def example_inputs(alternate: bool) -> TensorTuple:
        prompts = list(EXAMPLE_PROMPTS[: 3 if alternate else 2])
        return (checkpoint.tokenizer.encode(prompts)[:, index].int(),)

    return [
        ExportGraph(
            name=part.folder,
            build_module=_module_builder(checkpoint, name, CLIPTextGraph),
            inputs={"input_ids": {0: BATCH_AXIS}},
            outputs=outputs + hidden_states,
            example_inputs=example_inputs,
            config=config_json,
        )
    ]


def _unet_graphs(
    checkpoint: StableDiffusionCheckpoint, name: str, part: CheckpointPart, config_json: dict[str, Any]
) -> list[ExportGraph]:
    config, inputs = part.config, checkpoint.network_inputs
    time_embed_dim = int(config_json.get("addition_time_embed_dim") or 0)
    extra_widths: dict[str, int] = {}
    if inputs.size_embedding_width:
        extra_widths["text_embeds"] = config.vector_width - inputs.size_embedding_width
        extra_widths["time_ids"] = inputs.size_embedding_width // time_embed_dim
    if inputs.guidance_embedding_width:
        extra_widths["timestep_cond"] = inputs.guidance_embedding_width
    extra_inputs, context_length = tuple(extra_widths), checkpoint.text_encoder.config.context_length

    def example_inputs(alternate: bool) -> TensorTuple:
        x = random_feature_maps(config.channels + config.concat_channels, config.size_multiple, alternate)
        tokens = random_tensor(len(x), context_length * (2 if alternate else 1), config.text_width)
        t = torch.tensor([601.0] if alternate else [601.0, 333.0])
        extras = {extra: random_tensor(len(x), width) for extra, width in extra_widths.items()}
        if "time_ids" in extras:
            extras["time_ids"] = 64 * extras["time_ids"].abs()
        return x, t, tokens, *extras.values()

    axes: dict[str, DynamicAxes] = {
        "sample": image_axes(config.size_multiple),
        "timestep": {0: ("steps", 1)},
        "encoder_hidden_states": {0: BATCH_AXIS, 1: ("sequence_length", 1)},
        **{extra: {0: BATCH_AXIS} for extra in extra_inputs},
    }
    return [
        ExportGraph(
            name=part.folder,
            build_module=_module_builder(checkpoint, name, lambda unet: UNetGraph(unet, extra_inputs, time_embed_dim)),
            inputs=axes,
            outputs=("out_sample",),
            example_inputs=example_inputs,
            config=config_json,
        )
    ]


def _vae_graphs(
    checkpoint: StableDiffusionCheckpoint, name: str, part: CheckpointPart, config_json: dict[str, Any]
) -> list[ExportGraph]:
    config = part.config

    def example_latents(alternate: bool) -> TensorTuple:
        latents = random_feature_maps(config.latent_channels, 4, alternate)
        return (latents / config.scaling_factor + config.shift_factor,)

    def example_images(alternate: bool) -> TensorTuple:
        return (random_feature_maps(3, 4 * config.downsampling_factor, alternate),)

    decoder = ExportGraph(
        name=f"{part.folder}_decoder",
        build_module=_module_builder(checkpoint, name, VAEDecoderGraph),
        inputs={"latent_sample": image_axes(1)},
        outputs=("sample",),
        example_inputs=example_latents,
        config=config_json,
    )
    encoder = ExportGraph(
        name=f"{part.folder}_encoder",
        build_module=_module_builder(checkpoint, name, VAEEncoderGraph),
        inputs={"sample": image_axes(config.downsampling_factor)},
        outputs=("latent_parameters",),
        example_inputs=example_images,
        config=config_json,
    )
    return [decoder, encoder]


def _module_builder(
    checkpoint: StableDiffusionCheckpoint, name: str, wrap: Callable[[Any], nn.Module]
) -> Callable[[], nn.Module]:
    """A function that builds the part of that name with its weights in float32, in the wrapper of its graph."""

    def build_module() -> nn.Module:
        module = checkpoint.parts[name].build()
        tensors = {key: to_float32(tensor) for key, tensor in checkpoint.part_tensors(name).items()}
        module.load_state_dict(tensors, assign=True)
        return wrap(module).eval().requires_grad_(False)

    return build_module


# How each module is cut into graphs; a new module is one more row
GRAPH_BUILDERS: dict[Callable[[Any], nn.Module], GraphBuilder] = {
    CLIPTextEncoder: _clip_graphs,
    UNet: _unet_graphs,
    VAE: _vae_graphs,
}
