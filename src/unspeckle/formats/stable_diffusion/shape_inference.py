"""The sizes of a single file's modules, which it does not state, from the names and shapes of its tensors."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.original_names import UNET_PREFIX, VAE_PREFIX
from unspeckle.networks.unet import UNetConfig
from unspeckle.networks.vae import VAEConfig
from unspeckle.text.clip import CLIPTextConfig


class TensorShapes:
    """The shapes of one part's tensors, by their names without the prefix that they have in the file.

    InputError, naming the tensor, where one is missing or has a shape that makes no sense."""

    def __init__(self, tensors: Mapping[str, Tensor], file: Path, prefix: str) -> None:
        self.tensors, self.file, self.prefix = tensors, file, prefix

    def dim_size(self, name: str, dim: int) -> int:
        """The size of one dimension of a tensor."""
        tensor = self.tensors.get(name)
        if tensor is None or tensor.ndim <= dim or not tensor.shape[dim]:
            problem = "lacks the tensor" if tensor is None else "has a tensor of the wrong shape:"
            raise InputError(f"{self.file}: {problem} '{self.prefix}{name}'; copy or download it again")
        return tensor.shape[dim]

    def optional_dim_size(self, name: str, dim: int) -> int:
        """The same, or 0 where there is no such tensor."""
        return self.dim_size(name, dim) if name in self.tensors else 0

    def count_numbered(self, pattern: str) -> int:
        """How many modules there are whose numbers, from 0 on, the pattern's group matches."""
        matches = (re.match(pattern, name) for name in self.tensors)
        numbers = {int(match[1]) for match in matches if match and len(match[1]) < 5}
        return max(numbers, default=-1) + 1

    def channel_multipliers(self, names: Sequence[str], base_channels: int) -> tuple[int, ...]:
        """The output channels of the named convolutions, as multiples of the base channels."""
        channels = [self.dim_size(name, 0) for name in names]
        if any(count % base_channels for count in channels):
            raise InputError(
                f"{self.file}: the widths {channels} of '{self.prefix}' are not multiples of {base_channels}"
            )
        return tuple(count // base_channels for count in channels)


def infer_unet_config(tensors: Mapping[str, Tensor], file: Path) -> UNetConfig:
    """The sizes of a U-Net from its tensors in the original layout, without their prefix."""
    shapes = TensorShapes(tensors, file, UNET_PREFIX)
    base_channels = shapes.dim_size("input_blocks.0.0.weight", 0)
    out_channels = shapes.dim_size("out.2.weight", 0)
    input_blocks = shapes.count_numbered(r"input_blocks\.(\d+)\.")
    downsamplers = [n for n in range(input_blocks) if f"input_blocks.{n}.0.op.weight" in tensors]
    modules_per_level = downsamplers[0] if downsamplers else input_blocks
    level_starts = [1 + modules_per_level * level for level in range(len(downsamplers) + 1)]
    expected_downsamplers = [modules_per_level * (level + 1) for level in range(len(downsamplers))]
    if modules_per_level < 2 or downsamplers != expected_downsamplers:
        raise InputError(f"{file}: the {input_blocks} input blocks of its U-Net form no levels of a supported U-Net")
    projection = tensors.get("middle_block.1.proj_in.weight")
    is_linear = projection is not None and projection.ndim == 2
    level_convolutions = [f"input_blocks.{n}.0.out_layers.3.weight" for n in level_starts]
    return UNetConfig(
        channels=out_channels,
        concat_channels=shapes.dim_size("input_blocks.0.0.weight", 1) - out_channels,
        base_channels=base_channels,
        channel_multipliers=shapes.channel_multipliers(level_convolutions, base_channels),
        blocks_per_level=modules_per_level - 1,
        transformer_depths=tuple(
            shapes.count_numbered(rf"input_blocks\.{n}\.1\.transformer_blocks\.(\d+)\.") for n in level_starts
        ),
        mid_transformer_depth=shapes.count_numbered(r"middle_block\.1\.transformer_blocks\.(\d+)\."),
        self_attention=(True,) * len(level_starts),
        feed_forward=True,
        transformer_projection="linear" if is_linear else "conv",
        head_width=64,
        heads=0 if is_linear else 8,
        text_width=shapes.dim_size("middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
        vector_width=shapes.optional_dim_size("label_emb.0.0.weight", 1),
        guidance_width=shapes.optional_dim_size("time_embed.cond_proj.weight", 1),
        scale_shift=False,
        time_scale=1.0,
    )


def infer_vae_config(tensors: Mapping[str, Tensor], scaling_factor: float, file: Path) -> VAEConfig:
    """The sizes of an autoencoder from its tensors in the original layout, without their prefix. scaling_factor: of its
    latents, which no tensor tells."""
    shapes = TensorShapes(tensors, file, VAE_PREFIX)
    base_channels = shapes.dim_size("encoder.conv_in.weight", 0)
    levels = shapes.count_numbered(r"encoder\.down\.(\d+)\.")
    level_convolutions = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(levels)]
    return VAEConfig(
        latent_channels=shapes.dim_size("decoder.conv_in.weight", 1),
        base_channels=base_channels,
        channel_multipliers=shapes.channel_multipliers(level_convolutions, base_channels),
        blocks_per_level=shapes.count_numbered(r"encoder\.down\.0\.block\.(\d+)\."),
        use_quant_conv="quant_conv.weight" in tensors,
        scaling_factor=scaling_factor,
    )


def infer_clip_config(tensors: Mapping[str, Tensor], is_openclip: bool, is_xl: bool, file: Path) -> CLIPTextConfig:
    """The sizes of a text encoder from its tensors without their prefix. is_openclip: whether they have OpenCLIP's
    names, not those of transformers. is_xl: whether it is read as SDXL does, which decides what is read of it."""
    shapes = TensorShapes(tensors, file, "")
    embeddings = "" if is_openclip else "text_model.embeddings."
    layer_prefix = "transformer.resblocks" if is_openclip else "text_model.encoder.layers"
    token_key = f"{embeddings}token_embedding.weight"
    position_key = "positional_embedding" if is_openclip else f"{embeddings}position_embedding.weight"
    vocab_size, width = shapes.dim_size(token_key, 0), shapes.dim_size(token_key, 1)
    layers = shapes.count_numbered(rf"{re.escape(layer_prefix)}\.(\d+)\.")
    # Stable Diffusion 2 reads the last layer but one, so that the last is not needed
    ignores_last_layer = is_openclip and not is_xl and "text_projection" in tensors
    return CLIPTextConfig(
        width=width,
        layers=layers - 1 if ignores_last_layer else layers,
        heads=max(width // 64, 1),
        feed_forward_width=shapes.dim_size(f"{layer_prefix}.0.mlp.{'c_fc' if is_openclip else 'fc1'}.weight", 0),
        vocab_size=vocab_size,
        context_length=shapes.dim_size(position_key, 0),
        eos_token_id=min(49407, vocab_size - 1),
        quick_gelu=not is_openclip,
        projection_width=shapes.dim_size("text_projection", 1) if is_openclip and is_xl else 0,
        skipped_layers=int(is_xl),
        normalize_tokens=not is_xl,
    )
