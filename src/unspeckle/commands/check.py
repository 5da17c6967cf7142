"""`unspeckle check`: what is wrong with a folder of captioned pictures, before time is spent on it."""

import json
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from unspeckle.corpus import read
from unspeckle.corpus.checking import check

GOOD, FOUND = 0, 1


def run(
    folder: Path, captions: str, caption: str | None, template: str | None, size: tuple[int, int], as_json: bool
) -> int:
    """Say what was taken and what is amiss, as JSON on standard output if wanted; returns the exit code."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    listing = read(folder, captions, caption, template)
    for line in listing.describe():
        console.print(line)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("looking at pictures", total=len(listing.pictures))
        findings = check(listing, size, lambda done, total: progress.update(task, completed=done, total=total))
    for line in findings.lines():
        console.print(line)
    if as_json:
        print(json.dumps(findings.to_json(), ensure_ascii=False))
    return FOUND if findings else GOOD
