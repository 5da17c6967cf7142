"""How the detector learns: painted scenes made worse, the loss, the steps, and where the result is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from contextlib import closing

import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.corpus.emoji.sprites import Library
from unspeckle.corpus.emoji.tints import TINTS
from unspeckle.scoring.composition.detector import STRIDE, Detector, DetectorConfig, Outputs, load, save
from unspeckle.scoring.composition.examples import blocks
from unspeckle.training.inputs import cache
from unspeckle.training.measurement import device_and_precision
from unspeckle.training.optimizer import Muon

VERSION = 2  # of examples, network and training together: another one is another detector
BATCH = 64
RATE, MUON_RATE, DECAY = 2e-3, 4e-3, 0.01
PICTURES = 90_000
LARGEST, UNIT = 64, 8  # pixels: bigger pictures are shrunk to that side, and sides are multiples of this

Progress = Callable[[int, int], None]


def detector_for(library: Library, size: int, progress: Progress | None = None) -> Detector:
    """The detector of a library's nouns for corpora of `size` px: from the user's cache, else trained into it."""
    path = cache().parent / "detectors" / f"{_key(library, _side(size))}.safetensors"
    if path.is_file():
        return load(path)
    detector = teach(library, size, pictures=PICTURES, progress=progress)
    save(detector, path)
    return detector


def _side(size: int) -> int:
    return min(size, LARGEST) // UNIT * UNIT


def _key(library: Library, size: int) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, size, PICTURES, library.nouns, list(library.garments)]).encode())
    for picture in (*(s.picture for s in library.sprites.values()), *library.garments.values()):
        digest.update(picture.tobytes())
    return digest.hexdigest()[:16]


def teach(
    library: Library, size: int, *, pictures: int = PICTURES, seed: int = 0, workers: int = 1,
    progress: Progress | None = None,
) -> Detector:  # fmt: skip
    """A detector trained on that many painted scenes; `progress` hears (done, of) pictures.

    `workers` processes paint (0 = this one); a script that calls this needs the usual `if __name__ == "__main__"`.
    """
    halves = tuple(s.noun.name for s in library.sprites.values() if s.noun.face and s.noun.face.seam)
    config = DetectorConfig(
        nouns=tuple(library.nouns),
        halves=halves if len(halves) > 1 else (),
        tints=tuple(TINTS),
        garments=tuple(library.garments),
        size=_side(size),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector(config)
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    named = dict(detector.named_parameters())
    kernels = [p for name, p in named.items() if p.ndim == 4 and not name.startswith("out.")]
    rest = [p for name, p in named.items() if p.ndim != 4 or name.startswith("out.")]
    muon, adamw = Muon(kernels, DECAY), torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    steps, fast = max(1, pictures // BATCH), device_and_precision("cpu", None)[1] == "bfloat16"
    generator = torch.Generator().manual_seed(seed)
    halved = torch.tensor([halves.index(noun) if noun in halves else -1 for noun in config.nouns])
    with closing(_batches(library, config.size, seed, workers)) as data:
        for step in range(steps):
            shown, things = next(data)
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                outputs = detector(worsened(shown, things, generator))
            loss = error(outputs, things, halved, config)
            detector.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            share = min(1.0, (step + 1) / (0.05 * steps), (steps - step) / (0.6 * steps))
            adamw.param_groups[0]["lr"] = RATE * share
            adamw.step()
            muon.step(MUON_RATE * share)
            if progress is not None:
                progress((step + 1) * BATCH, steps * BATCH)
    return detector.eval()


def _batches(library: Library, size: int, seed: int, workers: int) -> Generator[tuple[Tensor, Tensor]]:
    """Pictures (BATCH, 3, size, size) in [−1, 1], and their things (BATCH, MOST, 9) as in `Block`."""
    with closing(blocks(library, size, seed, workers)) as painted:
        for block in painted:
            shown = torch.from_numpy(block.pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
            things = torch.from_numpy(block.things)
            yield from zip(torch.split(shown, BATCH), torch.split(things, BATCH), strict=True)


def targets(things: Tensor, halved: Tensor, config: DetectorConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Heat (B, nouns + halves, h, w): at each middle 1, around it a Gaussian; then, for each place (B, h, w), which
    thing is nearest in that sense, and how near."""
    cells = config.size // STRIDE
    boxes = things[..., 2:6] / config.size  # (B, MOST, 4)
    middle, extent = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3)
    place = (middle * cells).floor().clamp(0, cells - 1)
    spread = (extent * cells / 7).clamp(min=0.6)
    grid = torch.arange(cells, dtype=torch.float32)
    across = torch.exp(-((grid - place[..., :1]) ** 2) / (2 * spread[..., :1] ** 2))  # (B, MOST, w)
    along = torch.exp(-((grid - place[..., 1:]) ** 2) / (2 * spread[..., 1:] ** 2))  # (B, MOST, h)
    bumps = along[..., None] * across[..., None, :] * (things[..., 0] >= 0)[..., None, None]  # (B, MOST, h, w)
    heat = torch.zeros(len(things), len(config.nouns) + len(config.halves), cells, cells)
    rows = torch.arange(len(things))
    for slot in range(things.shape[1]):
        first, second = things[:, slot, 0].long(), things[:, slot, 1].long()
        mixed = second >= 0
        one = torch.where(mixed, len(config.nouns) + halved[first.clamp(min=0)], first).clamp(min=0)
        other = torch.where(mixed, len(config.nouns) + halved[second.clamp(min=0)], one)
        for channel in (one, other):
            heat[rows, channel] = torch.maximum(heat[rows, channel], bumps[:, slot])
    nearness, nearest = bumps.max(dim=1)
    return heat, nearest, nearness


