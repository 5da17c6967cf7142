"""Tiny pipelines of each Stable Diffusion family as diffusers builds them, with random weights that matter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor

from unspeckle.denoiser import Conditioning
from unspeckle.networks.layers import sinusoidal_embedding
from unspeckle.networks.unet import UNet
from unspeckle.text.clip_tokenizer import END_TOKEN, CLIPTokenizer, openai_bpe

BPE_MERGES = [("o", "g</w>"), ("r", "og</w>"), ("f", "rog</w>"), ("s", "t"), ("o", "n</w>"), ("i", "l"), ("st", "il")]
VOCAB_SIZE = 512 + len(BPE_MERGES) + 2
POOLED_WIDTH = 64
# What the model of each family predicts, as schedulers of diffusers name it.
PREDICTIONS = {
    "1": "epsilon",
    "1-inpaint": "epsilon",
    "1-lcm": "epsilon",
    "2": "v_prediction",
    "xl": "epsilon",
    "xl-inpaint": "epsilon",
    "xl-refiner": "epsilon",
}
SIZE_WIDTH = 8  # of the sinusoidal embedding of each size
_CROSS_ATTENTION_BLOCKS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
_PLAIN_BLOCKS = ("DownBlock2D", "UpBlock2D")
_COMMON = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1}
_SIZE_CONDITIONING = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
}


def _block_types(*has_cross_attention: bool) -> dict[str, Any]:
    types = [_CROSS_ATTENTION_BLOCKS if cross else _PLAIN_BLOCKS for cross in has_cross_attention]
    return {
        "down_block_types": [down for down, _ in types],
        "up_block_types": [up for _, up in reversed(types)],
    }


_SD1 = {
    **_COMMON,
    **_block_types(True, False),
    "block_out_channels": (32, 64),
    "attention_head_dim": 8,
    "cross_attention_dim": 64,
}
_SD2 = {
    **_COMMON,
    **_block_types(True, False),
    "block_out_channels": (64, 128),
    "attention_head_dim": (1, 2),
    "cross_attention_dim": 64,
    "use_linear_projection": True,
}
_XL = {
    **_COMMON,
    **_SIZE_CONDITIONING,
    **_block_types(False, True),
    "block_out_channels": (64, 128),
    "attention_head_dim": (1, 2),
    "transformer_layers_per_block": (1, 2),
    "cross_attention_dim": 192,
    "projection_class_embeddings_input_dim": 64 + 6 * 8,
}
_XL_REFINER = {
    **_COMMON,
    **_SIZE_CONDITIONING,
    **_block_types(False, True, False),
    "block_out_channels": (64, 64, 128),
    "attention_head_dim": (1, 1, 2),
    "transformer_layers_per_block": 2,
    "cross_attention_dim": 128,
    "projection_class_embeddings_input_dim": 64 + 5 * 8,
}
UNET_CONFIGS: dict[str, dict[str, Any]] = {
    "1": _SD1,
    "1-inpaint": {**_SD1, "in_channels": 9},
    "1-lcm": {**_SD1, "time_cond_proj_dim": 12},
    "2": _SD2,
    "xl": _XL,
    "xl-inpaint": {**_XL, "in_channels": 9},
    "xl-refiner": _XL_REFINER,
}
SCHEDULER_CONFIG = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}


def randomize_weights(module: torch.nn.Module, gain: float = 1.0) -> torch.nn.Module:
    """The module with random weights under which its output depends on all inputs, but not wildly: a small change of x,
    as rounding makes it, must not grow from step to step. gain: of the layers outside attention and embeddings."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data.normal_(std=(1.0 if "attn" in name or "emb" in name else gain) * fan_in**-0.5)
        elif "norm" in name and name.endswith("weight"):
            parameter.data.normal_(1, 0.1)
        else:
            parameter.data.normal_(std=0.1)
    return module.eval()


def tiny_unet(family: str) -> Any:
    unet = randomize_weights(diffusers.UNet2DConditionModel(**UNET_CONFIGS[family]), 0.7)
    unet.conv_out.weight.data *= 2.4  # so that its output has about unit variance
    return unet


def tiny_vae(**changes: Any) -> Any:
    config = {"block_out_channels": (32, 64), "latent_channels": 4, "layers_per_block": 1}
    block_types = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return randomize_weights(diffusers.AutoencoderKL(**{**config, **block_types, **changes}))


def tiny_text_encoder(
    width: int, activation: str, projection: int = 0, layers: int = 3, eos_token_id: int = VOCAB_SIZE - 1
) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=projection or width,
        hidden_act=activation,
        eos_token_id=eos_token_id,
        bos_token_id=VOCAB_SIZE - 2,
        max_position_embeddings=77,
    )
    model_class = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return randomize_weights(model_class(config))


