"""Stable Diffusion's families at tiny sizes as diffusers builds them, with weights that say something."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from unspeckle.text.clip_tokenizer import END_TOKEN, CLIPTokenizer, _openai_bpe

MERGES = [("o", "g</w>"), ("r", "og</w>"), ("f", "rog</w>"), ("s", "t"), ("o", "n</w>"), ("i", "l"), ("st", "il")]
TOKENS = 512 + len(MERGES) + 2
_CROSS, _PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
_COMMON = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1}
_XL = {"use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8}


def _blocks(*crossed: bool) -> dict[str, Any]:
    kinds = [_CROSS if cross else _PLAIN for cross in crossed]
    return {"down_block_types": [k[0] for k in kinds], "up_block_types": [k[1] for k in reversed(kinds)]}


_ONE = {**_COMMON, **_blocks(True, False), "block_out_channels": (32, 64), "attention_head_dim": 8,
        "cross_attention_dim": 64}  # fmt: skip
_TWO = {**_COMMON, **_blocks(True, False), "block_out_channels": (64, 128), "attention_head_dim": (1, 2),
        "cross_attention_dim": 64, "use_linear_projection": True}  # fmt: skip
_LARGE = {**_COMMON, **_XL, **_blocks(False, True), "block_out_channels": (64, 128), "attention_head_dim": (1, 2),
          "transformer_layers_per_block": (1, 2), "cross_attention_dim": 192,
          "projection_class_embeddings_input_dim": 64 + 6 * 8}  # fmt: skip
UNETS: dict[str, dict[str, Any]] = {
    "1": _ONE,
    "1-inpaint": {**_ONE, "in_channels": 9},
    "1-lcm": {**_ONE, "time_cond_proj_dim": 12},
    "2": _TWO,
    "xl": _LARGE,
    "xl-inpaint": {**_LARGE, "in_channels": 9},
    "xl-refiner": {**_COMMON, **_XL, **_blocks(False, True, False), "block_out_channels": (64, 64, 128),
                   "attention_head_dim": (1, 1, 2), "transformer_layers_per_block": 2, "cross_attention_dim": 128,
                   "projection_class_embeddings_input_dim": 64 + 5 * 8},
}  # fmt: skip
SCHEDULER = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "clip_sample": False,
    "set_alpha_to_one": False,
}  # fmt: skip


def speaking(module: torch.nn.Module, plain: float = 1.0) -> torch.nn.Module:
    """The module with random weights under which its answer depends on all that it is asked, but not wildly: a small
    change of x, as rounding makes it, must not grow from step to step."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            fan = parameter[0].numel()
            parameter.data.normal_(std=(1.0 if "attn" in name or "emb" in name else plain) * fan**-0.5)
        elif "norm" in name and name.endswith("weight"):
            parameter.data.normal_(1, 0.1)
        else:
            parameter.data.normal_(std=0.1)
    return module.eval()


def unet(family: str) -> Any:
    made = speaking(diffusers.UNet2DConditionModel(**UNETS[family]), 0.7)
    made.conv_out.weight.data *= 2.4  # to about unit variance
    return made


def vae(**changes: Any) -> Any:
    config = {"block_out_channels": (32, 64), "latent_channels": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return speaking(diffusers.AutoencoderKL(**{**config, **blocks, **changes}))


def text(width: int, act: str, projection: int = 0, layers: int = 3, end: int = TOKENS - 1) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=TOKENS, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, projection_dim=projection or width, hidden_act=act,
        eos_token_id=end, bos_token_id=TOKENS - 2, max_position_embeddings=77,
    )  # fmt: skip
    make = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return speaking(make(config))


def tokenizer(folder: Path, pad: str = END_TOKEN) -> Any:
    CLIPTokenizer(_openai_bpe(MERGES), pad_tokens=(pad,)).write_folder(folder)
    return transformers.CLIPTokenizer.from_pretrained(folder)


def pipeline(family: str, scratch: Path, prediction: str = "epsilon", seed: int = 0) -> Any:
    """A whole tiny pipeline of diffusers."""
    torch.manual_seed(seed)
    ddim = diffusers.DDIMScheduler(**SCHEDULER, prediction_type=prediction)
    clip, parts = (
        tokenizer(scratch / "clip"),
        {"unet": unet(family), "vae": vae(scaling_factor=0.13025 if family == "xl" else 0.18215), "scheduler": ddim},
    )
    if not family.startswith("xl"):
        clip = clip if family[0] == "1" else tokenizer(scratch / "open", "!")
        reader = text(64, "quick_gelu" if family[0] == "1" else "gelu")
        safe = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        kinds = {"1-inpaint": diffusers.StableDiffusionInpaintPipeline,
                 "1-lcm": diffusers.LatentConsistencyModelPipeline}  # fmt: skip
        kind = kinds.get(family, diffusers.StableDiffusionPipeline)
        made = kind(**parts, text_encoder=reader, tokenizer=clip, **safe)
    else:
        readers = {"text_encoder": text(64, "quick_gelu"), "text_encoder_2": text(128, "gelu", 64)}
        tokenizers = {"tokenizer": clip, "tokenizer_2": tokenizer(scratch / "open", "!")}
        if family in ("xl", "xl-inpaint"):
            paints = family == "xl-inpaint"
            kind = diffusers.StableDiffusionXLInpaintPipeline if paints else diffusers.StableDiffusionXLPipeline
            made = kind(**parts, **readers, **tokenizers, add_watermarker=False)
        else:
            refines = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
            readers["text_encoder"] = tokenizers["tokenizer"] = None
            made = diffusers.StableDiffusionXLImg2ImgPipeline(
                **parts, **readers, **tokenizers, **refines, add_watermarker=False
            )
    made.set_progress_bar_config(disable=True)
    return made


def loaded(folder: Path) -> Any:
    """The folder's pipeline as diffusers loads it."""
    xl = (folder / "text_encoder_2").is_dir()
    kind = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
    pipe = kind.from_pretrained(folder, **({} if xl else {"safety_checker": None}))
    pipe.set_progress_bar_config(disable=True)
    return pipe
