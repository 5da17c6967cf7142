"""The names that tensors have in a single file of the original code: LDM for Stable Diffusion 1 and 2, SGM for XL.

The rules are those of `rename_tables`. OpenAI's text encoder has the names of transformers in these files too."""

from unspeckle.formats.rename_tables import RenameRules
from unspeckle.formats.stable_diffusion.diffusers_names import TRANSFORMER

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
# Where text encoders may be: the prefix of their names, and whether these are OpenCLIP's or else those of transformers
TEXT_PREFIXES = (
    ("cond_stage_model.transformer.", False),
    ("cond_stage_model.model.", True),
    ("conditioner.embedders.0.transformer.", False),
    ("conditioner.embedders.0.model.", True),
    ("conditioner.embedders.1.model.", True),
)
# Tensors of the training that such files may hold as well, and that drawing does not need
IGNORED_PATTERN = (
    r"model_ema\.|loss\.|denoiser\.|global_step$|callbacks|.*position_ids$|.*logit_scale$|.*\.attn_mask$"
    r"|(sqrt_(one_minus_|recip_|recipm1_)?)?alphas_cumprod(_prev)?$|log_one_minus_alphas_cumprod$|betas$"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])$|lvlb_weights$|logvar$|scale_factor$|v_pred$|ztsnr$"
)
_RESNET_BLOCK = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("shortcut", "skip_connection"),
)
UNET: RenameRules = (
    ("down_blocks.{i}.res_block", "input_blocks.{n}.0", _RESNET_BLOCK),
    ("down_blocks.{i}.transformer", "input_blocks.{n}.1", TRANSFORMER),
    ("downsamplers.{i}", "input_blocks.{n}.0.op", ()),
    ("mid_block_1.res_block", "middle_block.0", _RESNET_BLOCK),
    ("mid_block_1.transformer", "middle_block.1", TRANSFORMER),
    ("mid_block_2", "middle_block.2", _RESNET_BLOCK),
    ("up_blocks.{i}.res_block", "output_blocks.{n}.0", _RESNET_BLOCK),
    ("up_blocks.{i}.transformer", "output_blocks.{n}.1", TRANSFORMER),
    ("upsamplers.{i}", "output_blocks.{n}.{k}.conv", ()),
    ("time_embed_1", "time_embed.0", ()),
    ("time_embed_2", "time_embed.2", ()),
    ("guidance_embed", "time_embed.cond_proj", ()),
    ("vector_embed_1", "label_emb.0.0", ()),
    ("vector_embed_2", "label_emb.0.2", ()),
    ("conv_in", "input_blocks.0.0", ()),
    ("norm_out", "out.0", ()),
    ("conv_out", "out.2", ()),
)
_SHORTCUT = (("shortcut", "nin_shortcut"),)
_ATTENTION = (
    ("to_q.weight", "q.weight#conv"),
    ("to_k.weight", "k.weight#conv"),
    ("to_v.weight", "v.weight#conv"),
    ("to_out.weight", "proj_out.weight#conv"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out", "proj_out"),
)
VAE: RenameRules = (
    ("encoder.down_blocks.{i}", "encoder.down.{level}.block.{block}", _SHORTCUT),
    ("encoder.downsamplers.{i}", "encoder.down.{level}.downsample.conv", ()),
    ("decoder.up_blocks.{i}", "decoder.up.{reverse_level}.block.{block}", _SHORTCUT),
    ("decoder.upsamplers.{i}", "decoder.up.{reverse_level}.upsample.conv", ()),
    *(
        row
        for half in ("encoder", "decoder")
        for row in (
            (f"{half}.mid_block.0", f"{half}.mid.block_1", _SHORTCUT),
            (f"{half}.mid_block.1", f"{half}.mid.attn_1", _ATTENTION),
            (f"{half}.mid_block.2", f"{half}.mid.block_2", _SHORTCUT),
            (f"{half}.conv_in", f"{half}.conv_in", ()),
            (f"{half}.norm_out", f"{half}.norm_out", ()),
            (f"{half}.conv_out", f"{half}.conv_out", ()),
        )
    ),
    ("quant_conv", "quant_conv", ()),
    ("post_quant_conv", "post_quant_conv", ()),
)
_OPENCLIP_LAYER = (
    *(
        (f"{name}.{kind}", f"attn.in_proj_{kind}#{third}")
        for third, name in enumerate(("to_q", "to_k", "to_v"))
        for kind in ("weight", "bias")
    ),
    ("to_out", "attn.out_proj"),
    ("norm1", "ln_1"),
    ("norm2", "ln_2"),
    ("fc1", "mlp.c_fc"),
    ("fc2", "mlp.c_proj"),
)
OPENCLIP: RenameRules = (
    ("layers.{i}", "transformer.resblocks.{i}", _OPENCLIP_LAYER),
    ("token_embedding", "token_embedding", ()),
    ("position_embedding", "positional_embedding", ()),
    ("final_norm", "ln_final", ()),
    ("text_projection", "text_projection#T", (("weight", ""),)),
)
