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

METADATA_KEY = "unspeckle detector"
STRIDE = 4  # pixels between places of the grid


@dataclass(frozen=True)
class DetectorConfig:
    """What is known, in the order of the network's outputs. Pictures are brought to `size` pixels a side."""

    nouns: tuple[str, ...]
    hybrid_nouns: tuple[str, ...]  # the nouns that hybrids are made of
    tints: tuple[str, ...]
    garments: tuple[str, ...]
    image_size: int = 64
    width: int = 64
    threshold: float = 0.25  # the least heat of a thing


@dataclass(frozen=True)
class Detection:
    """A thing: its noun, or the two of a hybrid; its box (x0, y0, x1, y1), stilts left out, as shares of the sides."""

    nouns: tuple[str, ...]
    box: tuple[float, float, float, float]
    tint: str = ""  # "" = its own colours
    wearing: str = ""
    on_stilts: bool = False
    score: float = 1.0

    @property
    def center(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


class DetectorOutputs(NamedTuple):
    """At each place, logits but for the edges: how far left, up, right and down they lie, as shares of the side."""

    heatmap: Tensor  # (B, nouns + halves, h, w)
    edge_distances: Tensor  # (B, 4, h, w)
    tint: Tensor  # (B, 1 + tints, h, w)
    wearing: Tensor  # (B, 1 + garments, h, w)
    stilts: Tensor  # (B, 1, h, w)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), each normalised over the batch (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(width, width), conv_bn(width, width)
        nn.init.zeros_(self.conv2[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


def conv_bn(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm2d(out_channels))


class Detector(nn.Module):
    """Pictures (B, 3, size, size) in [−1, 1] -> Outputs on a grid of size / 4; `detect` reads them."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        nouns, hybrid_nouns = len(config.nouns), len(config.hybrid_nouns)
        self._output_sizes = (nouns + hybrid_nouns, 4, 1 + len(config.tints), 1 + len(config.garments), 1)
        self.conv_in = conv_bn(12, width // 2)
        self.fine = nn.Sequential(
            ResidualBlock(width // 2), conv_bn(width // 2, width, 2), nn.ReLU(), ResidualBlock(width)
        )
        self.coarse = nn.Sequential(
            conv_bn(width, 2 * width, 2),
            nn.ReLU(),
            ResidualBlock(2 * width),
            ResidualBlock(2 * width),
            ResidualBlock(2 * width),
        )
        self.up = nn.Conv2d(2 * width, width, 1)
        self.neck = nn.Sequential(ResidualBlock(width), ResidualBlock(width))
        self.conv_out = nn.Conv2d(width, sum(self._output_sizes), 1)
        nn.init.constant_(self.conv_out.bias[: self._output_sizes[0]], -4.0)  # type: ignore[index]  # almost nowhere is a middle

    def forward(self, x: Tensor) -> DetectorOutputs:
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        fine = self.fine(F.relu(self.conv_in(x)))
        coarse = F.interpolate(self.up(self.coarse(fine)), scale_factor=2.0, mode="nearest")
        heatmap, edge_distances, *others = (
            self.conv_out(self.neck(F.relu(fine + coarse))).float().split(self._output_sizes, dim=1)
        )
        return DetectorOutputs(heatmap, F.softplus(edge_distances - 1), *others)

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[list[Detection]]:
        """All that is in pictures (B, 3, H, W) uint8, or float in [−1, 1], the hottest first."""
        x = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()
        size = self.config.image_size
        if x.shape[2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        return [detections for batch in torch.split(x, 64) for detections in self._decode(self(batch))]

    def _decode(self, outputs: DetectorOutputs) -> list[list[Detection]]:
        heatmap = outputs.heatmap.sigmoid()
        noun_heatmap, hybrid_heatmap = torch.split(
            heatmap, [len(self.config.nouns), len(self.config.hybrid_nouns)], dim=1
        )
        peaks = [*_find_peaks(noun_heatmap, self.config.threshold)]
        detections: list[list[Detection]] = [[] for _ in range(len(heatmap))]
        for b, channel, y, x in peaks:
            nouns = (self.config.nouns[channel],)
            detections[b].append(self._make_detection(outputs, nouns, b, y, x, float(noun_heatmap[b, channel, y, x])))
        if len(self.config.hybrid_nouns) > 1:
            top_two = hybrid_heatmap.topk(2, dim=1)
            for b, _, y, x in _find_peaks(top_two.values[:, 1:], self.config.threshold):
                first, second = (self.config.hybrid_nouns[int(i)] for i in top_two.indices[b, :, y, x].sort().values)
                score = float(top_two.values[b, 1, y, x])
                detections[b].append(self._make_detection(outputs, (first, second), b, y, x, score))
        return [_suppress_overlaps(image_detections) for image_detections in detections]

    def _make_detection(
        self, outputs: DetectorOutputs, nouns: tuple[str, ...], b: int, y: int, x: int, score: float
    ) -> Detection:
        height, width = outputs.edge_distances.shape[2:]
        left, coarse_proj, right, down = outputs.edge_distances[b, :, y, x].tolist()
        center_x, center_y = (x + 0.5) / width, (y + 0.5) / height
        return Detection(
            nouns=nouns,
            box=(
                max(0.0, center_x - left),
                max(0.0, center_y - coarse_proj),
                min(1.0, center_x + right),
                min(1.0, center_y + down),
            ),
            tint=("", *self.config.tints)[int(outputs.tint[b, :, y, x].argmax())],
            wearing=("", *self.config.garments)[int(outputs.wearing[b, :, y, x].argmax())],
            on_stilts=bool(outputs.stilts[b, 0, y, x] > 0),
            score=score,
        )


def _find_peaks(heatmap: Tensor, threshold: float) -> list[list[int]]:
    """[b, channel, y, x] where the heat is the highest of the nine places around and at least `least`."""
    is_peak = F.max_pool2d(heatmap, 3, 1, 1) == heatmap
    return [[int(i) for i in index] for index in (is_peak & (heatmap >= threshold)).nonzero()]


def _suppress_overlaps(detections: list[Detection]) -> list[Detection]:
    """The hottest of things in one place."""
    distinct: list[Detection] = []
    for detection in sorted(detections, key=lambda detection: -detection.score):
        if all(box_iou(detection.box, other.box) < 0.5 for other in distinct):
            distinct.append(detection)
    return distinct


def box_iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """The area of two boxes' intersection over that of their union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0.0, width) * max(0.0, height)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - intersection
    return intersection / union if union > 0 else 0.0


def save_detector(detector: Detector, path: Path) -> None:
    """Write the detector as one file, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    with replace_file(path) as temporary_path:
        save_file(tensors, temporary_path, {METADATA_KEY: json.dumps(configuration.to_json(detector.config))})


def load_detector(path: Path) -> Detector:
    """Read a detector's file. InputError where it is not there, not one, or does not fit its own configuration."""
    hint = "delete it, and it is trained again"
    try:
        with safe_open(path, framework="pt") as file:
            config_json = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if config_json is None:
            raise InputError(f"{path}: is no detector of unspeckle; {hint}")
        detector = Detector(configuration.from_json(DetectorConfig, json.loads(config_json), str(path)))
        detector.load_state_dict(tensors)
    except (OSError, SafetensorError, ValueError, RuntimeError) as e:
        raise InputError(f"{path}: cannot be read as a detector ({' '.join(str(e).split())[:100]}); {hint}") from e
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError(f"{path}: holds values that are not finite; {hint}")
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return detector.eval()
