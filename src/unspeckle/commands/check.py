"""`unspeckle check`: what is wrong with a folder of captioned pictures, before time is spent on it."""

import json
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from unspeckle.corpus import read_folder
from unspeckle.corpus.checking import check_corpus

EXIT_OK, EXIT_ISSUES_FOUND = 0, 1


def run_check(
    folder: Path, caption_mode: str, caption: str | None, template: str | None, size: tuple[int, int], as_json: bool
) -> int:
    """Say what was taken and what is amiss, as JSON on standard output if wanted; returns the exit code."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    listing = read_folder(folder, caption_mode, caption, template)
    for line in listing.describe():
        console.print(line)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("looking at pictures", total=len(listing.images))
        report = check_corpus(listing, size, lambda done, total: progress.update(task, completed=done, total=total))
    for line in report.describe():
        console.print(line)
    if as_json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    return EXIT_ISSUES_FOUND if report else EXIT_OK
