"""`unspeckle check`: look for problems in a folder of captioned images before training with it."""

import json
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from unspeckle.corpus import check_corpus, read_folder

EXIT_OK, EXIT_ISSUES_FOUND = 0, 1


def run_check(
    folder: Path, captions: str, caption: str | None, template: str | None, size: tuple[int, int], as_json: bool
) -> int:
    """Print what the folder contains and what is wrong with it to stderr, and return the exit code.

    as_json: print the report as JSON to stdout too.
    """
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    listing = read_folder(folder, captions, caption, template)
    for line in listing.describe():
        console.print(line)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("checking images", total=len(listing.images))
        report = check_corpus(listing, size, lambda done, total: progress.update(task, completed=done, total=total))
    for line in report.describe():
        console.print(line)
    if as_json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    return EXIT_ISSUES_FOUND if report else EXIT_OK
