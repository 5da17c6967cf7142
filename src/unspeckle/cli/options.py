"""What several commands share: options, and how threads wait."""

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

MODEL_HELP = "A model: file, RUN of train, or Stable Diffusion (file, folder, hub name).  [default: the one inside]"
STABLE = "Stable Diffusion"  # a group of options
LORA_HELP = "Merge this LoRA, so strongly (1 where not said), or look here for <lora:…> of the prompt; repeatable."
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors and the paths of results.")]
Device = Annotated[Optional[str], typer.Option(help="cpu or cuda.  [default: cuda where there is one]")]  # noqa: UP045
ModelPath = Annotated[Optional[Path], typer.Option("--model", "-m", help=MODEL_HELP)]  # noqa: UP045
Prediction = Annotated[Optional[str], typer.Option(help="Of a Stable Diffusion that does not tell: eps or v.")]  # noqa: UP045
TrustPickle = Annotated[bool, typer.Option("--trust-pickle", help="Read the tensors of a .ckpt, and only those.")]
Loras = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--lora", metavar="FILE[:WEIGHT]|FOLDER", help=LORA_HELP, rich_help_panel=STABLE),
]
Embeddings = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(
        "--embedding",
        metavar="FILE",
        help="A word of your own (textual inversion); repeatable.",
        rich_help_panel=STABLE,
    ),
]
Vae = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(metavar="FILE|FOLDER", help="Another autoencoder, such as TAESD.", rich_help_panel=STABLE),
]
Captions = Annotated[str, typer.Option(help="Where they lie: auto, txt, metadata, folders or names.")]


def share_the_cores() -> None:
    """Threads that wait for each other soon sleep instead of spinning: they would starve beside a training run."""
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # read once, when torch is imported
