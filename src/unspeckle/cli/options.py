"""What several commands share: options, and how threads wait."""

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

MODEL_HELP = "A model: file, RUN of train, or Stable Diffusion (file, folder, hub name).  [default: the one inside]"
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors and the paths of results.")]
Device = Annotated[Optional[str], typer.Option(help="cpu or cuda.  [default: cuda where there is one]")]  # noqa: UP045
ModelPath = Annotated[Optional[Path], typer.Option("--model", "-m", help=MODEL_HELP)]  # noqa: UP045
Prediction = Annotated[Optional[str], typer.Option(help="Of a Stable Diffusion that does not tell: eps or v.")]  # noqa: UP045
TrustPickle = Annotated[bool, typer.Option("--trust-pickle", help="Read the tensors of a .ckpt, and only those.")]
Captions = Annotated[str, typer.Option(help="Where they lie: auto, txt, metadata, folders or names.")]


def share_the_cores() -> None:
    """Threads that wait for each other soon sleep instead of spinning: they would starve beside a training run."""
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # read once, when torch is imported
