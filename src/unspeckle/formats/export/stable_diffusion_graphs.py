"""A Stable Diffusion cut into graphs for other programs: a module for each part, which takes and gives tensors by the
names, and in the units, that optimum and diffusers' own ONNX pipeline expect."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.model_io.weight_dtypes import to_float32
from unspeckle.networks.layers import sinusoidal_embedding
from unspeckle.networks.unet import UNet
from unspeckle.networks.vae import VAE
from unspeckle.text.clip import CLIPTextEncoder

BATCH_AXIS = ("batch_size", 1)
DynamicAxes = dict[int, tuple[str, int]]  # the dimensions that are free: a name, and what they are a multiple of
TensorTuple = tuple[Tensor, ...]


@dataclass(frozen=True)
class ExportGraph:
    """One part. make: the module in float32, which takes the inputs in order; example: a question, of the sides to
    trace with, or of other ones."""

    name: str  # of its folder
    build_module: Callable[[], nn.Module]
    inputs: dict[str, DynamicAxes]
    outputs: tuple[str, ...]
    example_inputs: Callable[[bool], TensorTuple]
    config: dict[str, Any] = field(default_factory=dict)  # its config.json


class ClipTextGraph(nn.Module):
    """CLIP's ids (B, L) int32 to what transformers' text models give: hidden states are those between all layers."""

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
        return ((vector, last) if encoder.config.projection_width else (last, vector)) + tuple(hidden_states)


class UNetGraph(nn.Module):
    """What the U-Net predicts (eps or v), of what UNet2DConditionModel takes; timestep (1,) or (B,), an entry."""

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
    """Latents, as the decoder itself wants them, to pictures in [-1, 1]."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent_sample: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.post_quant_conv(latent_sample))
        return out


class VAEEncoderGraph(nn.Module):
    """Pictures to the mean and log-variance of latents, as the encoder itself gives them."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, sample: Tensor) -> Tensor:
        out: Tensor = self.quant_conv(self.encoder(sample))
        return out


def expand_to_batch(t: Tensor, x: Tensor) -> Tensor:
    """t (1,) or (B,) as (B,), by an index that is right for both: a graph knows no if."""
    return t[torch.minimum(torch.arange(x.shape[0]), torch.arange(t.shape[0])[-1])]


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def image_axes(multiple: int) -> DynamicAxes:
    """Of a batch of maps whose height and width are multiples of the unit."""
    return {0: BATCH_AXIS, 2: ("height", multiple), 3: ("width", multiple)}


def random_feature_maps(channels: int, multiple: int, alternate: bool) -> Tensor:
    """Two of 2 × 3 units, or three of 4 × 2."""
    return (
        random_tensor(3, channels, 4 * multiple, 2 * multiple)
        if alternate
        else random_tensor(2, channels, 2 * multiple, 3 * multiple)
    )


def build_stable_diffusion_graphs(
    checkpoint: StableDiffusionCheckpoint, configs: dict[str, dict[str, Any]]
) -> list[ExportGraph]:
    """The parts of a Stable Diffusion. configs: what diffusers' folder says of each, by the names of its folders."""
    graphs = []
    encoder_folders = [name for name in configs if name.startswith("text_encoder")]
    for index, (name, config) in enumerate(zip(encoder_folders, checkpoint.text_config.encoders, strict=True)):
        first_outputs = (
            ("text_embeds", "last_hidden_state") if config.projection_width else ("last_hidden_state", "pooler_output")
        )

        def example_ids(alternate: bool, index: int = index) -> TensorTuple:
            prompts = ["a photograph of an astronaut", "a horse, riding", ""][: 3 if alternate else 2]
            return (checkpoint.tokenizer.encode(prompts)[:, index].int(),)

        hidden_states = tuple(f"hidden_states.{i}" for i in range(config.layers + 1))
        build_module = _module_builder(
            checkpoint, f"text.encoders.{index}", partial(CLIPTextEncoder, config), ClipTextGraph
        )
        graphs.append(
            ExportGraph(
                name,
                build_module,
                {"input_ids": {0: BATCH_AXIS}},
                first_outputs + hidden_states,
                example_ids,
                configs[name],
            )
        )
    return [*graphs, _unet_graph(checkpoint, configs["unet"]), *_vae_graphs(checkpoint, configs["vae"])]


