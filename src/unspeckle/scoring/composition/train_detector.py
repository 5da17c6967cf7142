"""How the detector learns: painted scenes made worse, the loss, the steps, and where the result is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from contextlib import closing

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.corpus.emoji.sprites import SpriteLibrary
from unspeckle.corpus.emoji.tints import TINTS
from unspeckle.scoring.composition.detector import (
    STRIDE,
    Detector,
    DetectorConfig,
    DetectorOutputs,
    load_detector,
    save_detector,
)
from unspeckle.scoring.composition.examples import paint_blocks
from unspeckle.training.inputs import image_cache_folder
from unspeckle.training.measurement import choose_device_and_precision
from unspeckle.training.optimizer import Muon

VERSION = 2  # of examples, network and training together: another one is another detector
BATCH_SIZE = 64
ADAMW_LEARNING_RATE, MUON_LEARNING_RATE, WEIGHT_DECAY = 2e-3, 4e-3, 0.01
TRAINING_IMAGES = 90_000
MAX_SIDE, SIDE_MULTIPLE = 64, 8  # pixels: bigger pictures are shrunk to that side, and sides are multiples of this

ProgressCallback = Callable[[int, int], None]


def load_or_train_detector(
    library: SpriteLibrary, image_size: int, progress: ProgressCallback | None = None
) -> Detector:
    """The detector of a library's nouns for corpora of `size` px: from the user's cache, else trained into it."""
    path = image_cache_folder().parent / "detectors" / f"{_cache_key(library, _detector_side(image_size))}.safetensors"
    if path.is_file():
        return load_detector(path)
    detector = train_detector(library, image_size, image_count=TRAINING_IMAGES, progress=progress)
    save_detector(detector, path)
    return detector


def _detector_side(image_size: int) -> int:
    return min(image_size, MAX_SIDE) // SIDE_MULTIPLE * SIDE_MULTIPLE


def _cache_key(library: SpriteLibrary, detector_side: int) -> str:
    hasher = hashlib.sha256(
        json.dumps([VERSION, detector_side, TRAINING_IMAGES, library.nouns, list(library.garments)]).encode()
    )
    for image in (*(s.image for s in library.sprites.values()), *library.garments.values()):
        hasher.update(image.tobytes())
    return hasher.hexdigest()[:16]


def train_detector(
    library: SpriteLibrary, image_size: int, *, image_count: int = TRAINING_IMAGES, seed: int = 0, workers: int = 1,
    progress: ProgressCallback | None = None,
) -> Detector:  # fmt: skip
    """A detector trained on that many painted scenes; `progress` hears (done, of) pictures.

    `workers` processes paint (0 = this one); a script that calls this needs the usual `if __name__ == "__main__"`.
    """
    hybrid_nouns = tuple(s.noun.name for s in library.sprites.values() if s.noun.face and s.noun.face.seam_y)
    config = DetectorConfig(
        nouns=tuple(library.nouns),
        hybrid_nouns=hybrid_nouns if len(hybrid_nouns) > 1 else (),
        tints=tuple(TINTS),
        garments=tuple(library.garments),
        image_size=_detector_side(image_size),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector(config)
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = dict(detector.named_parameters())
    muon_parameters = [p for name, p in parameters.items() if p.ndim == 4 and not name.startswith("out.")]
    adamw_parameters = [p for name, p in parameters.items() if p.ndim != 4 or name.startswith("out.")]
    muon, adamw = (
        Muon(muon_parameters, WEIGHT_DECAY),
        torch.optim.AdamW(adamw_parameters, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    )
    steps, use_bfloat16 = max(1, image_count // BATCH_SIZE), choose_device_and_precision("cpu", None)[1] == "bfloat16"
    generator = torch.Generator().manual_seed(seed)
    hybrid_index = torch.tensor([hybrid_nouns.index(noun) if noun in hybrid_nouns else -1 for noun in config.nouns])
    with closing(_iterate_batches(library, config.image_size, seed, workers)) as batches:
        for step in range(steps):
            images, labels = next(batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=use_bfloat16):
                outputs = detector(degrade_images(images, labels, generator))
            loss = detection_loss(outputs, labels, hybrid_index, config)
            detector.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            learning_rate_factor = min(1.0, (step + 1) / (0.05 * steps), (steps - step) / (0.6 * steps))
            adamw.param_groups[0]["lr"] = ADAMW_LEARNING_RATE * learning_rate_factor
            adamw.step()
            muon.step(MUON_LEARNING_RATE * learning_rate_factor)
            if progress is not None:
                progress((step + 1) * BATCH_SIZE, steps * BATCH_SIZE)
    return detector.eval()


def _iterate_batches(
    library: SpriteLibrary, image_size: int, seed: int, workers: int
) -> Generator[tuple[Tensor, Tensor]]:
    """Pictures (BATCH, 3, size, size) in [−1, 1], and their things (BATCH, MOST, 9) as in `Block`."""
    with closing(paint_blocks(library, image_size, seed, workers)) as example_blocks:
        for block in example_blocks:
            images = torch.from_numpy(block.images).permute(0, 3, 1, 2).float() / 127.5 - 1
            labels = torch.from_numpy(block.labels)
            yield from zip(torch.split(images, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True)


def make_targets(labels: Tensor, hybrid_index: Tensor, config: DetectorConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Heat (B, nouns + halves, h, w): at each middle 1, around it a Gaussian; then, for each place (B, h, w), which
    thing is nearest in that sense, and how near."""
    grid_size = config.image_size // STRIDE
    boxes = labels[..., 2:6] / config.image_size  # (B, MOST, 4)
    center, box_size = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3)
    cell = (center * grid_size).floor().clamp(0, grid_size - 1)
    sigma = (box_size * grid_size / 7).clamp(min=0.6)
    grid = torch.arange(grid_size, dtype=torch.float32)
    gaussian_x = torch.exp(-((grid - cell[..., :1]) ** 2) / (2 * sigma[..., :1] ** 2))  # (B, MOST, w)
    gaussian_y = torch.exp(-((grid - cell[..., 1:]) ** 2) / (2 * sigma[..., 1:] ** 2))  # (B, MOST, h)
    gaussians = (
        gaussian_y[..., None] * gaussian_x[..., None, :] * (labels[..., 0] >= 0)[..., None, None]
    )  # (B, MOST, h, w)
    heatmap = torch.zeros(len(labels), len(config.nouns) + len(config.hybrid_nouns), grid_size, grid_size)
    batch_index = torch.arange(len(labels))
    for slot in range(labels.shape[1]):
        first, second = labels[:, slot, 0].long(), labels[:, slot, 1].long()
        is_hybrid = second >= 0
        first_channel = torch.where(is_hybrid, len(config.nouns) + hybrid_index[first.clamp(min=0)], first).clamp(min=0)
        second_channel = torch.where(is_hybrid, len(config.nouns) + hybrid_index[second.clamp(min=0)], first_channel)
        for channel in (first_channel, second_channel):
            heatmap[batch_index, channel] = torch.maximum(heatmap[batch_index, channel], gaussians[:, slot])
    nearness, nearest = gaussians.max(dim=1)
    return heatmap, nearest, nearness


