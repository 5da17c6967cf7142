"""What `unspeckle make-corpus emoji` does: make a captioned corpus in which every object is known."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from unspeckle.corpus.emoji.make_corpus import make_emoji_corpus


@dataclass(frozen=True)
class MakeCorpusOptions:
    """The options of `unspeckle make-corpus emoji`."""

    out: Path
    """The new folder."""
    scenes: int = 10_000
    """How many scenes to paint."""
    seed: int = 0
    nouns: Sequence[str] | None = None
    """The nouns to use; None for all curated ones."""
    size: int = 64
    """Pixels of an image's side."""
    sprites: Path | None = None
    """A folder of named RGBA images to use in place of the system's color-emoji font."""
    quiet: bool = False
    """Print only the corpus's path."""


def run_make_corpus(options: MakeCorpusOptions) -> int:
    """Paint the scenes, with progress and a summary on stderr, and print the corpus's path to stdout."""
    console = Console(stderr=True, quiet=options.quiet)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("painting scenes", total=options.scenes)
        summary = make_emoji_corpus(
            options.out,
            scenes=options.scenes,
            seed=options.seed,
            nouns=options.nouns,
            size=options.size,
            sprites=options.sprites,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in summary["kinds"].items() if count)
    for line in (
        f"painted {options.scenes:,} scenes at {options.size}x{options.size} with sprites from {summary['sprites']}",
        f"nouns: {', '.join(summary['nouns'])}",
        f"kinds of scenes: {kinds}",
        f"held-out.jsonl: prompts for {summary['held_out']:,} combinations that no scene contains",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    print(options.out.absolute())
    sys.stdout.flush()
    return 0
