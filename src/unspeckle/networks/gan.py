"""The two networks of a GAN, after R3GAN (Huang et al. 2024): a generator and a discriminator that mirrors it.

Both are plain residual networks without normalization: inverted bottlenecks whose 3 × 3 convolution has groups, leaky
ReLU, bilinear resampling, and initial values by which every residual branch begins as zero (Zhang et al. 2019,
"Fixup").
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import AnyConditioning, Conditioning, PreparedConditioning
from unspeckle.networks.layers import ConvOrLinear, zero_init

LEAK = 0.2  # slope of the leaky ReLU below zero
ACTIVATION_GAIN = math.sqrt(2 / (1 + LEAK**2))  # keeps the variance of its input (He et al. 2015)


@dataclass(frozen=True)
class GeneratorConfig:
    """The shape of a generator, and of the discriminator that it was trained against."""

    # Channels of x
    channels: int = 3
    # Width and height of x; each is a multiple of size_multiple
    size: tuple[int, int] = (64, 64)
    # Numbers of the noise that the image is made from
    noise_width: int = 64
    # Channels of the feature maps, from the coarsest to the finest, each with twice the side of the one before
    widths: tuple[int, ...] = (128, 128, 96, 64, 32)
    # Residual blocks of each
    blocks: int = 2
    # The inside of a block is so many times as wide
    expansion: int = 2
    # Channels that a 3 × 3 convolution mixes
    group_width: int = 16
    # Width of the text embeddings, which are not read, and of the pooled one
    text_width: int = 64
    vector_width: int = 64
    concat_channels: ClassVar[int] = 0
    guidance_width: ClassVar[int] = 0
    coarse_predictor_layers: ClassVar[int] = 0

    @property
    def size_multiple(self) -> int:
        """The sides of x are multiples of this."""
        return 1 << (len(self.widths) - 1)

    @property
    def coarsest_size(self) -> tuple[int, int]:
        """Width and height of the coarsest feature map."""
        return self.size[0] // self.size_multiple, self.size[1] // self.size_multiple


class InvertedBottleneck(nn.Module):
    """x + proj(act(conv(act(expand(x))))), (B, C, H, W) to the same; its branch is zero at first."""

    def __init__(self, channels: int, config: GeneratorConfig) -> None:
        super().__init__()
        inside = channels * config.expansion
        groups = max(1, inside // config.group_width)
        self.expand = nn.Conv2d(channels, inside, 1)
        self.conv = nn.Conv2d(inside, inside, 3, padding=1, groups=groups)
        self.proj = zero_init(nn.Conv2d(inside, channels, 1, bias=False))
        depth = config.blocks * len(config.widths)
        for layer in (self.expand, self.conv):
            # Three layers in a branch, of which the last is zero: depth^(-1 / (2 · 3 - 2)) in all others together
            init_weight(layer, gain=ACTIVATION_GAIN * depth**-0.25)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.expand(x), LEAK)
        h = F.leaky_relu(self.conv(h), LEAK)
        out: Tensor = x + self.proj(h)
        return out


def make_stage(channels: int, config: GeneratorConfig) -> nn.Module:
    """The residual blocks of one resolution."""
    return nn.Sequential(*(InvertedBottleneck(channels, config) for _ in range(config.blocks)))


class Generator(nn.Module):
    """x̂ (B, C, H, W) from noise at t = 1, in one step: what it "predicts" is x, so an ordinary Denoiser can hold it.

    Of the noise (B, C, H, W) only the first noise_width numbers of each image are read: its z.
    """

    # The numbers of steps in which it can draw
    step_counts = (1,)

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width, height = config.coarsest_size
        self.vector_embed = nn.Linear(config.vector_width, config.noise_width, bias=False)
        self.basis = nn.Parameter(torch.randn(config.widths[0], height, width))
        self.basis_weights = init_weight(nn.Linear(2 * config.noise_width, config.widths[0], bias=False), gain=1.0)
        self.stages = nn.ModuleList(
            nn.Sequential(*(InvertedBottleneck(channels, config) for _ in range(config.blocks)))
            for channels in config.widths
        )
        self.transitions = nn.ModuleList(resize_channels(a, b) for a, b in pairwise(config.widths))
        self.to_image = init_weight(nn.Conv2d(config.widths[-1], config.channels, 1), gain=1.0)

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """What a drawing needs of the text: its pooled embedding."""
        return PreparedConditioning(conditioning.tokens[:, :0].flatten(1), None, conditioning.vector)

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: AnyConditioning) -> Tensor:
        """x (B, C, H, W), pure noise, and the pooled text embedding (B, P) -> (B, C, H, W). c_noise is not read."""
        assert conditioning.vector is not None
        z = x.flatten(1)[:, : self.config.noise_width]
        weights = self.basis_weights(torch.cat([z, self.vector_embed(conditioning.vector)], dim=1))
        h = weights[:, :, None, None] * self.basis  # (B, C, h, w)
        h = self.stages[0](h.contiguous(memory_format=torch.channels_last))
        for transition, stage in zip(self.transitions, self.stages[1:], strict=True):
            h = stage(F.interpolate(transition(h), scale_factor=2.0, mode="bilinear", align_corners=False))
        out: Tensor = self.to_image(h)
        return out


class Discriminator(nn.Module):
    """How real an image looks, and how well it fits its text: the mirrored generator, ending in a number."""

    blur: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths[::-1]
        width, height = config.coarsest_size
        self.from_image = init_weight(nn.Conv2d(config.channels, widths[0], 1), gain=1.0)
        self.stages = nn.ModuleList(make_stage(channels, config) for channels in widths)
        self.transitions = nn.ModuleList(resize_channels(a, b) for a, b in pairwise(widths))
        self.pool = init_weight(
            nn.Conv2d(widths[-1], widths[-1], (height, width), groups=widths[-1], bias=False), gain=1.0
        )
        self.realness = init_weight(nn.Linear(widths[-1], 1, bias=False), gain=1.0)
        self.vector_embed = init_weight(nn.Linear(config.vector_width, widths[-1], bias=False), gain=1.0)
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8  # the adjoint of bilinear upsampling, as a mean
        self.register_buffer("blur", torch.outer(row, row)[None, None], persistent=False)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Images (B, C, H, W) and pooled text embeddings (B, P) -> (B,), the higher the more real.

        The text counts by an inner product with the features (Miyato & Koyama 2018)."""
        h = self.stages[0](self.from_image(x))
        for transition, stage in zip(self.transitions, self.stages[1:], strict=True):
            h = stage(transition(self.downsample(h)))
        features = self.pool(h).flatten(1)  # (B, C)
        fit = (features * self.vector_embed(vector)).sum(dim=1) / math.sqrt(features.shape[1])
        return self.realness(features).squeeze(1) + fit  # type: ignore[no-any-return]

    def downsample(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2)."""
        blur = self.blur.to(x.dtype).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), blur, stride=2, groups=x.shape[1])


def resize_channels(in_channels: int, out_channels: int) -> nn.Module:
    """A 1 × 1 convolution where the numbers of channels differ."""
    if in_channels == out_channels:
        return nn.Identity()
    return init_weight(nn.Conv2d(in_channels, out_channels, 1, bias=False), gain=1.0)


def init_weight(layer: ConvOrLinear, gain: float) -> ConvOrLinear:
    """The layer with normal weights of deviation gain / √(inputs), and without bias at first."""
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
