"""The families of Stable Diffusion whose network is a U-Net: what their checkpoints have in common, and their parts."""

from collections.abc import Sequence
from pathlib import Path

from unspeckle.formats.checkpoint_parts import CheckpointPart, Layout, ModuleSpec
from unspeckle.formats.rename_tables import BlockLayout
from unspeckle.formats.stable_diffusion import diffusers_names, original_names
from unspeckle.formats.stable_diffusion.checkpoint import (
    Family,
    NetworkInputs,
    SchedulerDefaults,
    StableDiffusionCheckpoint,
)
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.networks.vae import VAE, VAEConfig
from unspeckle.text.clip import CLIPTextConfig, CLIPTextEncoder, CLIPTextEncoders, CLIPTextEncodersConfig
from unspeckle.text.clip_tokenizer import CLIPTokenizer

_NO_SAFETY_CHECKER = {
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}
_REFINER_INDEX = {
    "requires_aesthetics_score": True,
    "text_encoder": [None, None],
    "tokenizer": [None, None],
}
_FIRST_KOHYA_PREFIXES = ("lora_te_", "lora_te1_")
SD1 = Family(
    name="1",
    pipeline="StableDiffusionPipeline",
    inpainting_pipeline="StableDiffusionInpaintPipeline",
    consistency_pipeline="LatentConsistencyModelPipeline",
    model_index=_NO_SAFETY_CHECKER,
    architecture="stable-diffusion-v1",
    guidance_scale=7.5,
    latent_scale=0.18215,
    text_folders=("text_encoder",),
    text_prefixes=(("cond_stage_model.transformer.", False),),
    kohya_text_prefixes=(_FIRST_KOHYA_PREFIXES,),
    kohya_layouts=("diffusers", "original"),
)
SD2 = Family(
    name="2",
    pipeline="StableDiffusionPipeline",
    inpainting_pipeline="StableDiffusionInpaintPipeline",
    consistency_pipeline="LatentConsistencyModelPipeline",
    model_index=_NO_SAFETY_CHECKER,
    architecture="stable-diffusion-v2",
    guidance_scale=7.5,
    latent_scale=0.18215,
    text_folders=("text_encoder",),
    text_prefixes=(("cond_stage_model.model.", True),),
    kohya_text_prefixes=(_FIRST_KOHYA_PREFIXES,),
    kohya_layouts=("diffusers", "original"),
)
SDXL = Family(
    name="xl",
    pipeline="StableDiffusionXLPipeline",
    inpainting_pipeline="StableDiffusionXLInpaintPipeline",
    consistency_pipeline=None,
    model_index={},
    architecture="stable-diffusion-xl-v1-base",
    guidance_scale=5.0,
    latent_scale=0.13025,
    text_folders=("text_encoder", "text_encoder_2"),
    text_prefixes=(("conditioner.embedders.0.transformer.", False), ("conditioner.embedders.1.model.", True)),
    kohya_text_prefixes=(("lora_te1_", "lora_te_"), ("lora_te2_",)),
    kohya_layouts=("original", "diffusers"),
    size_values=6,
)
SDXL_REFINER = Family(
    name="xl-refiner",
    pipeline="StableDiffusionXLImg2ImgPipeline",
    inpainting_pipeline="StableDiffusionXLInpaintPipeline",
    consistency_pipeline=None,
    model_index=_REFINER_INDEX,
    architecture="stable-diffusion-xl-v1-refiner",
    guidance_scale=5.0,
    latent_scale=0.13025,
    text_folders=("text_encoder_2",),
    text_prefixes=(("conditioner.embedders.0.model.", True),),
    kohya_text_prefixes=(("lora_te2_",),),
    kohya_layouts=("original", "diffusers"),
    size_values=5,
)


def find_family(unet_config: UNetConfig, text_encoders: int) -> Family:
    """The family of a U-Net with that many text encoders."""
    if unet_config.vector_width:
        return SDXL if text_encoders == 2 else SDXL_REFINER
    return SD1 if unet_config.transformer_projection == "conv" else SD2


