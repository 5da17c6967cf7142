"""The loss that the detector is trained with. After Zhou et al. 2019, "Objects as points"."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.scoring.composition.detector import STRIDE, DetectorConfig, DetectorOutputs
from unspeckle.scoring.composition.detector_examples import GARMENT, NOUN, SECOND_NOUN, STILTS, TINT, X0, Y1

MIN_NEARNESS = 0.3  # cells that are less near to an object's center need not know its attributes
EDGE_WEIGHT = 5  # of the edge distances' error among the attributes


class Targets(NamedTuple):
    """What the network should predict for each cell of the grid."""

    heatmap: Tensor  # (B, nouns + hybrid nouns, h, w): 1 at an object's center, a Gaussian around it
    nearest: Tensor  # (B, h, w): which of the image's objects is nearest
    nearness: Tensor  # (B, h, w): the value of that object's Gaussian


def make_targets(labels: Tensor, hybrid_index: Tensor, config: DetectorConfig) -> Targets:
    """The targets of labels (B, MAX_OBJECTS, LABEL_COLUMNS), see ExampleBlock.

    hybrid_index (nouns,) is the index of each noun among the hybrid nouns, -1 for others.
    """
    grid_size = config.image_size // STRIDE
    boxes = labels[..., X0 : Y1 + 1] / config.image_size  # (B, MAX_OBJECTS, 4)
    center, box_size = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3)
    cell = (center * grid_size).floor().clamp(0, grid_size - 1)
    sigma = (box_size * grid_size / 7).clamp(min=0.6)
    grid = torch.arange(grid_size, dtype=torch.float32)
    gaussian_x = torch.exp(-((grid - cell[..., :1]) ** 2) / (2 * sigma[..., :1] ** 2))  # (B, MAX_OBJECTS, w)
    gaussian_y = torch.exp(-((grid - cell[..., 1:]) ** 2) / (2 * sigma[..., 1:] ** 2))  # (B, MAX_OBJECTS, h)
    is_object = (labels[..., NOUN] >= 0)[..., None, None]
    gaussians = gaussian_y[..., None] * gaussian_x[..., None, :] * is_object  # (B, MAX_OBJECTS, h, w)
    heatmap = torch.zeros(len(labels), len(config.nouns) + len(config.hybrid_nouns), grid_size, grid_size)
    batch_index = torch.arange(len(labels))
    for slot in range(labels.shape[1]):
        first, second = labels[:, slot, NOUN].long(), labels[:, slot, SECOND_NOUN].long()
        is_hybrid = second >= 0
        first_channel = torch.where(is_hybrid, len(config.nouns) + hybrid_index[first.clamp(min=0)], first).clamp(min=0)
        second_channel = torch.where(is_hybrid, len(config.nouns) + hybrid_index[second.clamp(min=0)], first_channel)
        for channel in (first_channel, second_channel):
            heatmap[batch_index, channel] = torch.maximum(heatmap[batch_index, channel], gaussians[:, slot])
    nearness, nearest = gaussians.max(dim=1)
    return Targets(heatmap, nearest, nearness)


def detection_loss(outputs: DetectorOutputs, labels: Tensor, hybrid_index: Tensor, config: DetectorConfig) -> Tensor:
    """The focal loss of the heatmap (eq. 1 of the paper), plus the loss of the attributes near the objects' centers."""
    targets = make_targets(labels, hybrid_index, config)
    weight = torch.where(targets.nearness > MIN_NEARNESS, targets.nearness, 0.0)  # (B, h, w)
    nearest_labels = labels[torch.arange(len(labels))[:, None, None], targets.nearest]  # (B, h, w, LABEL_COLUMNS)
    attribute_loss = _attribute_loss(outputs, nearest_labels, config.image_size)
    return _focal_loss(outputs.heatmap, targets.heatmap) + (attribute_loss * weight).sum() / weight.sum().clamp(min=1)


def _focal_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    probability, is_center = logits.sigmoid(), heatmap == 1
    positive = (1 - probability) ** 2 * F.logsigmoid(logits)
    negative = (1 - heatmap) ** 4 * probability**2 * F.logsigmoid(-logits)
    return -torch.where(is_center, positive, negative).sum() / is_center.sum().clamp(min=1)


def _attribute_loss(outputs: DetectorOutputs, labels: Tensor, image_size: int) -> Tensor:
    """(B, h, w): the loss of edge distances, tint, garment and stilts, for the labels (B, h, w, LABEL_COLUMNS)."""
    grid_size = outputs.edge_distances.shape[-1]
    cell_centers = (torch.arange(grid_size) + 0.5) / grid_size
    boxes = labels[..., X0 : Y1 + 1].permute(0, 3, 1, 2) / image_size
    cell_x = cell_centers.expand(grid_size, grid_size)
    cell_grid = torch.stack((cell_x, cell_x.T))  # (2, h, w)
    edge_distances = torch.cat((cell_grid - boxes[:, :2], boxes[:, 2:] - cell_grid), dim=1).clamp(min=0)
    loss = (outputs.edge_distances - edge_distances).abs().sum(1) * EDGE_WEIGHT
    for logits, column in ((outputs.tint, TINT), (outputs.wearing, GARMENT)):
        loss = loss + F.cross_entropy(logits, labels[..., column].long().clamp(min=0), reduction="none")
    stilts = labels[..., STILTS].clamp(min=0)
    return loss + F.binary_cross_entropy_with_logits(outputs.stilts[:, 0], stilts, reduction="none")
