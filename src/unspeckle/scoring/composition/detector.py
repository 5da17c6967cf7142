"""What stands in a picture of an emoji scene and where: a small fully convolutional detector, trained from the truth.

Zhou et al. 2019, "Objects as points": at each place of a coarse grid the heat of each noun's middle, and what would be
true of a thing whose middle is here: how far its four edges lie, its tint, what it wears, whether it stands on stilts.
A hybrid is one middle at which two of the heats for halves are hot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unspeckle import configuration
from unspeckle.atomic import replace_file
from unspeckle.errors import InputError

KEY = "unspeckle detector"
STRIDE = 4  # pixels between places of the grid


@dataclass(frozen=True)
class DetectorConfig:
    """What is known, in the order of the network's outputs. Pictures are brought to `size` pixels a side."""

    nouns: tuple[str, ...]
    halves: tuple[str, ...]  # the nouns that hybrids are made of
    tints: tuple[str, ...]
    garments: tuple[str, ...]
    size: int = 64
    width: int = 64
    threshold: float = 0.25  # the least heat of a thing


@dataclass(frozen=True)
class Detection:
    """A thing: its noun, or the two of a hybrid; its box (x0, y0, x1, y1), stilts left out, as shares of the sides."""

    nouns: tuple[str, ...]
    box: tuple[float, float, float, float]
    tint: str = ""  # "" = its own colours
    wearing: str = ""
    stilts: bool = False
    heat: float = 1.0

    @property
    def middle(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


class Outputs(NamedTuple):
    """At each place, logits but for the edges: how far left, up, right and down they lie, as shares of the side."""

    heat: Tensor  # (B, nouns + halves, h, w)
    edges: Tensor  # (B, 4, h, w)
    tint: Tensor  # (B, 1 + tints, h, w)
    wearing: Tensor  # (B, 1 + garments, h, w)
    stilts: Tensor  # (B, 1, h, w)


class Residual(nn.Module):
    """x + conv(relu(conv(x))), each normalised over the batch (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other = convolution(width, width), convolution(width, width)
        nn.init.zeros_(self.other[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.other(F.relu(self.one(x))))


def convolution(enter: int, leave: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(enter, leave, 3, stride, 1, bias=False), nn.BatchNorm2d(leave))


class Detector(nn.Module):
    """Pictures (B, 3, size, size) in [−1, 1] -> Outputs on a grid of size / 4; `detect` reads them."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        nouns, halves = len(config.nouns), len(config.halves)
        self._sizes = (nouns + halves, 4, 1 + len(config.tints), 1 + len(config.garments), 1)
        self.enter = convolution(12, width // 2)
        self.fine = nn.Sequential(Residual(width // 2), convolution(width // 2, width, 2), nn.ReLU(), Residual(width))
        self.coarse = nn.Sequential(
            convolution(width, 2 * width, 2), nn.ReLU(), Residual(2 * width), Residual(2 * width), Residual(2 * width)
        )
        self.up = nn.Conv2d(2 * width, width, 1)
        self.leave = nn.Sequential(Residual(width), Residual(width))
        self.out = nn.Conv2d(width, sum(self._sizes), 1)
        nn.init.constant_(self.out.bias[: self._sizes[0]], -4.0)  # type: ignore[index]  # almost nowhere is a middle

    def forward(self, x: Tensor) -> Outputs:
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        fine = self.fine(F.relu(self.enter(x)))
        coarse = F.interpolate(self.up(self.coarse(fine)), scale_factor=2.0, mode="nearest")
        heat, edges, *others = self.out(self.leave(F.relu(fine + coarse))).float().split(self._sizes, dim=1)
        return Outputs(heat, F.softplus(edges - 1), *others)

    @torch.no_grad()
    def detect(self, pictures: Tensor) -> list[list[Detection]]:
        """All that is in pictures (B, 3, H, W) uint8, or float in [−1, 1], the hottest first."""
        x = pictures.float() / 127.5 - 1 if pictures.dtype == torch.uint8 else pictures.float()
        side = self.config.size
        if x.shape[2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        return [found for part in torch.split(x, 64) for found in self._read(self(part))]

    def _read(self, outputs: Outputs) -> list[list[Detection]]:
        heat = outputs.heat.sigmoid()
        whole, halves = torch.split(heat, [len(self.config.nouns), len(self.config.halves)], dim=1)
        peaks = [*_peaks(whole, self.config.threshold)]
        found: list[list[Detection]] = [[] for _ in range(len(heat))]
        for b, channel, y, x in peaks:
            thing = (self.config.nouns[channel],)
            found[b].append(self._detection(outputs, thing, b, y, x, float(whole[b, channel, y, x])))
        if len(self.config.halves) > 1:
            both = halves.topk(2, dim=1)
            for b, _, y, x in _peaks(both.values[:, 1:], self.config.threshold):
                first, second = (self.config.halves[int(i)] for i in both.indices[b, :, y, x].sort().values)
                score = float(both.values[b, 1, y, x])
                found[b].append(self._detection(outputs, (first, second), b, y, x, score))
        return [_distinct(things) for things in found]

    def _detection(self, outputs: Outputs, nouns: tuple[str, ...], b: int, y: int, x: int, heat: float) -> Detection:
        height, width = outputs.edges.shape[2:]
        left, up, right, down = outputs.edges[b, :, y, x].tolist()
        u, v = (x + 0.5) / width, (y + 0.5) / height
        return Detection(
            nouns=nouns,
            box=(max(0.0, u - left), max(0.0, v - up), min(1.0, u + right), min(1.0, v + down)),
            tint=("", *self.config.tints)[int(outputs.tint[b, :, y, x].argmax())],
            wearing=("", *self.config.garments)[int(outputs.wearing[b, :, y, x].argmax())],
            stilts=bool(outputs.stilts[b, 0, y, x] > 0),
            heat=heat,
        )


def _peaks(heat: Tensor, least: float) -> list[list[int]]:
    """[b, channel, y, x] where the heat is the highest of the nine places around and at least `least`."""
    highest = F.max_pool2d(heat, 3, 1, 1) == heat
    return [[int(i) for i in place] for place in (highest & (heat >= least)).nonzero()]


def _distinct(things: list[Detection]) -> list[Detection]:
    """The hottest of things in one place."""
    kept: list[Detection] = []
    for thing in sorted(things, key=lambda thing: -thing.heat):
        if all(overlap(thing.box, other.box) < 0.5 for other in kept):
            kept.append(thing)
    return kept


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """The area of two boxes' intersection over that of their union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(0.0, width) * max(0.0, height)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - inside
    return inside / union if union > 0 else 0.0


def save(detector: Detector, path: Path) -> None:
    """Write the detector as one file, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    with replace_file(path) as beside:
        save_file(tensors, beside, {KEY: json.dumps(configuration.to_json(detector.config))})


def load(path: Path) -> Detector:
    """Read a detector's file. InputError where it is not there, not one, or does not fit its own configuration."""
    mend = "delete it, and it is trained again"
    try:
        with safe_open(path, framework="pt") as opened:
            said = (opened.metadata() or {}).get(KEY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if said is None:
            raise InputError(f"{path}: is no detector of unspeckle; {mend}")
        detector = Detector(configuration.from_json(DetectorConfig, json.loads(said), str(path)))
        detector.load_state_dict(tensors)
    except (OSError, SafetensorError, ValueError, RuntimeError) as e:
        raise InputError(f"{path}: cannot be read as a detector ({' '.join(str(e).split())[:100]}); {mend}") from e
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError(f"{path}: holds values that are not finite; {mend}")
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return detector.eval()
