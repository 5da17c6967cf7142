"""CLIP's text encoder (Radford et al. 2021), OpenAI's and OpenCLIP's: what Stable Diffusion reads its prompts with."""

from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning


@dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes of one encoder, and which of its layers is read."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    feed_forward_width: int = 3072
    vocab_size: int = 49408
    context_length: int = 77  # tokens a row, start and end included
    eos_token_id: int = 49407  # the id whose first place is pooled
    quick_gelu: bool = True  # x · sigmoid(1.702 x) (OpenAI) in place of gelu (OpenCLIP)
    projection_width: int = 0  # width of the pooled vector's projection; 0 = the vector as it is
    skipped_layers: int = 0  # how many of the last layers the tokens do without ("clip skip", less one)
    normalize_tokens: bool = True  # normalise the tokens; the pooled vector always is


class CLIPEncoderLayer(nn.Module):
    """A pre-norm transformer layer in which a token sees itself and those before it."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.heads, self.quick_gelu = config.heads, config.quick_gelu
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(config.width, config.width) for _ in range(4))
        self.fc1, self.fc2 = (
            nn.Linear(config.width, config.feed_forward_width),
            nn.Linear(config.feed_forward_width, config.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        query, key, value = (
            projection(h).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projection in (self.to_q, self.to_k, self.to_v)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.to_out(attended.transpose(1, 2).flatten(2))
        h = self.fc1(self.norm2(x))
        out: Tensor = x + self.fc2(h * torch.sigmoid(1.702 * h) if self.quick_gelu else F.gelu(h))
        return out


class CLIPTextEncoder(nn.Module):
    """ids (B, length) int64 to tokens (B, length, width) and the pooled vector (B, projection or width)."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.casts_on_use = False  # weights lie as a file has them, and are cast to float32 a layer at a time
        zeros = torch.zeros(config.vocab_size, config.width)  # to be loaded; random ones would import a second of torch
        self.token_embedding = nn.Embedding(config.vocab_size, config.width, _weight=zeros)
        self.position_embedding = nn.Parameter(torch.zeros(config.context_length, config.width))
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.text_projection = (
            nn.Linear(config.width, config.projection_width, bias=False) if config.projection_width else nn.Identity()
        )

    def forward(self, ids: Tensor, skipped_layers: int = 0) -> tuple[Tensor, Tensor]:
        """skip: how many layers more the tokens do without."""
        x = self._tensor_for_use(self.token_embedding(ids)) + self._tensor_for_use(
            self.position_embedding[: ids.shape[1]]
        )
        hidden = x
        for count, layer in enumerate(self.layers, 1):
            x = self._module_for_use(layer)(x)
            if count == self.config.layers - self.config.skipped_layers - skipped_layers:
                hidden = x
        tokens = self._module_for_use(self.final_norm)(hidden) if self.config.normalize_tokens else hidden
        eos_positions = (ids == self.config.eos_token_id).int().argmax(1)
        vector = self._module_for_use(self.final_norm)(x[torch.arange(x.shape[0], device=x.device), eos_positions])
        return tokens, self._module_for_use(self.text_projection)(vector)

    def _tensor_for_use(self, x: Tensor) -> Tensor:
        return x.float() if self.casts_on_use else x

    def _module_for_use(self, module: nn.Module) -> nn.Module:
        """The module, or a copy in float32 for this call alone: an encoder runs once a drawing, and else its weights
        would lie in memory all the while."""
        return deepcopy(module).float() if self.casts_on_use else module


@dataclass(frozen=True)
class CLIPTextEncodersConfig:
    """One or two encoders side by side, as Stable Diffusion reads them."""

    encoders: tuple[CLIPTextConfig, ...] = (CLIPTextConfig(),)
    use_pooled: bool = False  # give the last encoder's pooled vector too
    zero_empty_prompts: bool = False  # no words at all are zeros, not the encoding of an empty prompt (XL)

    @property
    def context_length(self) -> int:
        """Tokens of a chunk."""
        return self.encoders[0].context_length


class CLIPTextEncoders(nn.Module):
    """ids (B, encoders, chunks · length) to a Given: each chunk is read alone, their tokens stand one behind the other,
    those of two encoders in one row; the pooled vector is the first chunk's."""

    def __init__(self, config: CLIPTextEncodersConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleList(CLIPTextEncoder(encoder_config) for encoder_config in config.encoders)

    def forward(self, ids: Tensor, skipped_layers: int = 0) -> Conditioning:
        """skip: how many of the last layers the tokens do without, beside those that they always do."""
        encoder_tokens, vector = [], None
        for encoder, config, encoder_ids in zip(self.encoders, self.config.encoders, ids.unbind(1), strict=True):
            chunks = encoder_ids.view(len(encoder_ids), -1, config.context_length)
            tokens, vector = encoder(chunks.flatten(0, 1), skipped_layers)
            encoder_tokens.append(tokens.view(len(ids), -1, config.width))
            vector = vector.view(len(ids), chunks.shape[1], -1)[:, 0]
        tokens, vector = torch.cat(encoder_tokens, 2), vector if self.config.use_pooled else None
        if self.config.zero_empty_prompts:
            has_words = (ids[:, 0, 1] != self.config.encoders[0].eos_token_id).to(tokens.dtype)
            tokens = tokens * has_words[:, None, None]
            vector = None if vector is None else vector * has_words[:, None]
        return Conditioning(tokens, None, vector)


class CLIPSkipEncoder(nn.Module):
    """ClipTexts whose tokens do without so many more of the last layers ("clip skip", less one)."""

    def __init__(self, text_encoders: CLIPTextEncoders, skipped_layers: int) -> None:
        super().__init__()
        self.text_encoders, self.skipped_layers = text_encoders, skipped_layers

    def forward(self, ids: Tensor) -> Conditioning:
        conditioning: Conditioning = self.text_encoders(ids, self.skipped_layers)
        return conditioning
