"""The words and options of `draw`, `replay` and `convert`."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from unspeckle import quantities
from unspeckle.cli.options import (
    STABLE,
    Device,
    Embeddings,
    Loras,
    ModelPath,
    Prediction,
    Quiet,
    TrustPickle,
    Vae,
    share_the_cores,
)

THRESHOLD_HELP = "Dynamic thresholding (of pixels): the share of values kept in bounds, 0.995.  [default: clamp]"
INTERVAL_HELP = "Guide at these times only: 0 is the picture, 1 is noise.  [default: always]"
PRECISION_HELP = (
    "auto (bfloat16 for a Stable Diffusion where it pays), float32, bfloat16, float16, or int8: lossy, but "
    "faster on a CPU."
)
GUIDE_HELP = "A weaker model that guides in place of the negative prompt (autoguidance)."
GUIDANCE, PICTURE = "Guidance", "From a picture, or toward another"  # groups of options


def draw(
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw.", show_default=False)],
    model: ModelPath = None,
    seed: Annotated[int, typer.Option(help="The same seed and words give the same picture.")] = 0,
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures, with the seeds seed, seed + 1, …")] = 1,
    batch: Annotated[int | None, typer.Option(help="Pictures drawn together.  [default: by their size]")] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Few, such as 1, 2 or 4, ask a distilled model's student.  [default: the model's]"),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="dpmpp_2m, ddim, heun, …  [default: the model's]")] = None,
    grid: Annotated[str | None, typer.Option(help="Of times: uniform, karras, …  [default: the model's]")] = None,
    scale: Annotated[float | None, typer.Option(help="Of guidance; 1 is none.  [default: the model's]")] = None,
    negative: Annotated[str, typer.Option(help="What to draw away from.")] = "",
    size: Annotated[str | None, typer.Option(help="Pixels: 64 or WxH.  [default: the model's, or the image's]")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the PNG files.")] = Path(),
    strip: Annotated[bool, typer.Option("--strip", help="Save the film of the drawing as well.")] = False,
    guidance: Annotated[
        str, typer.Option(help="cfg (classifier-free) or apg (adaptive projected).", rich_help_panel=GUIDANCE)
    ] = "cfg",
    rescale: Annotated[
        float, typer.Option(help="Of guided contrast, back to the unguided's: 0 to 1.", rich_help_panel=GUIDANCE)
    ] = 0.0,
    interval: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="LOW,HIGH", help=INTERVAL_HELP, rich_help_panel=GUIDANCE),
    ] = None,
    threshold: Annotated[float | None, typer.Option(metavar="P", help=THRESHOLD_HELP, rich_help_panel=GUIDANCE)] = None,
    guide: Annotated[Optional[Path], typer.Option(help=GUIDE_HELP, rich_help_panel=GUIDANCE)] = None,  # noqa: UP045
    image: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Go on from this picture (img2img).", rich_help_panel=PICTURE),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="How far to leave it, over 0 to 1.  [default: 0.8; mask 1, hires 0.5]", rich_help_panel=PICTURE
        ),
    ] = None,
    mask: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Paint the image only where this one is white (inpainting).", rich_help_panel=PICTURE),
    ] = None,
    paste: Annotated[
        bool, typer.Option(help="Keep the image's own pixels where the mask is black.", rich_help_panel=PICTURE)
    ] = True,
    variation: Annotated[
        int | None, typer.Option(help="A second seed, to which the noise is turned a little.", rich_help_panel=PICTURE)
    ] = None,
    variation_strength: Annotated[
        float, typer.Option(help="How far it is turned: 0 not at all, 1 wholly.", rich_help_panel=PICTURE)
    ] = 0.2,
    hires: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Draw at --size, enlarge to this, and draw on.", rich_help_panel=PICTURE),
    ] = None,
    upscaler: Annotated[
        str, typer.Option(help="Of hires: lanczos (of the picture) or latent.", rich_help_panel=PICTURE)
    ] = "lanczos",
    prediction: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Where it does not tell: eps or v.", rich_help_panel=STABLE),
    ] = None,
    trust_pickle: Annotated[
        bool,
        typer.Option("--trust-pickle", help="Read the tensors of a .ckpt, and only those.", rich_help_panel=STABLE),
    ] = False,
    lora: Loras = None,
    embedding: Embeddings = None,
    vae: Vae = None,
    preview: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FILE|FOLDER", help="A tiny autoencoder (TAESD) that shows what emerges.", rich_help_panel=STABLE
        ),
    ] = None,
    clip_skip: Annotated[
        int, typer.Option(help="2 = without the text encoder's last layer, as A1111 counts.", rich_help_panel=STABLE)
    ] = 1,
    tiles: Annotated[
        int,
        typer.Option(
            metavar="N", help="Decode in tiles of N pixels, to save memory; 0 = whole.", rich_help_panel=STABLE
        ),
    ] = 0,
    precision: Annotated[str, typer.Option(help=PRECISION_HELP)] = "auto",
    device: Device = None,
    quiet: Quiet = False,
) -> int:
    """Draw pictures from words, and see them emerge from noise.

    In a prompt (frog:1.3) weighs, [frog:rabbit:0.4] switches, [frog|rabbit] takes turns, AND, NOT and BREAK divide,
    hybrid(frog, rabbit) is both, <lora:ink:0.8> adds a LoRA; see docs/prompts.md. A backslash makes \\( plain.
    """
    sides = None if size is None else quantities.parse_size(size)
    when = None if interval is None else quantities.parse_interval(interval, "--interval")
    larger = None if hires is None else quantities.parse_size(hires, "--hires")
    share_the_cores()
    from unspeckle.commands.draw import AddOns, run
    from unspeckle.generation.request import Request

    ask = Request(
        " ".join(prompt), negative, seed, count, steps, sampler, grid, scale, sides, guidance, rescale, when,
        dynamic_threshold=threshold, strength=strength, paste_original=paste, variation_seed=variation,
        variation_strength=variation_strength, hires_size=larger, upscaler=upscaler, clip_skip=clip_skip, tile_size=tiles,
        batch_size=batch,
    )  # fmt: skip
    added = AddOns(lora or (), embedding or (), vae)
    return run(
        ask, model, guide, out, strip, quiet, device, prediction, trust_pickle, image, mask, added, preview, precision
    )


def replay(
    picture: Annotated[Path, typer.Argument(help="A PNG that draw wrote.", show_default=False)],
    model: ModelPath = None,
    guide: Annotated[Optional[Path], typer.Option(help="The weaker model, where one guided.")] = None,  # noqa: UP045
    image: Annotated[Optional[Path], typer.Option(help="The picture it went on from.")] = None,  # noqa: UP045
    mask: Annotated[Optional[Path], typer.Option(help="The mask in which it was painted.")] = None,  # noqa: UP045
    lora: Loras = None,
    embedding: Embeddings = None,
    vae: Vae = None,
    prediction: Prediction = None,
    trust_pickle: TrustPickle = False,
    device: Device = None,
    quiet: Quiet = False,
) -> int:
    """Draw a picture again from the ask in its file, and print the largest pixel difference."""
    share_the_cores()
    from unspeckle.commands.draw import AddOns
    from unspeckle.commands.replay import run

    added = AddOns(lora or (), embedding or (), vae)
    return run(picture, model, guide, quiet, device, prediction, trust_pickle, image, mask, added)


def convert(
    source: Annotated[
        str, typer.Argument(metavar="A", help="A model, as --model takes it; with B alone, that inside.")
    ],
    target: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="B", help="NAME.safetensors for one file, else a new folder.", show_default=False),
    ] = None,
    to: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="onnx|openvino", help="Write graphs for that program.  [default: diffusers' layouts]"),
    ] = None,
    prediction: Prediction = None,
    trust_pickle: TrustPickle = False,
) -> int:
    """Write a model in another layout, and compare the two: a Stable Diffusion as a single file or a diffusers folder,
    any model as a folder of graphs for ONNX Runtime or OpenVINO."""
    from unspeckle.commands.convert import run

    alone = target is None  # typer fills the first argument
    return run(None if alone else source, Path(source) if target is None else target, to, prediction, trust_pickle)
