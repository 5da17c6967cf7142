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
    for name, value in summary.items():
        console.print(f"{name}: {value}", highlight=False, markup=False, soft_wrap=True)
    print(options.out.absolute())
    sys.stdout.flush()
    return 0
