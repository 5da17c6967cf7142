"""The U-Net: one code for the small convolutional networks trained here and for Stable Diffusion's three."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning
from unspeckle.networks.coarse_predictor import Draft, joined
from unspeckle.networks.layers import Attention, GatedFeedForward, Growing, activated, added, norm, silenced, sinusoids


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net. Level 0 is the finest; depths, sees_itself and the heads speak of the transformers at a level.

    A convolutional level has depth 1 and no feed-forward: its transformer is then only the attention to words.
    """

    channels: int = 3  # of x
    beside: int = 0  # channels joined to the input only
    patch: int = 1  # pixels folded into channels at the entry, unfolded at the exit
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 2  # residual blocks at each level on the way down; one more on the way up
    depths: tuple[int, ...] = (1, 1)  # transformer layers after each residual block
    middle_depth: int = 1
    sees_itself: tuple[bool, ...] = (False, True)  # self-attention
    feed_forward: bool = False
    projection: str = "none"  # around a transformer: none, conv (SD 1.x), linear (SD 2.x, XL)
    head_width: int = 32
    heads: int = 0  # fixed number of heads at every level (SD 1.x) in place of head_width
    text_width: int = 192  # of given.tokens
    vector_width: int = 0  # of given.vector
    guidance_width: int = 0  # of what follows in given.vector: the guidance scale's waves (LCM; Luo et al. 2023)
    scale_shift: bool = True  # time scales and shifts the second norm (Dhariwal & Nichol 2021); SD only adds
    clock_scale: float = 1000.0  # makes the clock span the sinusoids' periods
    draft: int = 0  # layers of the Draft whose mean picture of the words is joined to the input; 0 = there is none
    groups: int = 32  # of the normalisations; 0 normalises each place over its channels, five times as fast on a CPU

    @property
    def factor(self) -> int:
        """Height and width of x must be multiples of this."""
        return self.patch << (len(self.multipliers) - 1)


class ResBlock(nn.Module):
    """Two convolutions around the time's embedding (He et al. 2016; Ho et al. 2020)."""

    def __init__(self, enter: int, leave: int, config: UNetConfig) -> None:
        super().__init__()
        self.scale_shift = config.scale_shift
        self.norm1 = norm(enter, config.groups)
        self.conv1 = nn.Conv2d(enter, leave, 3, padding=1)
        self.time = nn.Linear(4 * config.width, 2 * leave if config.scale_shift else leave)
        self.norm2 = norm(leave, config.groups)
        self.conv2 = silenced(nn.Conv2d(leave, leave, 3, padding=1))
        self.skip = nn.Conv2d(enter, leave, 1) if enter != leave else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        moved = self.time(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = moved.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + moved)
        out: Tensor = self.skip(x) + self.conv2(F.silu(h))
        return out


class Layer(nn.Module):
    """One transformer layer: pictures see themselves (if wide enough a view is affordable), then the words."""

    def __init__(self, width: int, heads: int, sees_itself: bool, config: UNetConfig) -> None:
        super().__init__()
        if sees_itself:
            self.norm1 = nn.LayerNorm(width)
            self.itself = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.words = Attention(width, heads, config.text_width)
        if config.feed_forward:
            self.norm3 = nn.LayerNorm(width)
            self.feed = GatedFeedForward(width)
        self.sees_itself, self.feeds = sees_itself, config.feed_forward

    def forward(self, x: Tensor, words: Tensor, mask: Tensor | None) -> Tensor:
        if self.sees_itself:
            x = self.itself.within(self.norm1(x), beside=x)
        x = self.words(self.norm2(x), words, mask, beside=x)
        return self.feed(self.norm3(x), beside=x) if self.feeds else x


class SpatialTransformer(nn.Module):
    """Transformer layers over the places of a feature map (Rombach et al. 2022)."""

    def __init__(self, width: int, depth: int, sees_itself: bool, config: UNetConfig) -> None:
        super().__init__()
        heads = config.heads or width // config.head_width
        self.conv = config.projection == "conv"
        self.projected = config.projection != "none"
        if self.projected:
            self.norm = norm(width, config.groups, eps=1e-6)
            self.enter = nn.Conv2d(width, width, 1) if self.conv else nn.Linear(width, width)
            self.leave = silenced(nn.Conv2d(width, width, 1)) if self.conv else silenced(nn.Linear(width, width))
        self.layers = nn.ModuleList(Layer(width, heads, sees_itself, config) for _ in range(depth))

    def forward(self, x: Tensor, words: list[Tensor], mask: Tensor | None) -> Tensor:
        _, _, high, wide = x.shape
        h = self.norm(x) if self.projected else x
        h = self.enter(h) if self.conv else h
        h = h.permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, C)
        h = self.enter(h) if self.projected and not self.conv else h
        for layer, keys_values in zip(self.layers, words, strict=True):
            h = layer(h, keys_values, mask)
        if self.projected and not self.conv:
            h = added(self.leave, h, x.permute(0, 2, 3, 1).flatten(1, 2))
        h = h.view(h.shape[0], high, wide, -1).permute(0, 3, 1, 2)  # (B, C, H, W)
        return added(self.leave, h, x) if self.conv else h


class Stage(nn.Module):
    """A residual block and the transformer behind it."""

    def __init__(self, enter: int, leave: int, depth: int, sees_itself: bool, config: UNetConfig) -> None:
        super().__init__()
        self.block, self.depth = ResBlock(enter, leave, config), depth
        self.transformer = SpatialTransformer(leave, depth, sees_itself, config) if depth else None

    def forward(self, x: Tensor, time: Tensor, words: list[Tensor], mask: Tensor | None) -> Tensor:
        x = self.block(x, time)
        if self.transformer is not None:
            x = self.transformer(x, words, mask)
        return x


