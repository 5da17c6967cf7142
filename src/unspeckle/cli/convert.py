"""`unspeckle convert`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from unspeckle.cli import options as shared

SOURCE_HELP = (
    "The model: a file, a RUN folder, or a Stable Diffusion checkpoint. With B alone, the model inside the package."
)
TARGET_HELP = "What to write: NAME.safetensors for a single file, any other name for a new folder."
TO_HELP = "Write graphs that ONNX Runtime or OpenVINO can run.  [default: the layout of Stable Diffusion]"


def convert(
    source: Annotated[str, typer.Argument(metavar="A", help=SOURCE_HELP)],
    target: Annotated[Path | None, typer.Argument(metavar="B", help=TARGET_HELP, show_default=False)] = None,
    to: Annotated[str | None, typer.Option(metavar="onnx|openvino", help=TO_HELP)] = None,
    prediction: shared.Prediction = None,
    trust_pickle: shared.TrustPickle = False,
) -> int:
    """Write a model in another file layout.

    The new files are read back and compared with the model. A Stable Diffusion becomes a single file or a
    diffusers folder; with --to, any model becomes a folder of graphs for another program.
    """
    from unspeckle.cli.run_convert import ConvertOptions, run_convert

    # Typer fills the first argument, so that of one alone is B.
    model, new = (None, Path(source)) if target is None else (source, target)
    return run_convert(ConvertOptions(model, new, to=to, prediction=prediction, trust_pickle=trust_pickle))
