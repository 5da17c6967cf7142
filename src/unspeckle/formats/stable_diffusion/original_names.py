"""The names that tensors have in a single file of the original code: LDM for Stable Diffusion 1 and 2, SGM for XL."""

from unspeckle.formats.rename_tables import RenameRules
from unspeckle.formats.stable_diffusion.diffusers_names import CLIP, TRANSFORMER

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
# Where the text encoders lie: prefix, of OpenCLIP's layout or of OpenAI's in the dress of transformers
TEXT_PREFIXES = (
    ("cond_stage_model.transformer.", False),
    ("cond_stage_model.model.", True),
    ("conditioner.embedders.0.transformer.", False),
    ("conditioner.embedders.0.model.", True),
    ("conditioner.embedders.1.model.", True),
)
# What such files hold besides and a drawing does without
IGNORED_PATTERN = (
    r"model_ema\.|loss\.|denoiser\.|global_step$|callbacks|.*position_ids$|.*logit_scale$|.*\.attn_mask$"
    r"|(sqrt_(one_minus_|recip_|recipm1_)?)?alphas_cumprod(_prev)?$|log_one_minus_alphas_cumprod$|betas$"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])$|lvlb_weights$|logvar$|scale_factor$|v_pred$|ztsnr$"
)
_RESNET_BLOCK = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("skip", "skip_connection"),
)
UNET: RenameRules = (
    ("down.{i}.block", "input_blocks.{n}.0", _RESNET_BLOCK),
    ("down.{i}.transformer", "input_blocks.{n}.1", TRANSFORMER),
    ("shrink.{i}", "input_blocks.{n}.0.op", ()),
    ("middle1.block", "middle_block.0", _RESNET_BLOCK),
    ("middle1.transformer", "middle_block.1", TRANSFORMER),
    ("middle2", "middle_block.2", _RESNET_BLOCK),
    ("up.{i}.block", "output_blocks.{n}.0", _RESNET_BLOCK),
    ("up.{i}.transformer", "output_blocks.{n}.1", TRANSFORMER),
    ("grow.{i}", "output_blocks.{n}.{k}.conv", ()),
    ("time1", "time_embed.0", ()),
    ("time2", "time_embed.2", ()),
    ("guidance", "time_embed.cond_proj", ()),
    ("vector1", "label_emb.0.0", ()),
    ("vector2", "label_emb.0.2", ()),
    ("enter", "input_blocks.0.0", ()),
    ("norm", "out.0", ()),
    ("leave", "out.2", ()),
)
_SHORTCUT = (("skip", "nin_shortcut"),)
_ATTENTION = (
    ("query.weight", "q.weight#conv"),
    ("key.weight", "k.weight#conv"),
    ("value.weight", "v.weight#conv"),
    ("out.weight", "proj_out.weight#conv"),
    ("query", "q"),
    ("key", "k"),
    ("value", "v"),
    ("out", "proj_out"),
)
VAE: RenameRules = (
    ("encoder.down.{i}", "encoder.down.{level}.block.{block}", _SHORTCUT),
    ("encoder.shrink.{i}", "encoder.down.{level}.downsample.conv", ()),
    ("decoder.up.{i}", "decoder.up.{back}.block.{block}", _SHORTCUT),
    ("decoder.grow.{i}", "decoder.up.{back}.upsample.conv", ()),
    *(
        row
        for half in ("encoder", "decoder")
        for row in (
            (f"{half}.middle.0", f"{half}.mid.block_1", _SHORTCUT),
            (f"{half}.middle.1", f"{half}.mid.attn_1", _ATTENTION),
            (f"{half}.middle.2", f"{half}.mid.block_2", _SHORTCUT),
            (f"{half}.enter", f"{half}.conv_in", ()),
            (f"{half}.norm", f"{half}.norm_out", ()),
            (f"{half}.leave", f"{half}.conv_out", ()),
        )
    ),
    ("mix", "quant_conv", ()),
    ("unmix", "post_quant_conv", ()),
)
_OPENCLIP_LAYER = (
    *((f"{name}.{kind}", f"attn.in_proj_{kind}#{third}")
      for third, name in enumerate(("query", "key", "value")) for kind in ("weight", "bias")),
    ("out", "attn.out_proj"),
    ("norm1", "ln_1"),
    ("norm2", "ln_2"),
    ("inner", "mlp.c_fc"),
    ("leave", "mlp.c_proj"),
)  # fmt: skip
OPENCLIP: RenameRules = (
    ("layers.{i}", "transformer.resblocks.{i}", _OPENCLIP_LAYER),
    ("token", "token_embedding", ()),
    ("place", "positional_embedding", ()),
    ("norm", "ln_final", ()),
    ("project", "text_projection#T", (("weight", ""),)),
)
OPENAI = CLIP