def unet_checkpoint(
    *,
    path: Path,
    unet_config: UNetConfig,
    vae_config: VAEConfig,
    text_config: CLIPTextEncodersConfig,
    tokenizer: CLIPTokenizer,
    scheduler_defaults: SchedulerDefaults,
    text_prefixes: Sequence[tuple[str, bool]] | None = None,
) -> StableDiffusionCheckpoint:
    """A checkpoint of these sizes, without tensors. text_prefixes: where a single file has its text encoders, if it is
    not where the family's files have them."""
    family = find_family(unet_config, len(text_config.encoders))
    return StableDiffusionCheckpoint(
        path=path,
        family=family,
        parts=checkpoint_parts(family, unet_config, vae_config, text_config.encoders, text_prefixes),
        text_encoder=ModuleSpec(CLIPTextEncoders, text_config),
        tokenizer=tokenizer,
        network_inputs=unet_inputs(unet_config, text_config.encoders),
        scheduler_defaults=scheduler_defaults,
    )


def unet_inputs(unet_config: UNetConfig, encoder_configs: Sequence[CLIPTextConfig]) -> NetworkInputs:
    """What a U-Net takes besides x, the time and the tokens of these text encoders."""
    pooled_width = encoder_configs[-1].projection_width or encoder_configs[-1].width
    return NetworkInputs(
        size_embedding_width=unet_config.vector_width - pooled_width if unet_config.vector_width else 0,
        guidance_embedding_width=unet_config.guidance_width,
        concat_channels=unet_config.concat_channels,
    )


def checkpoint_parts(
    family: Family,
    unet_config: UNetConfig,
    vae_config: VAEConfig,
    encoder_configs: Sequence[CLIPTextConfig],
    text_prefixes: Sequence[tuple[str, bool]] | None = None,
) -> dict[str, CheckpointPart]:
    """The parts of a checkpoint of that family, by what their tensors' names begin with. text_prefixes: as
    `unet_checkpoint`."""
    parts = {"network": unet_part(unet_config, family.kohya_layouts), "autoencoder": vae_part(vae_config)}
    prefixes = family.text_prefixes if text_prefixes is None else text_prefixes
    places = zip(family.text_folders, prefixes, family.kohya_text_prefixes, strict=True)
    for index, (config, (folder, (prefix, is_openclip), kohya)) in enumerate(zip(encoder_configs, places, strict=True)):
        parts[f"text.encoders.{index}"] = clip_part(config, is_openclip, folder, prefix, kohya)
    return parts


def unet_part(config: UNetConfig, kohya_layouts: tuple[Layout, ...] = ("diffusers", "original")) -> CheckpointPart:
    """A U-Net."""
    has_transformer = tuple(depth > 0 for depth in config.transformer_depths)
    return CheckpointPart(
        UNet,
        config,
        rules={"diffusers": diffusers_names.UNET, "original": original_names.UNET},
        block_layout=BlockLayout(config.blocks_per_level, len(config.channel_multipliers), has_transformer),
        folder="unet",
        prefix=original_names.UNET_PREFIX,
        kohya_prefixes=("lora_unet_",),
        kohya_layouts=kohya_layouts,
    )


def vae_part(config: VAEConfig) -> CheckpointPart:
    """An autoencoder."""
    return CheckpointPart(
        VAE,
        config,
        rules={"diffusers": diffusers_names.VAE, "original": original_names.VAE},
        block_layout=BlockLayout(config.blocks_per_level, len(config.channel_multipliers)),
        folder="vae",
        prefix=original_names.VAE_PREFIX,
    )


def clip_part(
    config: CLIPTextConfig, is_openclip: bool, folder: str, prefix: str, kohya_prefixes: tuple[str, ...]
) -> CheckpointPart:
    """A text encoder of CLIP. is_openclip: whether single files have it by OpenCLIP's names, not by transformers'."""
    return CheckpointPart(
        CLIPTextEncoder,
        config,
        rules={
            "diffusers": diffusers_names.CLIP,
            "original": original_names.OPENCLIP if is_openclip else diffusers_names.CLIP,
        },
        folder=folder,
        file_name="model.safetensors",
        prefix=prefix,
        kohya_prefixes=kohya_prefixes,
    )
