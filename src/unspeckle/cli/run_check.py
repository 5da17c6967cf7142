"""What `unspeckle check` does: look for problems in a folder of captioned images before training with it."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.checking import check_corpus

EXIT_OK, EXIT_ISSUES_FOUND = 0, 1


@dataclass(frozen=True)
class CheckOptions:
    """The options of `unspeckle check`."""

    # The folder of captioned images.
    folder: Path
    # Where the captions are: "auto", "txt", "metadata", "folders" or "names".
    captions: str = "auto"
    # One caption for all images.
    caption: str | None = None
    # Caption made of the name of a folder or file, with "{name}" in it.
    template: str | None = None
    # (width, height) in pixels of the images in training.
    size: tuple[int, int] = (64, 64)
    # Whether the report is printed to standard output as JSON, too.
    json: bool = False


def run_check(options: CheckOptions) -> int:
    """Print to standard error what the folder contains and what is wrong with it; returns the exit code, 1 where there
    is something wrong."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    listing = read_folder(options.folder, options.captions, options.caption, options.template)
    for line in listing.describe():
        console.print(line)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("checking images", total=len(listing.images))
        report = check_corpus(
            listing, options.size, lambda done, total: progress.update(task, completed=done, total=total)
        )
    for line in report.describe():
        console.print(line)
    if options.json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    return EXIT_ISSUES_FOUND if report else EXIT_OK