def tiny_tokenizer(folder: Path, pad_token: str = END_TOKEN) -> Any:
    CLIPTokenizer(openai_bpe(BPE_MERGES), pad_tokens=(pad_token,)).write_folder(folder)
    return transformers.CLIPTokenizer.from_pretrained(folder)


def tiny_pipeline(family: str, scratch: Path, prediction: str = "epsilon", seed: int = 0) -> Any:
    """A whole pipeline of diffusers. scratch: a folder for its tokenizers."""
    torch.manual_seed(seed)
    scheduler = diffusers.DDIMScheduler(**SCHEDULER_CONFIG, prediction_type=prediction)
    openai_tokenizer = tiny_tokenizer(scratch / "clip")
    vae_scale = 0.13025 if family == "xl" else 0.18215
    components = {"unet": tiny_unet(family), "vae": tiny_vae(scaling_factor=vae_scale), "scheduler": scheduler}
    if family.startswith("xl"):
        pipeline = _xl_pipeline(family, components, openai_tokenizer, tiny_tokenizer(scratch / "open", "!"))
    else:
        tokenizer = openai_tokenizer if family[0] == "1" else tiny_tokenizer(scratch / "open", "!")
        text_encoder = tiny_text_encoder(64, "quick_gelu" if family[0] == "1" else "gelu")
        no_safety_checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline_class = {
            "1-inpaint": diffusers.StableDiffusionInpaintPipeline,
            "1-lcm": diffusers.LatentConsistencyModelPipeline,
        }.get(family, diffusers.StableDiffusionPipeline)
        pipeline = pipeline_class(**components, text_encoder=text_encoder, tokenizer=tokenizer, **no_safety_checker)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _xl_pipeline(family: str, components: dict[str, Any], openai_tokenizer: Any, openclip_tokenizer: Any) -> Any:
    text_encoders = {
        "text_encoder": tiny_text_encoder(64, "quick_gelu"),
        "text_encoder_2": tiny_text_encoder(128, "gelu", 64),
    }
    tokenizers = {"tokenizer": openai_tokenizer, "tokenizer_2": openclip_tokenizer}
    if family in ("xl", "xl-inpaint"):
        is_inpainting = family == "xl-inpaint"
        pipeline_class = (
            diffusers.StableDiffusionXLInpaintPipeline if is_inpainting else diffusers.StableDiffusionXLPipeline
        )
        return pipeline_class(**components, **text_encoders, **tokenizers, add_watermarker=False)
    text_encoders["text_encoder"] = tokenizers["tokenizer"] = None
    refiner_options = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        **components, **text_encoders, **tokenizers, **refiner_options, add_watermarker=False
    )


def load_pipeline(folder: Path) -> Any:
    """The folder's pipeline as diffusers loads it."""
    is_xl = (folder / "text_encoder_2").is_dir()
    pipeline_class = diffusers.StableDiffusionXLPipeline if is_xl else diffusers.StableDiffusionPipeline
    pipeline = pipeline_class.from_pretrained(folder, **({} if is_xl else {"safety_checker": None}))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class UNetInputs:
    """The inputs of a U-Net of diffusers, and of ours, for two images; None for those that its family does not have."""

    x: Tensor
    t: Tensor
    tokens: Tensor
    sizes: Tensor | None
    pooled: Tensor | None
    guidance_embedding: Tensor | None

    @classmethod
    def random(cls, config: Any) -> "UNetInputs":
        """config: that of the U-Net in diffusers."""
        sizes = pooled = guidance_embedding = None
        x, t = torch.randn(2, config.in_channels, 16, 24), torch.tensor([300.0, 720.5])
        tokens = torch.randn(2, 154, config.cross_attention_dim)
        if config.addition_embed_type:
            num_sizes = (config.projection_class_embeddings_input_dim - POOLED_WIDTH) // SIZE_WIDTH
            sizes = torch.randint(0, 1000, (2, num_sizes)).float()
            pooled = torch.randn(2, POOLED_WIDTH)
        if config.time_cond_proj_dim:
            guidance_embedding = torch.randn(2, config.time_cond_proj_dim)
        return cls(x, t, tokens, sizes, pooled, guidance_embedding)

    def diffusers_output(self, network: Any) -> Tensor:
        added = {} if self.sizes is None else {"text_embeds": self.pooled, "time_ids": self.sizes}
        output = network(self.x, self.t, self.tokens, added_cond_kwargs=added, timestep_cond=self.guidance_embedding)
        return output.sample  # type: ignore[no-any-return]

    def our_output(self, network: UNet) -> Tensor:
        vector = self.guidance_embedding
        if self.sizes is not None and self.pooled is not None:
            size_embedding = sinusoidal_embedding(self.sizes.flatten(), SIZE_WIDTH).view(2, -1)
            vector = torch.cat([self.pooled, size_embedding], 1)
        concat = self.x[:, 4:] if self.x.shape[1] > 4 else None
        return network(self.x[:, :4], self.t, Conditioning(self.tokens, None, vector, concat))