def detection_loss(outputs: DetectorOutputs, labels: Tensor, hybrid_index: Tensor, config: DetectorConfig) -> Tensor:
    """The focal loss of the heat (Zhou et al. 2019, eq. 1), and near the middles what is said of the things there."""
    heatmap, nearest, nearness = make_targets(labels, hybrid_index, config)
    log_positive, log_negative = F.logsigmoid(outputs.heatmap), F.logsigmoid(-outputs.heatmap)
    probability = outputs.heatmap.sigmoid()
    is_center = heatmap == 1
    focal = torch.where(
        is_center, (1 - probability) ** 2 * log_positive, (1 - heatmap) ** 4 * probability**2 * log_negative
    )
    weight = torch.where(nearness > 0.3, nearness, 0.0)  # (B, h, w)
    total_weight = weight.sum().clamp(min=1)
    nearest_labels = labels[torch.arange(len(labels))[:, None, None], nearest]  # (B, h, w, 9)
    grid_size = outputs.edge_distances.shape[-1]
    cell_centers = (torch.arange(grid_size) + 0.5) / grid_size
    boxes = nearest_labels[..., 2:6].permute(0, 3, 1, 2) / config.image_size
    cell_grid = torch.stack(
        (cell_centers.expand(grid_size, grid_size), cell_centers[:, None].expand(grid_size, grid_size))
    )
    edge_distances = torch.cat((cell_grid - boxes[:, :2], boxes[:, 2:] - cell_grid), dim=1).clamp(min=0)
    attribute_loss = (outputs.edge_distances - edge_distances).abs().sum(1) * 5
    for logits, column in ((outputs.tint, 6), (outputs.wearing, 7)):
        attribute_loss = attribute_loss + F.cross_entropy(
            logits, nearest_labels[..., column].long().clamp(min=0), reduction="none"
        )
    stilts = nearest_labels[..., 8].clamp(min=0)
    attribute_loss = attribute_loss + F.binary_cross_entropy_with_logits(outputs.stilts[:, 0], stilts, reduction="none")
    return -focal.sum() / is_center.sum().clamp(min=1) + (attribute_loss * weight).sum() / total_weight


