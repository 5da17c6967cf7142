"""`unspeckle score`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from unspeckle.cli import options as shared

CORPUS_HELP = (
    "The folder of captioned images that the model was trained on. Drawn images are compared with its validation "
    "images: those that training held out.  [default: none; only what needs no images is measured]"
)
OUT_HELP = (
    "The HTML report. The numbers are saved next to it as .json.  [default: NAME-score.html in the current folder, "
    "after the name of the model]"
)
FEATURES_HELP = (
    "Features by which images are compared with those of --corpus: scattering (needs no download), or inception, "
    "dinov2 or clip, whose weights are downloaded unless you give your own copy as NAME:PATH."
)
IMAGES_HELP = "Number of images in each set that is drawn; --seeds is the number of sets."
SEEDS_HELP = (
    "With --corpus: how many sets of images are drawn, each with other seeds. The confidence intervals are computed "
    "from the differences between the sets.  [default: 4]"
)
PROMPTS_HELP = (
    "If --corpus was made by `make-corpus emoji`: number of prompts in each category of the composition test (for "
    "hybrids, a third as many pairs of nouns). More give narrower confidence intervals; 0 skips the test.  "
    "[default: 25]"
)
CAPTIONS_HELP = (
    "Where the captions of --corpus are: auto, txt, metadata, folders or names, as for `train`.  "
    "[default: as the model was trained, else auto]"
)
CAPTION_HELP = "One caption for all images of --corpus, instead of --captions.  [default: as the model was trained]"
TEMPLATE_HELP = (
    "For images of --corpus whose captions are the names of folders or files: the caption, in which {name} stands for "
    'the name, such as "a photo of a {name}".  '
    "[default: as the model was trained]"
)


def score(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help=shared.MODEL_HELP, show_default=False)] = None,
    corpus: Annotated[Path | None, typer.Option(metavar="FOLDER", help=CORPUS_HELP)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help=OUT_HELP)] = None,
    features: Annotated[str, typer.Option(metavar="NAME[:PATH]", help=FEATURES_HELP)] = "scattering",
    images: Annotated[int, typer.Option("--images", "-n", metavar="N", help=IMAGES_HELP)] = 500,
    seeds: Annotated[int | None, typer.Option(metavar="N", help=SEEDS_HELP)] = None,
    prompts: Annotated[int | None, typer.Option(metavar="N", help=PROMPTS_HELP)] = None,
    steps: shared.Steps = None,
    sampler: shared.Sampler = None,
    timestep_spacing: shared.TimestepSpacing = None,
    guidance_scale: shared.GuidanceScale = None,
    captions: Annotated[str | None, typer.Option(metavar="KIND", help=CAPTIONS_HELP)] = None,
    caption: Annotated[str | None, typer.Option(metavar="TEXT", help=CAPTION_HELP)] = None,
    template: Annotated[str | None, typer.Option(metavar="TEXT", help=TEMPLATE_HELP)] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the numbers to standard output as JSON, instead of the paths.")
    ] = False,
    prediction: shared.Prediction = None,
    trust_pickle: shared.TrustPickle = False,
    precision: shared.Precision = "auto",
    device: shared.Device = None,
    quiet: shared.Quiet = False,
) -> int:
    """Measure how good a model is, and write a report.

    The report is one HTML file. It contains distances between drawn and real images, losses, bits per
    dimension, a test for memorized training images, and the effect of steps and of guidance.
    """
    shared.check_sampler_name(sampler)
    shared.limit_thread_spinning()
    from unspeckle.cli.run_score import run_score
    from unspeckle.cli.score_options import ScoreOptions
    from unspeckle.generation.request import Request

    return run_score(
        ScoreOptions(
            model=shared.ModelOptions(
                path=model, device=device, precision=precision, prediction=prediction, trust_pickle=trust_pickle
            ),
            request=Request(
                steps=steps, sampler=sampler, timestep_spacing=timestep_spacing, guidance_scale=guidance_scale
            ),
            corpus=corpus,
            out=out,
            features=features,
            images_per_seed=images,
            seed_count=seeds,
            prompts_per_category=prompts,
            captions=captions,
            caption=caption,
            template=template,
            print_json=json,
            quiet=quiet,
        )
    )