class UNet(nn.Module):
    """Ronneberger et al. 2015, as Ho et al. 2020 and Rombach et al. 2022 use it.

    forward(x (B, channels, H, W), clock (B,), given) -> (B, channels, H, W); given.tokens are (B, L, text_width).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        # All but the time's embedding, whose two last biases have one gradient: inductor (torch 2.13) then writes a
        # bfloat16 reduction into C++ twice under one name, so that the whole does not compile.
        self.compiled_trunk: Callable[..., Tensor] | None = None
        widths = [config.width * m for m in config.multipliers]
        deepest = len(widths) - 1
        self.time1 = nn.Linear(config.width, 4 * config.width)
        self.time2 = nn.Linear(4 * config.width, 4 * config.width)
        if config.vector_width:
            self.vector1 = nn.Linear(config.vector_width, 4 * config.width)
            self.vector2 = nn.Linear(4 * config.width, 4 * config.width)
        if config.guidance_width:
            self.guidance = nn.Linear(config.guidance_width, config.width, bias=False)
        if config.draft and config.beside:
            raise ValueError("a draft stands where other channels beside x would; take one of the two")
        self.draft = Draft(config.channels, config.text_width, config.draft) if config.draft else None
        joined_channels = config.beside + (config.channels if config.draft else 0)
        self.enter = nn.Conv2d((config.channels + joined_channels) * config.patch**2, widths[0], 3, padding=1)
        now, kept = widths[0], [widths[0]]
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(Stage(now, width, config.depths[level], config.sees_itself[level], config))
                now = width
                kept.append(now)
            if level < deepest:
                self.shrink.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                kept.append(now)
        self.middle1 = Stage(now, now, config.middle_depth, config.sees_itself[-1], config)
        self.middle2 = ResBlock(now, now, config)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                enter = now + kept.pop()
                self.up.append(Stage(enter, width, config.depths[level], config.sees_itself[level], config))
                now = width
            if level:
                self.grow.append(Growing(now))
        self.norm = norm(now, config.groups)
        self.leave = silenced(nn.Conv2d(now, config.channels * config.patch**2, 3, padding=1))

    def readers(self) -> list[Attention]:
        """Every attention to words, in the order in which forward meets them."""
        stages = [*self.down, self.middle1, *self.up]
        return [layer.words for s in stages if s.transformer is not None for layer in s.transformer.layers]

    def prepare(self, given: Conditioning) -> Conditioning:
        """What does not depend on the time: the keys and values of all layers, joined in tokens (B, L, Σ 2·C), and the
        draft, in beside."""
        keys_values = [reader.keys_values(given.tokens) for reader in self.readers()]
        beside = given.concat if self.draft is None else self.draft(given)
        return given._replace(tokens=torch.cat(keys_values, dim=2), beside=beside, prepared=True)

    def embed(self, clock: Tensor, given: Conditioning) -> Tensor:
        """What every residual block is told: the time, and the given vector, as (B, 4·width)."""
        config = self.config
        wave = sinusoids(clock * config.clock_scale, config.width).to(self.time1.weight.dtype)
        vector, widths = given.vector, [config.vector_width, config.guidance_width]
        if any(widths) and vector is None:
            raise ValueError(f"this network wants given.vector of {sum(widths)} values a picture")
        if config.guidance_width:
            vector, guidance = vector.split(widths, dim=1)  # type: ignore[union-attr]
            wave = wave + self.guidance(guidance.to(wave.dtype))
        time: Tensor = self.time2(F.silu(self.time1(wave)))
        if config.vector_width:
            time = time + self.vector2(F.silu(self.vector1(vector.to(wave.dtype))))  # type: ignore[union-attr]
        return F.silu(time)

    def forward(self, x: Tensor, clock: Tensor, given: Conditioning) -> Tensor:
        if not given.prepared:
            given = self.prepare(given)
        if given.concat is not None:
            x = joined(x, given.concat) if self.draft else torch.cat([x, given.concat.to(x.dtype)], dim=1)
        trunk = self.compiled_trunk or self.trunk
        return trunk(x, self.embed(clock, given), given.tokens, given.mask)

    def trunk(self, x: Tensor, time: Tensor, keys_values: Tensor, mask: Tensor | None) -> Tensor:
        """Down, through the middle and up again. time (B, 4·width); keys_values (B, L, Σ 2·C) of all readers."""
        config = self.config
        words = iter(torch.split(keys_values, [2 * r.query.out_features for r in self.readers()], dim=2))
        x = F.pixel_unshuffle(x, config.patch) if config.patch > 1 else x
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        kept = [h]

        def through(stage: nn.Module, h: Tensor) -> Tensor:
            assert isinstance(stage, Stage)
            return stage(h, time, [next(words) for _ in range(stage.depth)], mask)  # type: ignore[no-any-return]

        for i, stage in enumerate(self.down, 1):
            h = through(stage, h)
            kept.append(h)
            if i % config.blocks == 0 and i < len(self.down):
                h = self.shrink[i // config.blocks - 1](h)
                kept.append(h)
        h = self.middle2(through(self.middle1, h), time)
        for i, stage in enumerate(self.up, 1):
            h = through(stage, torch.cat([h, kept.pop()], dim=1))
            if i % (config.blocks + 1) == 0 and i < len(self.up):
                h = self.grow[i // (config.blocks + 1) - 1](h)
        out = activated(self.leave, self.norm, h)
        return F.pixel_shuffle(out, config.patch) if config.patch > 1 else out