def degrade_images(x: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures as a young diffusion model draws them: bent, soft or harsh, off in colour, grainy, with stray patches.

    Every picture has its own strengths; a fifth is left as painted.
    """
    count, _, side, _ = x.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    def smooth_noise(channels: int, cells: int) -> Tensor:
        coarse = torch.randn(count, channels, cells, cells, generator=generator)
        return F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)

    original = x
    x = _add_patches(
        x, labels, smooth_noise(1, 5), uniform(-1.2, 1.2), torch.rand(count, 3, 1, 1, generator=generator) * 2 - 1
    )
    displacement = smooth_noise(2, 6) * uniform(0, 2.5 / 64)  # (B, 2, H, W) in halves of the side
    coordinates = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)
    identity_grid = torch.stack((coordinates.expand(side, side), coordinates[:, None].expand(side, side)))
    x = F.grid_sample(x, (identity_grid + displacement).permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    blurred = F.pad(x, (2, 2, 2, 2), mode="replicate")
    for _ in range(2):
        blurred = F.conv2d(blurred, (kernel[:, None] * kernel).expand(3, 1, 3, 3), groups=3)
    x = x + uniform(-0.9, 1.0) * (blurred - x)
    gray = x.mean(1, keepdim=True)
    x = gray + uniform(0.85, 1.25) * (x - gray)
    x = uniform(0.85, 1.2) * x + 0.06 * torch.randn(count, 3, 1, 1, generator=generator)
    x = (
        x
        + smooth_noise(3, side) * uniform(-0.1, 0.14).clamp(min=0)
        + smooth_noise(3, side // 4) * uniform(-0.1, 0.1).clamp(min=0)
    )
    return torch.where(uniform(0, 1) < 0.2, original, x.clamp(-1, 1))


def _add_patches(x: Tensor, labels: Tensor, noise_field: Tensor, threshold: Tensor, color: Tensor) -> Tensor:
    """Patches of another colour on some backgrounds, where no thing is."""
    side = x.shape[-1]
    pixel_centers = torch.arange(side) + 0.5
    x0, y0, x1, y1 = (labels[..., column, None] for column in (2, 3, 4, 5))  # (B, MOST, 1)
    inside_x, inside_y = (pixel_centers > x0) & (pixel_centers < x1), (pixel_centers > y0) & (pixel_centers < y1)
    is_occupied = (inside_y[..., None] & inside_x[..., None, :]).any(1, keepdim=True)  # (B, 1, H, W)
    patch_mask = ((noise_field > threshold + 1) & ~is_occupied & (threshold > -0.6)).float() * 0.8
    return x + patch_mask * (color - x)
