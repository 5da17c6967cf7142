"""What an image of an emoji scene shows and where: a small fully convolutional detector, trained on painted scenes.

After Zhou et al. 2019, "Objects as points": for each cell of a coarse grid the network predicts how likely it is that
an object of each noun has its center there, and what would be true of that object: the distances to the four edges of
its box, its tint, what it wears, whether it stands on stilts. A hybrid is a center at which two of the channels for
hybrid nouns are high.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4  # pixels between two cells of the grid
MAX_IOU = 0.5  # of two detections that overlap by more, the one with the lower score is dropped
BATCH_SIZE = 64  # images in one call of the network
Box = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class DetectorConfig:
    """What a detector knows, in the order of the network's outputs."""

    nouns: tuple[str, ...]
    hybrid_nouns: tuple[str, ...]  # the nouns that hybrids are made of
    tints: tuple[str, ...]
    garments: tuple[str, ...]
    image_size: int = 64  # images are resized to that many pixels a side
    width: int = 64  # channels
    threshold: float = 0.25  # the lowest score of a detection


@dataclass(frozen=True)
class Detection:
    """An object that was found."""

    nouns: tuple[str, ...]  # its noun, or the two nouns of a hybrid
    box: Box  # without stilts, in fractions of the image's sides
    tint: str = ""  # empty if it has its own colors
    wearing: str = ""  # a garment, or empty
    on_stilts: bool = False
    score: float = 1.0  # how sure the detector is, 0 to 1

    @property
    def center(self) -> tuple[float, float]:
        """(x, y), in fractions of the image's sides."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


class DetectorOutputs(NamedTuple):
    """What the network predicts for each cell of the grid; all but the edge distances are logits."""

    heatmap: Tensor  # (B, nouns + hybrid nouns, h, w)
    edge_distances: Tensor  # (B, 4, h, w): left, up, right and down, in fractions of the image's sides
    tint: Tensor  # (B, 1 + tints, h, w)
    wearing: Tensor  # (B, 1 + garments, h, w)
    stilts: Tensor  # (B, 1, h, w)


class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))), each convolution with batch normalization (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(width, width), conv_bn(width, width)
        nn.init.zeros_(self.conv2[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


def conv_bn(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3 × 3 convolution with batch normalization."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm2d(out_channels))


class Detector(nn.Module):
    """The network, (B, 3, size, size) in [-1, 1] -> DetectorOutputs of size / STRIDE cells a side; see detect()."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        center_channels = len(config.nouns) + len(config.hybrid_nouns)
        self._output_channels = (center_channels, 4, 1 + len(config.tints), 1 + len(config.garments), 1)
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
        self.coarse_proj = nn.Conv2d(2 * width, width, 1)
        self.neck = nn.Sequential(ResidualBlock(width), ResidualBlock(width))
        self.conv_out = nn.Conv2d(width, sum(self._output_channels), 1)
        # Hardly any cell is a center
        nn.init.constant_(self.conv_out.bias[:center_channels], -4.0)  # type: ignore[index]

    def forward(self, x: Tensor) -> DetectorOutputs:
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)  # (B, 12, size / 2, size / 2)
        fine = self.fine(F.relu(self.conv_in(x)))  # (B, width, size / 4, size / 4)
        coarse = F.interpolate(self.coarse_proj(self.coarse(fine)), scale_factor=2.0, mode="nearest")
        outputs = self.conv_out(self.neck(F.relu(fine + coarse))).float()
        heatmap, edge_distances, *others = outputs.split(self._output_channels, dim=1)
        return DetectorOutputs(heatmap, F.softplus(edge_distances - 1), *others)

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[list[Detection]]:
        """For each of the images (B, 3, H, W), uint8 or float in [-1, 1], its objects, the highest score first."""
        x = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()
        size = self.config.image_size
        if x.shape[2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        return [detections for batch in torch.split(x, BATCH_SIZE) for detections in self._decode(self(batch))]

    def _decode(self, outputs: DetectorOutputs) -> list[list[Detection]]:
        nouns, hybrid_nouns = self.config.nouns, self.config.hybrid_nouns
        noun_heatmap, hybrid_heatmap = torch.split(outputs.heatmap.sigmoid(), [len(nouns), len(hybrid_nouns)], dim=1)
        detections: list[list[Detection]] = [[] for _ in range(len(noun_heatmap))]
        for image, channel, y, x in _find_peaks(noun_heatmap, self.config.threshold):
            score = float(noun_heatmap[image, channel, y, x])
            detections[image].append(self._make_detection(outputs, (nouns[channel],), (image, y, x), score))
        if len(hybrid_nouns) > 1:
            top_two = hybrid_heatmap.topk(2, dim=1)
            for image, _, y, x in _find_peaks(top_two.values[:, 1:], self.config.threshold):
                first, second = (hybrid_nouns[int(i)] for i in top_two.indices[image, :, y, x].sort().values)
                score = float(top_two.values[image, 1, y, x])
                detections[image].append(self._make_detection(outputs, (first, second), (image, y, x), score))
        return [_suppress_overlaps(image_detections) for image_detections in detections]

    def _make_detection(
        self, outputs: DetectorOutputs, nouns: tuple[str, ...], cell: tuple[int, int, int], score: float
    ) -> Detection:
        """The object whose center is in a cell, (image, y, x)."""
        image, y, x = cell
        height, width = outputs.edge_distances.shape[2:]
        left, up, right, down = outputs.edge_distances[image, :, y, x].tolist()
        center_x, center_y = (x + 0.5) / width, (y + 0.5) / height
        return Detection(
            nouns=nouns,
            box=(
                max(0.0, center_x - left),
                max(0.0, center_y - up),
                min(1.0, center_x + right),
                min(1.0, center_y + down),
            ),
            tint=("", *self.config.tints)[int(outputs.tint[image, :, y, x].argmax())],
            wearing=("", *self.config.garments)[int(outputs.wearing[image, :, y, x].argmax())],
            on_stilts=bool(outputs.stilts[image, 0, y, x] > 0),
            score=score,
        )


def _find_peaks(heatmap: Tensor, threshold: float) -> list[list[int]]:
    """[image, channel, y, x] of each value of at least `threshold` that is the highest of the 3 × 3 cells around it."""
    is_peak = F.max_pool2d(heatmap, 3, 1, 1) == heatmap
    return [[int(i) for i in index] for index in (is_peak & (heatmap >= threshold)).nonzero()]


def _suppress_overlaps(detections: list[Detection]) -> list[Detection]:
    """The detections without those that overlap too much with one of a higher score (non-maximum suppression)."""
    distinct: list[Detection] = []
    for detection in sorted(detections, key=lambda detection: -detection.score):
        if all(box_iou(detection.box, other.box) < MAX_IOU for other in distinct):
            distinct.append(detection)
    return distinct


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0.0, width) * max(0.0, height)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - intersection
    return intersection / union if union > 0 else 0.0
