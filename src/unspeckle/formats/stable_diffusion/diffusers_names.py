"""The names that tensors have in a diffusers folder: unet, vae, text_encoder and text_encoder_2.

The rules are those of `rename_tables`."""

from collections.abc import Mapping

from torch import Tensor

from unspeckle.formats.rename_tables import RenameRules

_RESNET_BLOCK = (("shortcut", "conv_shortcut"),)
TRANSFORMER = (
    ("feed_forward.proj_in", "ff.net.0.proj"),
    ("feed_forward.proj_out", "ff.net.2"),
    ("layers", "transformer_blocks"),
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
    ("to_out", "to_out.0"),
)
UNET: RenameRules = (
    ("down_blocks.{i}.res_block", "down_blocks.{level}.resnets.{block}", _RESNET_BLOCK),
    ("down_blocks.{i}.transformer", "down_blocks.{level}.attentions.{block}", TRANSFORMER),
    ("downsamplers.{i}", "down_blocks.{level}.downsamplers.0.conv", ()),
    ("mid_block_1.res_block", "mid_block.resnets.0", _RESNET_BLOCK),
    ("mid_block_1.transformer", "mid_block.attentions.0", TRANSFORMER),
    ("mid_block_2", "mid_block.resnets.1", _RESNET_BLOCK),
    ("up_blocks.{i}.res_block", "up_blocks.{level}.resnets.{block}", _RESNET_BLOCK),
    ("up_blocks.{i}.transformer", "up_blocks.{level}.attentions.{block}", TRANSFORMER),
    ("upsamplers.{i}", "up_blocks.{level}.upsamplers.0.conv", ()),
    ("time_embed_1", "time_embedding.linear_1", ()),
    ("time_embed_2", "time_embedding.linear_2", ()),
    ("guidance_embed", "time_embedding.cond_proj", ()),
    ("vector_embed_1", "add_embedding.linear_1", ()),
    ("vector_embed_2", "add_embedding.linear_2", ()),
    ("conv_in", "conv_in", ()),
    ("norm_out", "conv_norm_out", ()),
    ("conv_out", "conv_out", ()),
)
_ATTENTION = (("norm", "group_norm"), ("to_out", "to_out.0"))
VAE: RenameRules = (
    ("encoder.down_blocks.{i}", "encoder.down_blocks.{level}.resnets.{block}", _RESNET_BLOCK),
    ("encoder.downsamplers.{i}", "encoder.down_blocks.{level}.downsamplers.0.conv", ()),
    ("decoder.up_blocks.{i}", "decoder.up_blocks.{level}.resnets.{block}", _RESNET_BLOCK),
    ("decoder.upsamplers.{i}", "decoder.up_blocks.{level}.upsamplers.0.conv", ()),
    *(
        row
        for half in ("encoder", "decoder")
        for row in (
            (f"{half}.mid_block.0", f"{half}.mid_block.resnets.0", _RESNET_BLOCK),
            (f"{half}.mid_block.1", f"{half}.mid_block.attentions.0", _ATTENTION),
            (f"{half}.mid_block.2", f"{half}.mid_block.resnets.1", _RESNET_BLOCK),
            (f"{half}.conv_in", f"{half}.conv_in", ()),
            (f"{half}.norm_out", f"{half}.conv_norm_out", ()),
            (f"{half}.conv_out", f"{half}.conv_out", ()),
        )
    ),
    ("quant_conv", "quant_conv", ()),
    ("post_quant_conv", "post_quant_conv", ()),
)
_CLIP_LAYER = (
    ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"),
    ("to_q", "self_attn.q_proj"),
    ("to_k", "self_attn.k_proj"),
    ("to_v", "self_attn.v_proj"),
    ("to_out", "self_attn.out_proj"),
    ("fc1", "mlp.fc1"),
    ("fc2", "mlp.fc2"),
)
CLIP: RenameRules = (
    ("layers.{i}", "text_model.encoder.layers.{i}", _CLIP_LAYER),
    ("token_embedding", "text_model.embeddings.token_embedding", ()),
    ("position_embedding", "text_model.embeddings.position_embedding.weight", ()),
    ("final_norm", "text_model.final_layer_norm", ()),
    ("text_projection", "text_projection", ()),
)

_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def to_current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part by the names above, where other versions of the programs wrote others: diffusers had
    other names in the autoencoder's attention until 2023, and transformers 5 leaves out the "text_model." of CLIP's
    names."""
    lacks_clip_prefix = any(name.startswith("encoder.layers.") for name in tensors)

    def current_name(name: str) -> str:
        if lacks_clip_prefix and not name.startswith(("text_model.", "text_projection.")):
            return f"text_model.{name}"
        half, attention, layer = name.partition(".mid_block.attentions.0.")
        projection, _, kind = layer.partition(".")
        if half in ("encoder", "decoder") and projection in _OLD_VAE_ATTENTION:
            return f"{half}{attention}{_OLD_VAE_ATTENTION[projection]}.{kind}"
        return name

    return {current_name(name): tensor for name, tensor in tensors.items()}
