"""The autoencoder of latent diffusion (Rombach et al. 2022): pictures to a few channels at an eighth of their sides."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.layers import Growing, activated, added, attend


@dataclass(frozen=True)
class VaeConfig:
    """Sizes; latents are (what the encoder says - shift) · scale, which has about unit variance."""

    latents: int = 4
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2  # at each level of the encoder; the decoder has one more
    groups: int = 32
    mixes: bool = True  # 1 × 1 convolutions on both sides of the latents
    scale: float = 0.18215
    shift: float = 0.0

    @property
    def channels(self) -> int:
        return self.latents

    @property
    def factor(self) -> int:
        return 1 << (len(self.multipliers) - 1)


class VaeBlock(nn.Module):
    """Two convolutions (He et al. 2016)."""

    def __init__(self, enter: int, leave: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, enter, 1e-6), nn.GroupNorm(groups, leave, 1e-6)
        self.conv1, self.conv2 = nn.Conv2d(enter, leave, 3, padding=1), nn.Conv2d(leave, leave, 3, padding=1)
        self.skip = nn.Conv2d(enter, leave, 1) if enter != leave else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.skip(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class VaeAttention(nn.Module):
    """Every place sees every other, with one head."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        h = attend(self.query(h), self.key(h), self.value(h), 1)
        h = added(self.out, h, x.permute(0, 2, 3, 1).flatten(1, 2))
        return h.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


class Middle(nn.Sequential):
    """What both halves do at the coarsest level."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__(VaeBlock(width, width, groups), VaeAttention(width, groups), VaeBlock(width, width, groups))


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) to mean and log-variance (B, 2 · latents, H / factor, W / factor)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.blocks = config.blocks
        self.enter = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down, self.shrink, now = nn.ModuleList(), nn.ModuleList(), widths[0]
        for level, width in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(VaeBlock(now, width, config.groups))
                now = width
            if level < len(widths) - 1:
                self.shrink.append(nn.Conv2d(now, now, 3, stride=2))
        self.middle = Middle(now, config.groups)
        self.norm = nn.GroupNorm(config.groups, now, 1e-6)
        self.leave = nn.Conv2d(now, 2 * config.latents, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        for i, block in enumerate(self.down, 1):
            h = block(h)
            if i % self.blocks == 0 and i < len(self.down):
                h = self.shrink[i // self.blocks - 1](F.pad(h, (0, 1, 0, 1)))
        return activated(self.leave, self.norm, self.middle(h))


class Decoder(nn.Module):
    """Latents (B, latents, h, w) to pictures (B, 3, h · factor, w · factor)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in reversed(config.multipliers)]
        self.blocks = config.blocks + 1
        self.enter = nn.Conv2d(config.latents, widths[0], 3, padding=1)
        self.middle = Middle(widths[0], config.groups)
        self.up, self.grow, now = nn.ModuleList(), nn.ModuleList(), widths[0]
        for level, width in enumerate(widths):
            for _ in range(self.blocks):
                self.up.append(VaeBlock(now, width, config.groups))
                now = width
            if level < len(widths) - 1:
                self.grow.append(Growing(now))
        self.norm = nn.GroupNorm(config.groups, now, 1e-6)
        self.leave = nn.Conv2d(now, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.middle(self.enter(z.contiguous(memory_format=torch.channels_last)))
        for i, block in enumerate(self.up, 1):
            h = block(h)
            if i % self.blocks == 0 and i < len(self.up):
                h = self.grow[i // self.blocks - 1](h)
        return activated(self.leave, self.norm, h)


class Vae(Autoencoder):
    """A Gaussian of latents for each picture; standardised at this border."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config, self.channels, self.factor = config, config.channels, config.factor
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.mix = nn.Conv2d(2 * config.latents, 2 * config.latents, 1) if config.mixes else nn.Identity()
        self.unmix = nn.Conv2d(config.latents, config.latents, 1) if config.mixes else nn.Identity()

    def posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the standardised latents."""
        mean, log_variance = self.mix(self.encoder(pictures.to(self._dtype))).float().chunk(2, dim=1)
        deviation = (log_variance.clamp(-30, 20) / 2).exp()
        return (mean - self.config.shift) * self.config.scale, deviation * self.config.scale

    def encode(self, pictures: Tensor) -> Tensor:
        """The posterior's mean."""
        return self.posterior(pictures)[0]

    def decode(self, latents: Tensor) -> Tensor:
        z = (latents / self.config.scale + self.config.shift).to(self._dtype)
        out: Tensor = self.decoder(self.unmix(z)).float()
        return out

    @property
    def _dtype(self) -> torch.dtype:
        return self.decoder.norm.weight.dtype
