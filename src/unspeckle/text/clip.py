"""CLIP's text encoders (Radford et al. 2021), OpenAI's and OpenCLIP's, with which Stable Diffusion reads prompts."""

from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning


@dataclass(frozen=True)
class CLIPTextConfig:
    """The sizes of one encoder, and which of its layers gives the tokens."""

    # Channels of the tokens.
    width: int = 768
    # Transformer layers.
    layers: int = 12
    # Attention heads.
    heads: int = 12
    # Hidden channels of a feed-forward layer.
    feed_forward_width: int = 3072
    # Number of ids.
    vocab_size: int = 49408
    # Ids of a chunk, with start and end.
    context_length: int = 77
    # The id whose first position gives the pooled vector.
    eos_token_id: int = 49407
    # Whether the activation is x · sigmoid(1.702 x) (OpenAI), and not GELU (OpenCLIP).
    quick_gelu: bool = True
    # Channels of the projected pooled vector; 0 for no projection.
    projection_width: int = 0
    # The tokens are those before so many of the last layers ("clip skip" minus 1).
    skipped_layers: int = 0
    # Whether the tokens are normalized; the pooled vector always is.
    normalize_tokens: bool = True


class CLIPEncoderLayer(nn.Module):
    """A pre-norm transformer layer with causal attention; (B, L, width) -> (B, L, width)."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.heads, self.quick_gelu = config.heads, config.quick_gelu
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(config.width, config.width) for _ in range(4))
        self.fc1 = nn.Linear(config.width, config.feed_forward_width)
        self.fc2 = nn.Linear(config.feed_forward_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        query, key, value = (
            projection(h).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projection in (self.to_q, self.to_k, self.to_v)
        )  # (B, heads, L, width / heads)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.to_out(attended.transpose(1, 2).flatten(2))
        h = self.fc1(self.norm2(x))
        out: Tensor = x + self.fc2(h * torch.sigmoid(1.702 * h) if self.quick_gelu else F.gelu(h))
        return out


class CLIPTextEncoder(nn.Module):
    """Ids (B, L) int64 to tokens (B, L, width) and the pooled vector (B, projection_width or width).

    casts_on_use: whether weights stay in the dtype that they have, and are cast to float32 one layer at a time. An
    encoder runs once an image, so that this saves memory and costs little time.
    """

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.casts_on_use = False
        # Zeros, to be loaded: random initialization would import a second's worth of PyTorch.
        embedding_weight = torch.zeros(config.vocab_size, config.width)
        self.token_embedding = nn.Embedding(config.vocab_size, config.width, _weight=embedding_weight)
        self.position_embedding = nn.Parameter(torch.zeros(config.context_length, config.width))
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.text_projection: nn.Module = nn.Identity()
        if config.projection_width:
            self.text_projection = nn.Linear(config.width, config.projection_width, bias=False)

    def forward(self, ids: Tensor, skipped_layers: int = 0) -> tuple[Tensor, Tensor]:
        """Tokens and pooled vector. skipped_layers: added to those of the configuration."""
        positions = self.position_embedding[: ids.shape[1]]
        x = self._cast_tensor(self.token_embedding(ids)) + self._cast_tensor(positions)
        last_layer = self.config.layers - self.config.skipped_layers - skipped_layers
        hidden = x
        for count, layer in enumerate(self.layers, 1):
            x = self._cast_module(layer)(x)
            if count == last_layer:
                hidden = x
        final_norm = self._cast_module(self.final_norm)
        tokens = final_norm(hidden) if self.config.normalize_tokens else hidden
        eos_positions = (ids == self.config.eos_token_id).int().argmax(1)
        pooled = final_norm(x[torch.arange(x.shape[0], device=x.device), eos_positions])
        return tokens, self._cast_module(self.text_projection)(pooled)

    def _cast_tensor(self, x: Tensor) -> Tensor:
        return x.float() if self.casts_on_use else x

    def _cast_module(self, module: nn.Module) -> nn.Module:
        return deepcopy(module).float() if self.casts_on_use else module


@dataclass(frozen=True)
class CLIPTextEncodersConfig:
    """One encoder, or two whose tokens are concatenated, as in Stable Diffusion XL."""

    encoders: tuple[CLIPTextConfig, ...] = (CLIPTextConfig(),)
    # Whether the conditioning has the last encoder's pooled vector.
    use_pooled: bool = False
    # Whether an empty prompt is encoded as zeros (XL), and not as what the encoders make of it.
    zero_empty_prompts: bool = False

    @property
    def context_length(self) -> int:
        """Ids of a chunk."""
        return self.encoders[0].context_length


class CLIPTextEncoders(nn.Module):
    """Ids (B, encoders, chunks · context_length) to a Conditioning.

    Each chunk is encoded on its own. The chunks' tokens follow one another, and those of two encoders are concatenated:
    (B, chunks · context_length, Σ width). The pooled vector is that of the first chunk.
    """

    def __init__(self, config: CLIPTextEncodersConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleList(CLIPTextEncoder(encoder_config) for encoder_config in config.encoders)

    def forward(self, ids: Tensor, skipped_layers: int = 0) -> Conditioning:
        """skipped_layers: of the last layers, added to those of each encoder's configuration."""
        encoder_tokens, pooled = [], None
        for encoder, config, encoder_ids in zip(self.encoders, self.config.encoders, ids.unbind(1), strict=True):
            chunks = encoder_ids.view(len(encoder_ids), -1, config.context_length)
            tokens, pooled = encoder(chunks.flatten(0, 1), skipped_layers)
            encoder_tokens.append(tokens.view(len(ids), -1, config.width))
            pooled = pooled.view(len(ids), chunks.shape[1], -1)[:, 0]
        tokens, vector = torch.cat(encoder_tokens, 2), pooled if self.config.use_pooled else None
        if self.config.zero_empty_prompts:
            is_nonempty = (ids[:, 0, 1] != self.config.encoders[0].eos_token_id).to(tokens.dtype)
            tokens = tokens * is_nonempty[:, None, None]
            vector = None if vector is None else vector * is_nonempty[:, None]
        return Conditioning(tokens, None, vector)


class CLIPSkipEncoder(nn.Module):
    """CLIPTextEncoders whose tokens skip more of the last layers ("clip skip" minus 1)."""

    def __init__(self, text_encoders: CLIPTextEncoders, skipped_layers: int) -> None:
        super().__init__()
        self.text_encoders, self.skipped_layers = text_encoders, skipped_layers

    def forward(self, ids: Tensor) -> Conditioning:
        conditioning: Conditioning = self.text_encoders(ids, self.skipped_layers)
        return conditioning
