"""A single file of the original code, to and from a Checkpoint: it says nothing of itself, so its shapes must."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer as BPE
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion import original_names
from unspeckle.formats.stable_diffusion.checkpoint import (
    SchedulerDefaults,
    StableDiffusionCheckpoint,
    convert_tensors,
    module_name_table,
)
from unspeckle.formats.stable_diffusion.clip_vocabulary import find_tokenizer
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.networks.vae import VAE, VAEConfig
from unspeckle.schedule import STABLE_DIFFUSION
from unspeckle.text.clip import CLIPTextConfig, CLIPTextEncoder, CLIPTextEncodersConfig
from unspeckle.text.clip_tokenizer import END_TOKEN, CLIPTokenizer

PREDICTION_NAMES = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v", "v-prediction": "v"}
LATENT_SCALE_KEY = "unspeckle.latent_scale"  # in the metadata, where it is not its kind's
LATENT_SCALES = {False: 0.18215, True: 0.13025}  # of the latents: Rombach et al. 2022; XL


def read_single_file(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path, prediction: str | None = None,
    vocabulary: BPE | None = None,
) -> StableDiffusionCheckpoint:  # fmt: skip
    """The file's model; vocabulary: where none is to be looked for. InputError, one line, where it is of no known kind,
    incomplete or undecidable."""
    unet_tensors = _tensors_with_prefix(tensors, original_names.UNET_PREFIX)
    if "input_blocks.0.0.weight" not in unet_tensors:
        raise InputError(
            f"{file}: {_describe_unknown_file(tensors)}; a model is Stable Diffusion 1, 2 or XL, or one of ours"
        )
    unet_config, is_xl = _infer_unet_config(unet_tensors, file), "label_emb.0.0.weight" in unet_tensors
    vae_tensors = _tensors_with_prefix(tensors, original_names.VAE_PREFIX)
    vae_config = infer_vae_config(vae_tensors, float(metadata.get(LATENT_SCALE_KEY) or LATENT_SCALES[is_xl]), file)
    text_parts = [
        (prefix, is_openclip, encoder_tensors)
        for prefix, is_openclip in original_names.TEXT_PREFIXES
        if (encoder_tensors := _tensors_with_prefix(tensors, prefix))
    ]
    if not text_parts:
        raise InputError(f"{file}: holds no text encoder that is known here, only its U-Net; get the whole model")
    ignored = original_names.IGNORED_PATTERN
    encoder_configs = []
    for index, (prefix, is_openclip, encoder_tensors) in enumerate(text_parts):
        if not is_openclip and "embeddings.token_embedding.weight" in encoder_tensors:
            text_parts[index] = (
                prefix,
                is_openclip,
                encoder_tensors := {f"text_model.{name}": tensor for name, tensor in encoder_tensors.items()},
            )
        config = _infer_clip_config(encoder_tensors, is_openclip, is_xl, file)
        encoder_configs.append(config)
        if is_openclip and not is_xl:  # Stable Diffusion 2 reads the last layer but one
            ignored += rf"|transformer\.resblocks\.{config.layers}\.|text_projection$"
    first_config, pad_tokens = (
        encoder_configs[0],
        ["!" if is_openclip else END_TOKEN for _, is_openclip, _ in text_parts],
    )
    checkpoint = StableDiffusionCheckpoint(
        path=file,
        unet_config=unet_config,
        vae_config=vae_config,
        text_config=CLIPTextEncodersConfig(tuple(encoder_configs), is_xl, is_xl and len(encoder_configs) == 2),
        tokenizer=CLIPTokenizer(vocabulary, first_config.context_length, pad_tokens)
        if vocabulary
        else find_tokenizer(file.parent, first_config, pad_tokens),
        scheduler_defaults=SchedulerDefaults(),
    )
    checkpoint.scheduler_defaults = _infer_scheduler_defaults(checkpoint, tensors, metadata, prediction)
    known_prefixes = (original_names.UNET_PREFIX, original_names.VAE_PREFIX, *(prefix for prefix, _, _ in text_parts))
    unknown = [name for name in tensors if not name.startswith(known_prefixes) and not re.match(ignored, name)]
    if unknown:
        raise InputError(f"{file}: has a spare tensor '{sorted(unknown)[0][:100]}' that no model known here has")
    our_tensors = {
        "network": convert_tensors(
            UNet, unet_config, module_name_table(UNet, unet_config, original_names.UNET), unet_tensors, file, ignored
        ),
        "autoencoder": convert_tensors(
            VAE, vae_config, module_name_table(VAE, vae_config, original_names.VAE), vae_tensors, file, ignored
        ),
    }
    for index, (config, (_, is_openclip, encoder_tensors)) in enumerate(zip(encoder_configs, text_parts, strict=True)):
        rules = original_names.OPENCLIP if is_openclip else original_names.OPENAI
        our_tensors[f"text.encoders.{index}"] = convert_tensors(
            CLIPTextEncoder, config, module_name_table(CLIPTextEncoder, config, rules), encoder_tensors, file, ignored
        )
    checkpoint.tensors = {
        f"{part}.{name}": tensor for part, part_tensors in our_tensors.items() for name, tensor in part_tensors.items()
    }
    return checkpoint


def _tensors_with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _describe_unknown_file(tensors: Mapping[str, Tensor]) -> str:
    names = sorted(tensors)
    if any("lora" in name for name in names):
        return "is a LoRA, which changes a model but is none (--lora adds it to one)"
    if any(name.startswith(("decoder.", original_names.VAE_PREFIX + "decoder.")) for name in names):
        return "is an autoencoder without a U-Net"
    return f"holds no U-Net that is known here but {len(names)} tensors like '{names[0][:60]}'" if names else "is empty"


class _TensorShapes:
    """The shapes in one part; InputError where one is missing or makes no sense."""

    def __init__(self, tensors: Mapping[str, Tensor], file: Path, prefix: str) -> None:
        self.tensors, self.file, self.prefix = tensors, file, prefix

    def dim_size(self, name: str, dim: int) -> int:
        tensor = self.tensors.get(name)
        if tensor is None or tensor.ndim <= dim or not tensor.shape[dim]:
            problem = "lacks the tensor" if tensor is None else "has an ill-shaped tensor"
            raise InputError(f"{self.file}: {problem} '{self.prefix}{name}'; copy or download it again")
        return tensor.shape[dim]

    def count_numbered(self, pattern: str) -> int:
        """How many there are of what the pattern's group numbers from 0 on."""
        numbers = {int(match[1]) for name in self.tensors if (match := re.match(pattern, name)) and len(match[1]) < 5}
        return max(numbers, default=-1) + 1

    def width_multipliers(self, names: Sequence[str], base_width: int) -> tuple[int, ...]:
        widths = [self.dim_size(name, 0) for name in names]
        if any(width % base_width for width in widths):
            raise InputError(f"{self.file}: the widths {widths} of '{self.prefix}' are no multiples of {base_width}")
        return tuple(width // base_width for width in widths)


def _infer_unet_config(tensors: Mapping[str, Tensor], file: Path) -> UNetConfig:
    shapes = _TensorShapes(tensors, file, original_names.UNET_PREFIX)
    input_block_count = shapes.count_numbered(r"input_blocks\.(\d+)\.")
    downsample_indices = [n for n in range(input_block_count) if f"input_blocks.{n}.0.op.weight" in tensors]
    blocks_per_level = downsample_indices[0] if downsample_indices else input_block_count
    level_starts = [1 + blocks_per_level * level for level in range(len(downsample_indices) + 1)]
    width, out_channels = shapes.dim_size("input_blocks.0.0.weight", 0), shapes.dim_size("out.2.weight", 0)
    if blocks_per_level < 2 or downsample_indices != [
        blocks_per_level * (i + 1) for i in range(len(downsample_indices))
    ]:
        raise InputError(f"{file}: its U-Net's {input_block_count} blocks stand on no levels that are known here")
    middle_key = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    is_linear = (
        tensors["middle_block.1.proj_in.weight"].ndim == 2 if "middle_block.1.proj_in.weight" in tensors else False
    )
    return UNetConfig(
        channels=out_channels,
        concat_channels=shapes.dim_size("input_blocks.0.0.weight", 1) - out_channels,
        base_channels=width,
        channel_multipliers=shapes.width_multipliers(
            [f"input_blocks.{n}.0.out_layers.3.weight" for n in level_starts], width
        ),
        blocks_per_level=blocks_per_level - 1,
        transformer_depths=tuple(
            shapes.count_numbered(rf"input_blocks\.{n}\.1\.transformer_blocks\.(\d+)\.") for n in level_starts
        ),
        mid_transformer_depth=shapes.count_numbered(r"middle_block\.1\.transformer_blocks\.(\d+)\."),
        self_attention=(True,) * len(level_starts),
        feed_forward=True,
        transformer_projection="linear" if is_linear else "conv",
        head_width=64,
        heads=0 if is_linear else 8,
        text_width=shapes.dim_size(middle_key, 1),
        vector_width=shapes.dim_size("label_emb.0.0.weight", 1) if "label_emb.0.0.weight" in tensors else 0,
        guidance_width=shapes.dim_size("time_embed.cond_proj.weight", 1)
        if "time_embed.cond_proj.weight" in tensors
        else 0,
        scale_shift=False,
        time_scale=1.0,
    )


def infer_vae_config(tensors: Mapping[str, Tensor], scale: float, file: Path) -> VAEConfig:
    """The sizes of the autoencoder that has these tensors of the original layout, without their prefix."""
    shapes = _TensorShapes(tensors, file, original_names.VAE_PREFIX)
    levels, width = shapes.count_numbered(r"encoder\.down\.(\d+)\."), shapes.dim_size("encoder.conv_in.weight", 0)
    return VAEConfig(
        latent_channels=shapes.dim_size("decoder.conv_in.weight", 1),
        base_channels=width,
        channel_multipliers=shapes.width_multipliers(
            [f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels)], width
        ),
        blocks_per_level=shapes.count_numbered(r"encoder\.down\.0\.block\.(\d+)\."),
        use_quant_conv="quant_conv.weight" in tensors,
        scaling_factor=scale,
    )


