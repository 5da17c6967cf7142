"""GenEval's own prompts (Ghosh et al. 2023) drawn by any model, in the folders that its public scorer reads.

    python benchmarks/geneval.py MODEL evaluation_metadata.jsonl OUT [--seeds 4] [--steps N] [--guidance-scale S]
        [--size WxH] [--sampler NAME] [--precision auto] [--device cuda]

Line i of the metadata, as GenEval publishes it, becomes OUT/0000i/metadata.jsonl and OUT/0000i/samples/0000.png and so
on, with the seeds 0, 1, …. Images that exist are not drawn again: if it is stopped, the same command continues.
OUT/unspeckle.json says which model drew them and how.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from unspeckle import atomic, old_names, quantities
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

SETTINGS_FILE = "unspeckle.json"


@dataclass(frozen=True)
class Sample:
    """An image to draw."""

    prompt: str  # as GenEval wrote it
    seed: int
    path: Path


def read_metadata(metadata: Path) -> list[tuple[str, str]]:
    """Each line and its prompt. InputError, naming the line, if one is not as GenEval publishes them."""
    try:
        lines = metadata.read_text(encoding="utf-8").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{metadata}: cannot be read ({error}); give GenEval's evaluation_metadata.jsonl") from error
    rows = []
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            reason = "is not an object with a prompt; give GenEval's evaluation_metadata.jsonl"
            raise InputError(f"{metadata}, line {number}: {reason}")
        rows.append((line, prompt))
    if not rows:
        raise InputError(f"{metadata}: is empty; give GenEval's evaluation_metadata.jsonl")
    return rows


def prepare_folder(out: Path, settings: dict[str, Any]) -> None:
    """Create the folder with its settings. InputError if it exists with other settings, or with other files."""
    path = out / SETTINGS_FILE
    if path.is_file():
        try:
            previous = old_names.rename_fields(dict(json.loads(path.read_text(encoding="utf-8"))), old_names.CARD)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: is damaged; give a new folder") from error
        changed = [name for name, value in settings.items() if previous.get(name) != value]
        if changed:
            name = changed[0]
            reason = f"was started with {name} {previous.get(name)}, not {settings[name]}; give a new folder"
            raise InputError(f"{out}: {reason}")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not a folder of this benchmark; give a new folder")
    atomic.write_bytes(path, (json.dumps(settings) + "\n").encode())


def missing_samples(out: Path, rows: list[tuple[str, str]], seed_count: int) -> list[Sample]:
    """Create every prompt's folder with its metadata; returns the samples that do not exist yet.

    InputError if a folder belongs to another prompt.
    """
    missing = []
    for number, (line, prompt) in enumerate(rows):
        folder = out / f"{number:05d}"
        metadata = folder / "metadata.jsonl"
        if metadata.is_file() and metadata.read_text(encoding="utf-8") != f"{line}\n":
            raise InputError(f"{metadata}: has another prompt than the metadata; give a new folder")
        if not metadata.is_file():
            atomic.write_bytes(metadata, f"{line}\n".encode())
        paths = [folder / "samples" / f"{seed:04d}.png" for seed in range(seed_count)]
        missing += [Sample(prompt, seed, path) for seed, path in enumerate(paths) if not path.is_file()]
    return missing


def draw_samples(model: Model, samples: list[Sample], request: Request, progress: ProgressBar) -> None:
    """Draw the samples in batches and save each as soon as it is drawn."""
    batch_size = images_per_batch(resolve(model, request))
    progress.restart_stage("drawing", len(samples))
    for batch in (samples[first : first + batch_size] for first in range(0, len(samples), batch_size)):
        prompts, seeds = [escape_prompt(sample.prompt) for sample in batch], [sample.seed for sample in batch]
        images = draw_prompts(model, prompts, seeds, request)
        for sample, image in zip(batch, images, strict=True):
            png.write_png(image, sample.path)
        progress.advance(len(batch))


def run(args: argparse.Namespace) -> None:
    if not 1 <= args.seeds <= 10_000:
        raise InputError(f"--seeds {args.seeds}: must be 1 to 10000; GenEval has 4")
    rows = read_metadata(args.metadata)
    model = load(args.model, resolve_device(args.device), precision=args.precision)
    size = None if args.size is None else quantities.parse_size(args.size)
    request = Request(steps=args.steps, guidance_scale=args.guidance_scale, sampler=args.sampler, size=size)
    resolved = resolve(model, request)
    settings = {
        "model": model.hash,
        "steps": resolved.steps,
        "guidance_scale": resolved.guidance_scale,
        "sampler": resolved.sampler,
        "timestep_spacing": resolved.timestep_spacing,
        "size": list(resolved.size),
        "precision": model.precision,
    }
    prepare_folder(args.out, settings)
    samples = missing_samples(args.out, rows, args.seeds)
    with ProgressBar(Console(stderr=True, highlight=False, markup=False)) as progress:
        draw_samples(model, samples, request, progress)
    print(args.out.absolute())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("metadata", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--size")
    parser.add_argument("--sampler")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device")
    try:
        run(parser.parse_args(arguments))
    except (InputError, OSError) as error:
        message = error.for_command_line() if isinstance(error, InputError) else error
        print(f"geneval: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
