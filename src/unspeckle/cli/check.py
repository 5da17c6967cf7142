"""`unspeckle check`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from unspeckle import quantities
from unspeckle.cli import options as shared


def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of captioned images.", show_default=False)],
    captions: shared.Captions = "auto",
    caption: shared.Caption = None,
    template: shared.Template = None,
    size: Annotated[
        str,
        typer.Option(metavar="N|WxH", help="Width and height in pixels at which you will train, such as 64 or 96x64."),
    ] = "64",
    json: Annotated[bool, typer.Option("--json", help="Print the problems to standard output as JSON.")] = False,
) -> int:
    """Look for problems in a folder of captioned images.

    Use it before training. It reports images that cannot be read, are too small or occur twice, missing and
    repeated captions, and more. Nothing is changed.
    """
    parsed_size = quantities.parse_size(size)
    from unspeckle.cli.run_check import CheckOptions, run_check

    return run_check(CheckOptions(folder, captions, caption, template, parsed_size, json=json))
