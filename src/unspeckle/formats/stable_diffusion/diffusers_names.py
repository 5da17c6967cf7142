"""The names that tensors have in a diffusers folder: unet, vae, text_encoder and text_encoder_2."""

from collections.abc import Mapping

from torch import Tensor

from unspeckle.formats.rename_tables import Rows

_BLOCK = (("time", "time_emb_proj"), ("skip", "conv_shortcut"))
_TRANSFORMER = (
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
UNET: Rows = (
    ("down.{i}.block", "down_blocks.{level}.resnets.{block}", _BLOCK),
    ("down.{i}.transformer", "down_blocks.{level}.attentions.{block}", _TRANSFORMER),
    ("shrink.{i}", "down_blocks.{level}.downsamplers.0.conv", ()),
    ("middle1.block", "mid_block.resnets.0", _BLOCK),
    ("middle1.transformer", "mid_block.attentions.0", _TRANSFORMER),
    ("middle2", "mid_block.resnets.1", _BLOCK),
    ("up.{i}.block", "up_blocks.{level}.resnets.{block}", _BLOCK),
    ("up.{i}.transformer", "up_blocks.{level}.attentions.{block}", _TRANSFORMER),
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
_SEES = (("norm", "group_norm"), ("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("out", "to_out.0"))
VAE: Rows = (
    ("encoder.down.{i}", "encoder.down_blocks.{level}.resnets.{block}", _BLOCK),
    ("encoder.shrink.{i}", "encoder.down_blocks.{level}.downsamplers.0.conv", ()),
    ("decoder.up.{i}", "decoder.up_blocks.{level}.resnets.{block}", _BLOCK),
    ("decoder.grow.{i}", "decoder.up_blocks.{level}.upsamplers.0.conv", ()),
    *(
        row
        for half in ("encoder", "decoder")
        for row in (
            (f"{half}.middle.0", f"{half}.mid_block.resnets.0", _BLOCK),
            (f"{half}.middle.1", f"{half}.mid_block.attentions.0", _SEES),
            (f"{half}.middle.2", f"{half}.mid_block.resnets.1", _BLOCK),
            (f"{half}.enter", f"{half}.conv_in", ()),
            (f"{half}.norm", f"{half}.conv_norm_out", ()),
            (f"{half}.leave", f"{half}.conv_out", ()),
        )
    ),
    ("mix", "quant_conv", ()),
    ("unmix", "post_quant_conv", ()),
)
_LAYER = (
    ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"),
    ("query", "self_attn.q_proj"),
    ("key", "self_attn.k_proj"),
    ("value", "self_attn.v_proj"),
    ("out", "self_attn.out_proj"),
    ("inner", "mlp.fc1"),
    ("leave", "mlp.fc2"),
)
CLIP: Rows = (
    ("layers.{i}", "text_model.encoder.layers.{i}", _LAYER),
    ("token", "text_model.embeddings.token_embedding", ()),
    ("place", "text_model.embeddings.position_embedding.weight", ()),
    ("norm", "text_model.final_layer_norm", ()),
    ("project", "text_projection", ()),
)


_OLD = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def modern(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names above, where older or newer programs wrote others: the autoencoder's attention had old
    ones until 2023, and transformers 5 leaves out what CLIP's begin with."""
    clip = any(name.startswith("encoder.layers.") for name in held)

    def renamed(name: str) -> str:
        if clip and not name.startswith(("text_model.", "text_projection.")):
            return f"text_model.{name}"
        head, _, rest = name.partition(".mid_block.attentions.0.")
        old = dict(_OLD).get(rest.split(".")[0]) if head in ("encoder", "decoder") else None
        return name if old is None else f"{head}.mid_block.attentions.0.{old}.{rest.split('.')[1]}"

    return {renamed(name): tensor for name, tensor in held.items()}
