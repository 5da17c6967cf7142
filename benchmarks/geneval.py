"""GenEval's own prompts (Ghosh et al. 2023) drawn by any model, in the folders that its public scorer reads.

    python benchmarks/geneval.py MODEL evaluation_metadata.jsonl OUT [--seeds 4] [--steps N] [--scale S] [--size WxH]
        [--sampler NAME] [--precision auto] [--device cuda]

Line i of the metadata, as GenEval publishes it, becomes OUT/0000i/metadata.jsonl and OUT/0000i/samples/0000.png and on,
with the seeds 0, 1, …. What is there is not drawn again, so it can be stopped at any time: the same command goes on.
OUT/unspeckle.json says what drew them.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from unspeckle import atomic, quantities
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import draw_prompts, images_per_batch
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.model import Model
from unspeckle.model_io.device import resolve_device
from unspeckle.model_io.loading import load
from unspeckle.output import png
from unspeckle.prompts import escape_prompt
from unspeckle.scoring.progress import ProgressBar

NOTE = "unspeckle.json"


@dataclass(frozen=True)
class Sample:
    """A picture to draw: the prompt as it is written, the seed, and where it is to lie."""

    prompt: str
    seed: int
    path: Path


def prompts_of(metadata: Path) -> list[tuple[str, str]]:
    """Each line and its prompt. InputError, naming the line, where one is not as GenEval publishes them."""
    try:
        lines = metadata.read_text(encoding="utf-8").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{metadata}: cannot be read ({e}); give GenEval's evaluation_metadata.jsonl") from e
    found = []
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(
                f"{metadata}, line {number}: is no object with a prompt; give GenEval's evaluation_metadata.jsonl"
            )
        found.append((line, prompt))
    if not found:
        raise InputError(f"{metadata}: is empty; give GenEval's evaluation_metadata.jsonl")
    return found


def ready(out: Path, said: dict[str, Any]) -> None:
    """The folder, with a note of what draws into it. InputError where something else did."""
    note = out / NOTE
    if note.is_file():
        try:
            before = dict(json.loads(note.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as e:
            raise InputError(f"{note}: is damaged; give a new folder") from e
        other = [name for name, value in said.items() if before.get(name) != value]
        if other:
            name = other[0]
            raise InputError(f"{out}: was begun with {name} {before.get(name)}, not {said[name]}; give a new folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there and not of this benchmark; give a new folder")
    atomic.write_bytes(note, (json.dumps(said) + "\n").encode())


def laid_out(out: Path, rows: list[tuple[str, str]], seeds: int) -> list[Sample]:
    """Every prompt's folder with its metadata; the samples that are not there yet. InputError where a folder is of
    another prompt."""
    missing = []
    for number, (line, prompt) in enumerate(rows):
        folder = out / f"{number:05d}"
        told = folder / "metadata.jsonl"
        if told.is_file() and told.read_text(encoding="utf-8") != f"{line}\n":
            raise InputError(f"{told}: tells of another prompt than the metadata; give a new folder")
        if not told.is_file():
            atomic.write_bytes(told, f"{line}\n".encode())
        paths = [folder / "samples" / f"{seed:04d}.png" for seed in range(seeds)]
        missing += [Sample(prompt, seed, path) for seed, path in enumerate(paths) if not path.is_file()]
    return missing


def draw(model: Model, samples: list[Sample], ask: Request, watch: ProgressBar) -> None:
    """In batches, each written as soon as it is drawn."""
    most = images_per_batch(resolve(model, ask))
    watch.restart_stage("drawing", len(samples))
    for batch in (samples[first : first + most] for first in range(0, len(samples), most)):
        images = draw_prompts(model, [escape_prompt(one.prompt) for one in batch], [one.seed for one in batch], ask)
        for one, image in zip(batch, images, strict=True):
            png.write_png(image, one.path)
        watch.advance(len(batch))


def run(args: argparse.Namespace) -> None:
    if not 1 <= args.seeds <= 10_000:
        raise InputError(f"--seeds {args.seeds}: out of range; give 1 to 10000, GenEval has 4")
    rows = prompts_of(args.metadata)
    model = load(args.model, resolve_device(args.device), precision=args.precision)
    size = None if args.size is None else quantities.parse_size(args.size)
    ask = Request(steps=args.steps, guidance_scale=args.scale, sampler=args.sampler, size=size)
    order = resolve(model, ask)
    said = {name: getattr(order, name) for name in ("steps", "scale", "sampler", "grid")}
    ready(args.out, {"model": model.hash, **said, "size": list(order.size), "precision": model.precision})
    samples = laid_out(args.out, rows, args.seeds)
    with ProgressBar(Console(stderr=True, highlight=False, markup=False)) as watch:
        draw(model, samples, ask, watch)
    print(args.out.absolute())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("metadata", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--scale", type=float)
    parser.add_argument("--size")
    parser.add_argument("--sampler")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device")
    try:
        run(parser.parse_args(arguments))
    except (InputError, OSError) as e:
        print(f"geneval: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
