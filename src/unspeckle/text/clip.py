"""CLIP's text encoder (Radford et al. 2021), OpenAI's and OpenCLIP's: what Stable Diffusion reads its prompts with."""

from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of one encoder, and which of its layers is read."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    vocabulary: int = 49408
    length: int = 77  # tokens a row, start and end included
    end: int = 49407  # the id whose first place is pooled
    quick: bool = True  # x · sigmoid(1.702 x) (OpenAI) in place of gelu (OpenCLIP)
    projection: int = 0  # width of the pooled vector's projection; 0 = the vector as it is
    skip: int = 0  # how many of the last layers the tokens do without ("clip skip", less one)
    final_norm: bool = True  # normalise the tokens; the pooled vector always is


class ClipLayer(nn.Module):
    """A pre-norm transformer layer in which a token sees itself and those before it."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.heads, self.quick = config.heads, config.quick
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.query, self.key, self.value, self.out = (nn.Linear(config.width, config.width) for _ in range(4))
        self.inner, self.leave = nn.Linear(config.width, config.inner), nn.Linear(config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        query, key, value = (
            one(h).unflatten(2, (self.heads, -1)).transpose(1, 2) for one in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        h = self.inner(self.norm2(x))
        out: Tensor = x + self.leave(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))
        return out


class ClipEncoder(nn.Module):
    """ids (B, length) int64 to tokens (B, length, width) and the pooled vector (B, projection or width)."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.as_stored = False  # weights lie as a file has them, and are cast to float32 a layer at a time
        none = torch.zeros(config.vocabulary, config.width)  # to be loaded; random ones would import a second of torch
        self.token = nn.Embedding(config.vocabulary, config.width, _weight=none)
        self.place = nn.Parameter(torch.zeros(config.length, config.width))
        self.layers = nn.ModuleList(ClipLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, config.projection, bias=False) if config.projection else nn.Identity()

    def forward(self, ids: Tensor, skip: int = 0) -> tuple[Tensor, Tensor]:
        """skip: how many layers more the tokens do without."""
        x = self._cast(self.token(ids)) + self._cast(self.place[: ids.shape[1]])
        read = x
        for count, layer in enumerate(self.layers, 1):
            x = self._own(layer)(x)
            if count == self.config.layers - self.config.skip - skip:
                read = x
        tokens = self._own(self.norm)(read) if self.config.final_norm else read
        ends = (ids == self.config.end).int().argmax(1)
        vector = self._own(self.norm)(x[torch.arange(x.shape[0], device=x.device), ends])
        return tokens, self._own(self.project)(vector)

    def _cast(self, x: Tensor) -> Tensor:
        return x.float() if self.as_stored else x

    def _own(self, module: nn.Module) -> nn.Module:
        """The module, or a copy in float32 for this call alone: an encoder runs once a drawing, and else its weights
        would lie in memory all the while."""
        return deepcopy(module).float() if self.as_stored else module


@dataclass(frozen=True)
class ClipTextsConfig:
    """One or two encoders side by side, as Stable Diffusion reads them."""

    encoders: tuple[ClipConfig, ...] = (ClipConfig(),)
    pooled: bool = False  # give the last encoder's pooled vector too
    zeros: bool = False  # no words at all are zeros, not the encoding of an empty prompt (XL)

    @property
    def length(self) -> int:
        """Tokens of a chunk."""
        return self.encoders[0].length


class ClipTexts(nn.Module):
    """ids (B, encoders, chunks · length) to a Given: each chunk is read alone, their tokens stand one behind the other,
    those of two encoders in one row; the pooled vector is the first chunk's."""

    def __init__(self, config: ClipTextsConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleList(ClipEncoder(one) for one in config.encoders)

    def forward(self, ids: Tensor, skip: int = 0) -> Conditioning:
        """skip: how many of the last layers the tokens do without, beside those that they always do."""
        read, vector = [], None
        for encoder, config, rows in zip(self.encoders, self.config.encoders, ids.unbind(1), strict=True):
            chunks = rows.view(len(rows), -1, config.length)
            tokens, vector = encoder(chunks.flatten(0, 1), skip)
            read.append(tokens.view(len(ids), -1, config.width))
            vector = vector.view(len(ids), chunks.shape[1], -1)[:, 0]
        tokens, vector = torch.cat(read, 2), vector if self.config.pooled else None
        if self.config.zeros:
            words = (ids[:, 0, 1] != self.config.encoders[0].end).to(tokens.dtype)
            tokens = tokens * words[:, None, None]
            vector = None if vector is None else vector * words[:, None]
        return Conditioning(tokens, None, vector)


class Skipping(nn.Module):
    """ClipTexts whose tokens do without so many more of the last layers ("clip skip", less one)."""

    def __init__(self, texts: ClipTexts, skip: int) -> None:
        super().__init__()
        self.texts, self.skip = texts, skip

    def forward(self, ids: Tensor) -> Conditioning:
        given: Conditioning = self.texts(ids, self.skip)
        return given
