"""`unspeckle replay`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from unspeckle.cli import options as shared
from unspeckle.cli.options import ModelOptions

GUIDE_MODEL_HELP = "The weaker model that guided the drawing (autoguidance), if one did: a file or a RUN folder."


def replay(
    image_file: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="A PNG file that `unspeckle draw` saved.", show_default=False)
    ],
    model: shared.ModelPath = None,
    guide_model: Annotated[Path | None, typer.Option(metavar="MODEL", help=GUIDE_MODEL_HELP)] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The image that the drawing started from, if it did.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The mask of the part that was redrawn, if there was one.")
    ] = None,
    lora: shared.Loras = None,
    embedding: shared.Embeddings = None,
    vae: shared.Vae = None,
    prediction: shared.Prediction = None,
    trust_pickle: shared.TrustPickle = False,
    device: shared.Device = None,
    quiet: shared.Quiet = False,
) -> int:
    """Draw an image again and compare the pixels.

    The options are read from the PNG file, and the largest difference of any pixel is printed, from 0 to 255.
    The file names the model and the images that were used, but does not contain them: give the same ones again.
    """
    shared.limit_thread_spinning()
    from unspeckle.cli.run_replay import ReplayOptions, run_replay

    model_options = ModelOptions(
        path=model,
        device=device,
        prediction=prediction,
        trust_pickle=trust_pickle,
        loras=tuple(lora or ()),
        embeddings=tuple(embedding or ()),
        vae=vae,
    )
    return run_replay(
        ReplayOptions(image_file, model_options, guide_model=guide_model, image=image, mask=mask, quiet=quiet)
    )