def _infer_clip_config(tensors: Mapping[str, Tensor], is_openclip: bool, is_xl: bool, file: Path) -> CLIPTextConfig:
    shapes = _TensorShapes(tensors, file, "")
    root_prefix, layer_prefix = (
        ("", "transformer.resblocks") if is_openclip else ("text_model.", "text_model.encoder.layers")
    )
    token_key = "token_embedding.weight" if is_openclip else f"{root_prefix}embeddings.token_embedding.weight"
    position_key = "positional_embedding" if is_openclip else f"{root_prefix}embeddings.position_embedding.weight"
    vocab_size, width = shapes.dim_size(token_key, 0), shapes.dim_size(token_key, 1)
    layers = shapes.count_numbered(rf"{re.escape(layer_prefix)}\.(\d+)\.")
    return CLIPTextConfig(
        width=width,
        layers=layers - 1 if is_openclip and not is_xl and tensors.get("text_projection") is not None else layers,
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


def _infer_scheduler_defaults(
    checkpoint: StableDiffusionCheckpoint,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    prediction: str | None,
) -> SchedulerDefaults:
    """What the kind decides, and what it predicts: by the option, by a mark in the file, by a .yaml beside it, and
    for all but Stable Diffusion 2 by its kind. InputError where none of them says."""
    file, family = checkpoint.path, checkpoint.family
    modelspec = (metadata.get("modelspec.prediction_type"), metadata.get("modelspec.architecture"))
    detected = prediction or PREDICTION_NAMES.get(str(modelspec[0]))
    if detected is None and ("v_pred" in tensors or (modelspec[1] or "").endswith("-v")):
        detected = "v"
    yaml_file = file.with_suffix(".yaml")
    if detected is None and yaml_file.is_file():
        yaml_text = yaml_file.read_text(encoding="utf-8", errors="replace")
        detected = "v" if re.search(r"parameterization:\s*[\"']?v\b", yaml_text) else "eps"
    if detected is None and (family != "2" or checkpoint.unet_config.concat_channels):
        detected = "eps"
    if detected is None:
        raise InputError(
            f"{file}: is a Stable Diffusion 2, and its tensors do not tell whether it predicts v (the models of 768 "
            f"pixels) or eps (those of 512); decide with --prediction v or --prediction eps"
        )
    image_size = 1024 if family.startswith("xl") else 768 if family == "2" and detected == "v" else 512
    is_lcm = bool(checkpoint.unet_config.guidance_width)
    zero_snr = "ztsnr" in tensors
    return SchedulerDefaults(
        schedule=replace(STABLE_DIFFUSION, zero_terminal_snr=zero_snr), prediction=detected, sampler="lcm" if is_lcm else "dpmpp_2m",
        timestep_spacing="trailing" if zero_snr else None, image_size=image_size,
    )  # fmt: skip