def _unet_graph(checkpoint: StableDiffusionCheckpoint, config: dict[str, Any]) -> ExportGraph:
    unet_config, extra_inputs = checkpoint.unet_config, {}
    pooled_width, time_embed_dim = 0, int(config.get("addition_time_embed_dim") or 0)
    if unet_config.vector_width:
        pooled_width = checkpoint.text_config.encoders[-1].projection_width
        time_id_count = (unet_config.vector_width - pooled_width) // time_embed_dim
        extra_inputs = {"text_embeds": (pooled_width,), "time_ids": (time_id_count,)}
    if unet_config.guidance_width:
        extra_inputs["timestep_cond"] = (unet_config.guidance_width,)

    def example_inputs(alternate: bool) -> TensorTuple:
        x = random_feature_maps(
            unet_config.channels + unet_config.concat_channels, unet_config.size_multiple, alternate
        )
        text_states = random_tensor(
            len(x), checkpoint.text_config.context_length * (2 if alternate else 1), unet_config.text_width
        )
        t = torch.tensor([601.0] if alternate else [601.0, 333.0])
        extras = (64 * random_tensor(len(x), *shape).abs() if name == "time_ids" else random_tensor(len(x), *shape)
                for name, shape in extra_inputs.items())  # fmt: skip
        return x, t, text_states, *extras

    build_module = _module_builder(
        checkpoint,
        "network",
        lambda: UNet(unet_config),
        lambda module: UNetGraph(module, tuple(extra_inputs), time_embed_dim),
    )
    inputs: dict[str, DynamicAxes] = {
        "sample": image_axes(unet_config.size_multiple),
        "timestep": {0: ("steps", 1)},
        "encoder_hidden_states": {0: BATCH_AXIS, 1: ("sequence_length", 1)},
        **{name: {0: BATCH_AXIS} for name in extra_inputs},
    }
    return ExportGraph("unet", build_module, inputs, ("out_sample",), example_inputs, config)


def _vae_graphs(checkpoint: StableDiffusionCheckpoint, config: dict[str, Any]) -> list[ExportGraph]:
    vae_config = checkpoint.vae_config

    def example_latents(alternate: bool) -> TensorTuple:
        return (
            random_feature_maps(vae_config.latent_channels, 4, alternate) / vae_config.scaling_factor
            + vae_config.shift_factor,
        )

    def example_images(alternate: bool) -> TensorTuple:
        return (random_feature_maps(3, 4 * vae_config.downsampling_factor, alternate),)

    builders = (
        _module_builder(checkpoint, "autoencoder", lambda: VAE(vae_config), wrapper)
        for wrapper in (VAEDecoderGraph, VAEEncoderGraph)
    )
    build_decoder, build_encoder = builders
    return [
        ExportGraph(
            "vae_decoder", build_decoder, {"latent_sample": image_axes(1)}, ("sample",), example_latents, config
        ),
        ExportGraph(
            "vae_encoder",
            build_encoder,
            {"sample": image_axes(vae_config.downsampling_factor)},
            ("latent_parameters",),
            example_images,
            config,
        ),
    ]


def _module_builder(
    checkpoint: StableDiffusionCheckpoint,
    part: str,
    make_module: Callable[[], nn.Module],
    wrap_module: Callable[[Any], nn.Module],
) -> Callable[[], nn.Module]:
    """A function that makes the part, with weights as they are stored but in float32."""

    def build_module() -> nn.Module:
        with torch.device("meta"):
            module = make_module()
        tensors = {name: to_float32(tensor) for name, tensor in checkpoint.part_tensors(part).items()}
        module.load_state_dict(tensors, assign=True)
        return wrap_module(module).eval().requires_grad_(False)

    return build_module
