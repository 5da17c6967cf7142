"""`unspeckle replay`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from unspeckle.cli import options as shared
from unspeckle.cli.options import ModelOptions

IMAGE_HELP = "A PNG file saved by `unspeckle draw`, or by AUTOMATIC1111 (then the pixels are only similar)."
EPILOG = """Example: unspeckle replay frog.png --model my-run

Exit code: 0 if all pixels are the same, 1 if not.
"""
GUIDE_MODEL_HELP = "The file or RUN folder that was given by --guide-model, if one was."


def replay(
    image_file: Annotated[Path, typer.Argument(metavar="IMAGE", help=IMAGE_HELP, show_default=False)],
    model: shared.ModelPath = None,
    guide_model: Annotated[Path | None, typer.Option(metavar="MODEL", help=GUIDE_MODEL_HELP)] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The image that was given by --image, if one was.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The mask that was given by --mask, if one was.")
    ] = None,
    like: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="The images that were given by --like, in order, if any.")
    ] = None,
    upsampler: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="The model that was given by --upsampler, if one was.")
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

    The PNG file records the prompt, the seed, all other options of the drawing, and the hash of the model. It does not
    contain the files that were used, so give these again: the model, and what was added by --lora, --embedding, --vae,
    --guide-model, --upsampler, --image, --mask or --like. The largest difference between two pixels is printed, from 0
    (the same) to 255.
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
        ReplayOptions(
            image_file,
            model_options,
            guide_model=guide_model,
            image=image,
            mask=mask,
            like=tuple(like or ()) or None,
            upsampler=upsampler,
            quiet=quiet,
        )
    )
