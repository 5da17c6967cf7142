"""The names that tensors have in a diffusers folder: unet, vae, text_encoder and text_encoder_2."""

from collections.abc import Mapping

from torch import Tensor

from unspeckle.formats.rename_tables import RenameRules

_RESNET_BLOCK = (("time", "time_emb_proj"), ("skip", "conv_shortcut"))
TRANSFORMER = (
    ("feed.enter", "ff.net.0.proj"),
    ("feed.out", "ff.net.2"),
    ("enter", "proj_in"),
    ("leave", "proj_out"),
    ("layers", "transformer_blocks"),
    ("itself", "attn1"),
    ("words", "attn2"),
    ("query", "to_q"),
    ("key", "to_k"),
    ("value", "to_v"),
    ("out", "to_out.0"),
)
UNET: RenameRules = (
    ("down.{i}.block", "down_blocks.{level}.resnets.{block}", _RESNET_BLOCK),
    ("down.{i}.transformer", "down_blocks.{level}.attentions.{block}", TRANSFORMER),
    ("shrink.{i}", "down_blocks.{level}.downsamplers.0.conv", ()),
    ("middle1.block", "mid_block.resnets.0", _RESNET_BLOCK),
    ("middle1.transformer", "mid_block.attentions.0", TRANSFORMER),
    ("middle2", "mid_block.resnets.1", _RESNET_BLOCK),
    ("up.{i}.block", "up_blocks.{level}.resnets.{block}", _RESNET_BLOCK),
    ("up.{i}.transformer", "up_blocks.{level}.attentions.{block}", TRANSFORMER),
    ("grow.{i}", "up_blocks.{level}.upsamplers.0.conv", ()),
    ("time1", "time_embedding.linear_1", ()),
    ("time2", "time_embedding.linear_2", ()),
    ("guidance", "time_embedding.cond_proj", ()),
    ("vector1", "add_embedding.linear_1", ()),
    ("vector2", "add_embedding.linear_2", ()),
    ("enter", "conv_in", ()),
    ("norm", "conv_norm_out", ()),
    ("leave", "conv_out", ()),
)
_ATTENTION = (("norm", "group_norm"), ("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("out", "to_out.0"))
VAE: RenameRules = (
    ("encoder.down.{i}", "encoder.down_blocks.{level}.resnets.{block}", _RESNET_BLOCK),
    ("encoder.shrink.{i}", "encoder.down_blocks.{level}.downsamplers.0.conv", ()),
    ("decoder.up.{i}", "decoder.up_blocks.{level}.resnets.{block}", _RESNET_BLOCK),
    ("decoder.grow.{i}", "decoder.up_blocks.{level}.upsamplers.0.conv", ()),
    *(
        row
        for half in ("encoder", "decoder")
        for row in (
            (f"{half}.middle.0", f"{half}.mid_block.resnets.0", _RESNET_BLOCK),
            (f"{half}.middle.1", f"{half}.mid_block.attentions.0", _ATTENTION),
            (f"{half}.middle.2", f"{half}.mid_block.resnets.1", _RESNET_BLOCK),
            (f"{half}.enter", f"{half}.conv_in", ()),
            (f"{half}.norm", f"{half}.conv_norm_out", ()),
            (f"{half}.leave", f"{half}.conv_out", ()),
        )
    ),
    ("mix", "quant_conv", ()),
    ("unmix", "post_quant_conv", ()),
)
_CLIP_LAYER = (
    ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"),
    ("query", "self_attn.q_proj"),
    ("key", "self_attn.k_proj"),
    ("value", "self_attn.v_proj"),
    ("out", "self_attn.out_proj"),
    ("inner", "mlp.fc1"),
    ("leave", "mlp.fc2"),
)
CLIP: RenameRules = (
    ("layers.{i}", "text_model.encoder.layers.{i}", _CLIP_LAYER),
    ("token", "text_model.embeddings.token_embedding", ()),
    ("place", "text_model.embeddings.position_embedding.weight", ()),
    ("norm", "text_model.final_layer_norm", ()),
    ("project", "text_projection", ()),
)


_OLD_ATTENTION = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def to_current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names above, where older or newer programs wrote others: the autoencoder's attention had old
    ones until 2023, and transformers 5 leaves out what CLIP's begin with."""
    lacks_clip_prefix = any(name.startswith("encoder.layers.") for name in tensors)

    def current_name(name: str) -> str:
        if lacks_clip_prefix and not name.startswith(("text_model.", "text_projection.")):
            return f"text_model.{name}"
        head, _, rest = name.partition(".mid_block.attentions.0.")
        new_name = dict(_OLD_ATTENTION).get(rest.split(".")[0]) if head in ("encoder", "decoder") else None
        return name if new_name is None else f"{head}.mid_block.attentions.0.{new_name}.{rest.split('.')[1]}"

    return {current_name(name): tensor for name, tensor in tensors.items()}
