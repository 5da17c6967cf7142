"""The detector's training, and the cache that keeps trained detectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from contextlib import closing

import torch
from torch import Tensor, nn

from unspeckle.corpus.emoji.sprites import SpriteLibrary
from unspeckle.corpus.emoji.tints import TINTS
from unspeckle.quantization.precision import is_faster_in
from unspeckle.scoring.composition.degradation import degrade_images
from unspeckle.scoring.composition.detection_loss import detection_loss
from unspeckle.scoring.composition.detector import Detector, DetectorConfig
from unspeckle.scoring.composition.detector_examples import paint_blocks
from unspeckle.scoring.composition.detector_file import load_detector, save_detector
from unspeckle.training.inputs import image_cache_folder
from unspeckle.training.muon import Muon

VERSION = 2  # of examples, network and training together; detectors of other versions are trained again
BATCH_SIZE = 64
ADAMW_LEARNING_RATE, MUON_LEARNING_RATE, WEIGHT_DECAY = 2e-3, 4e-3, 0.01
WARMUP_FRACTION, DECAY_FRACTION = 0.05, 0.6  # of the steps, in which the learning rate rises and falls linearly
TRAINING_IMAGES = 90_000
MAX_SIDE, SIDE_MULTIPLE = 64, 8  # larger images are shrunk to 64 pixels a side; sides are multiples of 8 pixels

ProgressCallback = Callable[[int, int], None]  # called with (images done, images in all)


def load_or_train_detector(
    library: SpriteLibrary, image_size: int, progress: ProgressCallback | None = None
) -> Detector:
    """The detector of a library's nouns for images of image_size pixels a side.

    It is read from the user's cache, or trained (some minutes) and written there. InputError, naming the file, if the
    cached file cannot be read.
    """
    path = image_cache_folder().parent / "detectors" / f"{_cache_key(library, _detector_side(image_size))}.safetensors"
    if path.is_file():
        return load_detector(path)
    detector = train_detector(library, image_size, image_count=TRAINING_IMAGES, progress=progress)
    save_detector(detector, path)
    return detector


def _detector_side(image_size: int) -> int:
    return min(image_size, MAX_SIDE) // SIDE_MULTIPLE * SIDE_MULTIPLE


def _cache_key(library: SpriteLibrary, detector_side: int) -> str:
    """16 hexadecimal digits that identify everything the detector depends on; the same as in version 0.1."""
    identity = [VERSION, detector_side, TRAINING_IMAGES, library.nouns, list(library.garments)]
    hasher = hashlib.sha256(json.dumps(identity).encode())
    for image in (*(s.image for s in library.sprites.values()), *library.garments.values()):
        hasher.update(image.tobytes())
    return hasher.hexdigest()[:16]


def train_detector(
    library: SpriteLibrary,
    image_size: int,
    *,
    image_count: int = TRAINING_IMAGES,
    seed: int = 0,
    workers: int = 1,
    progress: ProgressCallback | None = None,
) -> Detector:
    """A detector trained on image_count painted scenes, which `workers` processes paint (0: this one).

    A script that calls this with workers needs the usual `if __name__ == "__main__"`.
    """
    config = _make_config(library, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector(config)
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps, use_bfloat16 = max(1, image_count // BATCH_SIZE), is_faster_in("cpu", torch.bfloat16)
    muon, adamw = _make_optimizers(detector, torch.bfloat16 if use_bfloat16 else torch.float32)
    generator = torch.Generator().manual_seed(seed)
    hybrid_nouns = config.hybrid_nouns
    hybrid_index = torch.tensor([hybrid_nouns.index(noun) if noun in hybrid_nouns else -1 for noun in config.nouns])
    with closing(_iterate_batches(library, config.image_size, seed, workers)) as batches:
        for step in range(steps):
            images, labels = next(batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=use_bfloat16):
                outputs = detector(degrade_images(images, labels, generator))
            loss = detection_loss(outputs, labels, hybrid_index, config)
            detector.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            factor = min(1.0, (step + 1) / (WARMUP_FRACTION * steps), (steps - step) / (DECAY_FRACTION * steps))
            adamw.param_groups[0]["lr"] = ADAMW_LEARNING_RATE * factor
            adamw.step()
            muon.step(MUON_LEARNING_RATE * factor)
            if progress is not None:
                progress((step + 1) * BATCH_SIZE, steps * BATCH_SIZE)
    return detector.eval()


def _make_config(library: SpriteLibrary, image_size: int) -> DetectorConfig:
    hybrid_nouns = tuple(s.noun.name for s in library.sprites.values() if s.noun.face and s.noun.face.seam_y)
    return DetectorConfig(
        nouns=tuple(library.nouns),
        hybrid_nouns=hybrid_nouns if len(hybrid_nouns) > 1 else (),
        tints=tuple(TINTS),
        garments=tuple(library.garments),
        image_size=_detector_side(image_size),
    )


def _make_optimizers(detector: Detector, muon_dtype: torch.dtype) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for all convolutions but the last one, AdamW for the rest."""
    muon_parameters: list[nn.Parameter] = []
    adamw_parameters: list[nn.Parameter] = []
    for name, parameter in detector.named_parameters():
        use_muon = parameter.ndim == 4 and not name.startswith("conv_out.")
        (muon_parameters if use_muon else adamw_parameters).append(parameter)
    adamw = torch.optim.AdamW(adamw_parameters, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return Muon(muon_parameters, WEIGHT_DECAY, muon_dtype), adamw


def _iterate_batches(
    library: SpriteLibrary, image_size: int, seed: int, workers: int
) -> Generator[tuple[Tensor, Tensor]]:
    """Images (BATCH_SIZE, 3, size, size) in [-1, 1] and their labels (BATCH_SIZE, MAX_OBJECTS, LABEL_COLUMNS)."""
    with closing(paint_blocks(library, image_size, seed, workers)) as example_blocks:
        for block in example_blocks:
            images = torch.from_numpy(block.images).permute(0, 3, 1, 2).float() / 127.5 - 1
            labels = torch.from_numpy(block.labels)
            yield from zip(torch.split(images, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True)
