"""`unspeckle make-corpus emoji`: a captioned corpus whose every object is known."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from unspeckle.corpus.emoji.make_corpus import make_emoji


def run(
    out: Path, scenes: int, seed: int, nouns: Sequence[str] | None, size: int, sprites: Path | None, quiet: bool
) -> int:
    """Draw the scenes with progress on standard error; the corpus's path on standard output."""
    console = Console(stderr=True, quiet=quiet)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("drawing scenes", total=scenes)
        summary = make_emoji(
            out,
            scenes=scenes,
            seed=seed,
            nouns=nouns,
            size=size,
            sprites=sprites,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    for name, value in summary.items():
        console.print(f"{name}: {value}", highlight=False, markup=False, soft_wrap=True)
    print(out.absolute())
    sys.stdout.flush()
    return 0
