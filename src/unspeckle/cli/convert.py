"""`unspeckle convert`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from unspeckle.cli import options as shared
from unspeckle.errors import InputError

MODEL_HELP = (
    "The model: a file, the RUN folder of `train`, or a Stable Diffusion checkpoint. It may be left out with --to.  "
    "[default: the model inside the package]"
)
OUT_HELP = "What to write: NAME.safetensors for a single file, any other name for a new folder."
TO_HELP = "Write graphs that ONNX Runtime or OpenVINO can run.  [default: weights in the layout of Stable Diffusion]"

EPILOG = """Examples:

\b
  unspeckle convert sd15.ckpt sd15.safetensors --trust-pickle
  unspeckle convert sd15.safetensors sd15-for-diffusers
  unspeckle convert my-run graphs --to onnx
  unspeckle convert graphs --to openvino

The last one writes the model that is inside the package.

Exit code: 0 if the new files compute the same as the model, 1 if not.
"""


def convert(
    *,
    model: Annotated[list[str] | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)] = None,
    out: Annotated[Path, typer.Argument(metavar="OUT", help=OUT_HELP, show_default=False)],
    to: Annotated[str | None, typer.Option(metavar="onnx|openvino", help=TO_HELP)] = None,
    prediction: shared.Prediction = None,
    trust_pickle: shared.TrustPickle = False,
) -> int:
    """Write a model in another file layout.

    A Stable Diffusion checkpoint becomes a single file or a diffusers folder; of a model trained here, the network
    becomes a diffusers folder. With --to, any model becomes a folder of graphs for another program. The new files
    are read back, and what they compute is compared with the model.
    """
    # A list, because an optional argument can stand before a required one only if it takes any number of values
    if len(model or ()) > 1:
        raise InputError("MODEL: is more than one; give one model, and then the file or folder to write")
    from unspeckle.cli.run_convert import ConvertOptions, run_convert

    source = model[0] if model else None
    return run_convert(ConvertOptions(source, out, to=to, prediction=prediction, trust_pickle=trust_pickle))
