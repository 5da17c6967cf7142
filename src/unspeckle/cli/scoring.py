"""The words and options of `score`."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from unspeckle.cli.drawing import PRECISION_HELP
from unspeckle.cli.options import MODEL_HELP, Device, Prediction, Quiet, TrustPickle, share_the_cores

PROMPTS_HELP = (
    "Of each category of words, for corpora of emoji scenes; the protocol's number is 100, 0 asks none. Hybrids are "
    "asked of a third as many pairs."
)


def score(
    model: Annotated[Optional[Path], typer.Argument(help=MODEL_HELP, show_default=False)] = None,  # noqa: UP045
    corpus: Annotated[
        Path | None, typer.Option(help="The captioned pictures it was trained on; those held out are the measure.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The report; the numbers go beside it.  [default: NAME-score.html]"),
    ] = None,
    features: Annotated[
        str, typer.Option(help="scattering, or with downloads inception, dinov2, clip; NAME:PATH for your own copy.")
    ] = "scattering",
    pictures: Annotated[int, typer.Option("--pictures", "-n", help="To draw for each seed.")] = 500,
    seeds: Annotated[int, typer.Option(help="How many times; intervals are over them.")] = 4,
    prompts: Annotated[int, typer.Option(help=PROMPTS_HELP)] = 25,
    steps: Annotated[int | None, typer.Option(help="Of the sampler.  [default: the model's]")] = None,
    sampler: Annotated[str | None, typer.Option(help="dpmpp_2m, ddim, heun, …  [default: the model's]")] = None,
    grid: Annotated[str | None, typer.Option(help="Of times: uniform, karras, …  [default: the model's]")] = None,
    scale: Annotated[float | None, typer.Option(help="Of guidance; 1 is none.  [default: the model's]")] = None,
    captions: Annotated[str | None, typer.Option(help="As in train.  [default: as the RUN had it, else auto]")] = None,
    caption: Annotated[str | None, typer.Option(help="As in train.")] = None,
    template: Annotated[str | None, typer.Option(help="As in train.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    prediction: Prediction = None,
    trust_pickle: TrustPickle = False,
    precision: Annotated[str, typer.Option(help=PRECISION_HELP)] = "auto",
    device: Device = None,
    quiet: Quiet = False,
) -> int:
    """Measure a model, and write a report: distances, losses, bits, memorisation, what steps and guidance buy.

    Without --corpus only what needs no real pictures.
    """
    share_the_cores()
    from unspeckle.commands.score import ScoreOptions, score_model
    from unspeckle.generation.request import Request

    ask = Request(steps=steps, sampler=sampler, timestep_spacing=grid, guidance_scale=scale)
    return score_model(
        ScoreOptions(
            model,
            corpus,
            out,
            features,
            pictures,
            seeds,
            prompts,
            ask,
            captions,
            caption,
            template,
            json,
            quiet,
            device,
            prediction,
            trust_pickle,
            precision,
        )
    )