def error(outputs: Outputs, things: Tensor, halved: Tensor, config: DetectorConfig) -> Tensor:
    """The focal loss of the heat (Zhou et al. 2019, eq. 1), and near the middles what is said of the things there."""
    heat, nearest, nearness = targets(things, halved, config)
    yes, no = F.logsigmoid(outputs.heat), F.logsigmoid(-outputs.heat)
    chance = outputs.heat.sigmoid()
    hot = heat == 1
    focal = torch.where(hot, (1 - chance) ** 2 * yes, (1 - heat) ** 4 * chance**2 * no)
    weight = torch.where(nearness > 0.3, nearness, 0.0)  # (B, h, w)
    amount = weight.sum().clamp(min=1)
    told = things[torch.arange(len(things))[:, None, None], nearest]  # (B, h, w, 9)
    side = outputs.edges.shape[-1]
    middles = (torch.arange(side) + 0.5) / side
    boxes = told[..., 2:6].permute(0, 3, 1, 2) / config.size
    here = torch.stack((middles.expand(side, side), middles[:, None].expand(side, side)))
    edges = torch.cat((here - boxes[:, :2], boxes[:, 2:] - here), dim=1).clamp(min=0)
    said = (outputs.edges - edges).abs().sum(1) * 5
    for logits, column in ((outputs.tint, 6), (outputs.wearing, 7)):
        said = said + F.cross_entropy(logits, told[..., column].long().clamp(min=0), reduction="none")
    stilts = told[..., 8].clamp(min=0)
    said = said + F.binary_cross_entropy_with_logits(outputs.stilts[:, 0], stilts, reduction="none")
    return -focal.sum() / hot.sum().clamp(min=1) + (said * weight).sum() / amount


def worsened(x: Tensor, things: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures as a young diffusion model draws them: bent, soft or harsh, off in colour, grainy, with stray patches.

    Every picture has its own strengths; a fifth is left as painted.
    """
    count, _, side, _ = x.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    def field(channels: int, cells: int) -> Tensor:
        coarse = torch.randn(count, channels, cells, cells, generator=generator)
        return F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)

    clean = x
    x = _patched(x, things, field(1, 5), uniform(-1.2, 1.2), torch.rand(count, 3, 1, 1, generator=generator) * 2 - 1)
    bend = field(2, 6) * uniform(0, 2.5 / 64)  # (B, 2, H, W) in halves of the side
    lines = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)
    here = torch.stack((lines.expand(side, side), lines[:, None].expand(side, side)))
    x = F.grid_sample(x, (here + bend).permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    soft = F.pad(x, (2, 2, 2, 2), mode="replicate")
    for _ in range(2):
        soft = F.conv2d(soft, (kernel[:, None] * kernel).expand(3, 1, 3, 3), groups=3)
    x = x + uniform(-0.9, 1.0) * (soft - x)
    grey = x.mean(1, keepdim=True)
    x = grey + uniform(0.85, 1.25) * (x - grey)
    x = uniform(0.85, 1.2) * x + 0.06 * torch.randn(count, 3, 1, 1, generator=generator)
    x = x + field(3, side) * uniform(-0.1, 0.14).clamp(min=0) + field(3, side // 4) * uniform(-0.1, 0.1).clamp(min=0)
    return torch.where(uniform(0, 1) < 0.2, clean, x.clamp(-1, 1))


def _patched(x: Tensor, things: Tensor, field: Tensor, level: Tensor, colour: Tensor) -> Tensor:
    """Patches of another colour on some backgrounds, where no thing is."""
    side = x.shape[-1]
    places = torch.arange(side) + 0.5
    x0, y0, x1, y1 = (things[..., column, None] for column in (2, 3, 4, 5))  # (B, MOST, 1)
    across, along = (places > x0) & (places < x1), (places > y0) & (places < y1)
    taken = (along[..., None] & across[..., None, :]).any(1, keepdim=True)  # (B, 1, H, W)
    inside = ((field > level + 1) & ~taken & (level > -0.6)).float() * 0.8
    return x + inside * (colour - x)
