"""The command line: its words and options. What a command does lies in `commands/` and is imported when it runs."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from unspeckle import quantities
from unspeckle.errors import InputError

DONE, BAD_INPUT, STOPPED = 0, 2, 130

app = typer.Typer(
    name="unspeckle",
    help="Text-to-image diffusion that a person can own whole.",
    epilog='Begin with: unspeckle draw "a frog on stilts"',
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
corpora = typer.Typer(help="Make a corpus of captioned pictures.", rich_markup_mode=None)
app.add_typer(corpora, name="make-corpus")

MODEL_HELP = "A model: file, RUN of train, or Stable Diffusion (file, folder, hub name).  [default: the one inside]"
INTERVAL_HELP = "Guide at these times only: 0 is the picture, 1 is noise.  [default: always]"
PRECISION_HELP = "auto (bfloat16 for a Stable Diffusion where it pays), float32, bfloat16 or float16."
GUIDE_HELP = "A weaker model that guides in place of the negative prompt (autoguidance)."
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors and the paths of results.")]
Device = Annotated[Optional[str], typer.Option(help="cpu or cuda.  [default: cuda where there is one]")]  # noqa: UP045
ModelPath = Annotated[Optional[Path], typer.Option("--model", "-m", help=MODEL_HELP)]  # noqa: UP045
Prediction = Annotated[Optional[str], typer.Option(help="Of a Stable Diffusion that does not tell: eps or v.")]  # noqa: UP045
TrustPickle = Annotated[bool, typer.Option("--trust-pickle", help="Read the tensors of a .ckpt, and only those.")]
Captions = Annotated[str, typer.Option(help="Where they lie: auto, txt, metadata, folders or names.")]


def _version(wanted: bool) -> None:
    if wanted:
        from unspeckle.version import installed

        print(f"unspeckle {installed()}")
        raise typer.Exit()


@app.callback()
def _app(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    """Text-to-image diffusion that a person can own whole."""


@app.command(epilog='Example: unspeckle draw "a blue frog wearing a top hat" --count 4 --seed 7 --out pictures')
def draw(
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw.", show_default=False)],
    model: ModelPath = None,
    seed: Annotated[int, typer.Option(help="The same seed and words give the same picture.")] = 0,
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures, with the seeds seed, seed + 1, …")] = 1,
    steps: Annotated[
        int | None,
        typer.Option(help="Few, such as 1, 2 or 4, ask a distilled model's student.  [default: the model's]"),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="dpmpp_2m, ddim, heun, …  [default: the model's]")] = None,
    grid: Annotated[str | None, typer.Option(help="Of times: uniform, karras, …  [default: the model's]")] = None,
    scale: Annotated[float | None, typer.Option(help="Of guidance; 1 is none.  [default: the model's]")] = None,
    negative: Annotated[str, typer.Option(help="What to draw away from.")] = "",
    guidance: Annotated[str, typer.Option(help="cfg (classifier-free) or apg (adaptive projected).")] = "cfg",
    rescale: Annotated[float, typer.Option(help="Of guided contrast, back to the unguided's: 0 to 1.")] = 0.0,
    interval: Annotated[Optional[str], typer.Option(metavar="LOW,HIGH", help=INTERVAL_HELP)] = None,  # noqa: UP045
    guide: Annotated[Optional[Path], typer.Option(help=GUIDE_HELP)] = None,  # noqa: UP045
    size: Annotated[str | None, typer.Option(help="Pixels: 64 or WxH.  [default: the model's]")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the PNG files.")] = Path(),
    strip: Annotated[bool, typer.Option("--strip", help="Save the film of the drawing as well.")] = False,
    prediction: Prediction = None,
    trust_pickle: TrustPickle = False,
    precision: Annotated[str, typer.Option(help=PRECISION_HELP)] = "auto",
    device: Device = None,
    quiet: Quiet = False,
) -> int:
    """Draw pictures from words, and see them emerge from noise.

    In a prompt (frog:1.3) weighs, [frog:rabbit:0.4] switches, [frog|rabbit] takes turns, AND, NOT and BREAK divide,
    hybrid(frog, rabbit) is both; see docs/prompts.md. A backslash makes \\( plain.
    """
    sides = None if size is None else quantities.size(size)
    when = None if interval is None else quantities.span(interval, "--interval")
    _share_the_cores()
    from unspeckle.commands.draw import run
    from unspeckle.draw import Ask

    ask = Ask(" ".join(prompt), negative, seed, count, steps, sampler, grid, scale, sides, guidance, rescale, when)
    return run(ask, model, guide, out, strip, quiet, device, prediction, trust_pickle, precision)


@app.command(epilog="Exit code: 0 where no pixel differs, 1 where one does.")
def replay(
    picture: Annotated[Path, typer.Argument(help="A PNG that draw wrote.", show_default=False)],
    model: ModelPath = None,
    guide: Annotated[Optional[Path], typer.Option(help="The weaker model, where one guided.")] = None,  # noqa: UP045
    device: Device = None,
    quiet: Quiet = False,
) -> int:
    """Draw a picture again from the ask in its file, and print the largest pixel difference."""
    _share_the_cores()
    from unspeckle.commands.replay import run

    return run(picture, model, guide, quiet, device)


@app.command(epilog="Exit code: 0 where what was written computes the same, 1 where it does not.")
def convert(
    source: Annotated[str, typer.Argument(metavar="A", help="A Stable Diffusion: file, folder or hub name.")],
    target: Annotated[Path, typer.Argument(metavar="B", help="NAME.safetensors for one file, else a new folder.")],
    prediction: Prediction = None,
    trust_pickle: TrustPickle = False,
) -> int:
    """Turn a Stable Diffusion into a single file or a diffusers folder, and compare the two."""
    from unspeckle.commands.convert import run

    return run(source, target, prediction, trust_pickle)


@corpora.callback()
def _corpora() -> None:
    """Make a corpus of captioned pictures."""


@corpora.command(epilog="Example: unspeckle make-corpus emoji scenes --scenes 20k --nouns frog,rabbit,pizza")
def emoji(
    out: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    scenes: Annotated[str, typer.Option(help="How many, such as 5000 or 20k.")] = "10k",
    seed: Annotated[int, typer.Option(help="The same seed gives the same scenes.")] = 0,
    nouns: Annotated[str | None, typer.Option(help="Only these, with commas between.  [default: all]")] = None,
    size: Annotated[int, typer.Option(help="Pixels of a side.")] = 64,
    sprites: Annotated[
        Path | None, typer.Option(help="Named RGBA pictures to use.  [default: the system's colour-emoji font]")
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Scenes of emoji on coloured grounds: places, counts, tints, stilts, hybrids, with what is true of each."""
    many = quantities.count(scenes, "--scenes")
    chosen = None if nouns is None else [noun.strip() for noun in nouns.split(",") if noun.strip()]
    if chosen == []:
        raise InputError(f"--nouns {nouns!r}: names none; write it like frog,rabbit,pizza")
    from unspeckle.commands.make_corpus import run

    return run(out, many, seed, chosen, size, sprites, quiet)


@app.command(epilog="Example: unspeckle train photographs --out photographs-run --for 30m")
def train(
    folder: Annotated[Path, typer.Argument(help="Captioned pictures.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The RUN: model, plan, log, checkpoints, samples.")],
    for_: Annotated[str | None, typer.Option("--for", help="How long you will wait: 90s, 30m, 1h30m.")] = None,
    pictures: Annotated[str | None, typer.Option(help="Or how many pictures to learn from: 150k, 2M.")] = None,
    steps: Annotated[str | None, typer.Option(help="Or how many steps.")] = None,
    size: Annotated[str | None, typer.Option(help="Pixels: 64 or WxH.")] = None,
    preset: Annotated[str | None, typer.Option(help="Of the network.  [default: what the time allows]")] = None,
    space: Annotated[str | None, typer.Option(help="Denoise pixels or learnt latents.  [default: by the time]")] = None,
    captions: Captions = "auto",
    caption: Annotated[str | None, typer.Option(help="One caption for all pictures.")] = None,
    template: Annotated[str | None, typer.Option(help='Around the name of a folder: "a photo of {}".')] = None,
    from_model: Annotated[Path | None, typer.Option("--from", help="Go on from this model.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures a step.")] = None,
    device: Device = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="torch.compile.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only print the plan.")] = False,
    json: Annotated[bool, typer.Option("--json", help="With --plan: print it as JSON.")] = False,
    quiet: Quiet = False,
) -> int:
    """Train a model on a folder of captioned pictures, as long as you will wait.

    Ctrl-C stops at a clean point; the same command goes on from there, bit for bit.
    """
    from unspeckle.training.options import TrainOptions

    options = TrainOptions(
        folder=folder,
        out=out,
        seconds=None if for_ is None else quantities.duration(for_),
        pictures=None if pictures is None else quantities.count(pictures, "--pictures"),
        steps=None if steps is None else quantities.count(steps, "--steps"),
        size=size,
        preset=preset,
        space=space,
        captions=captions,
        caption=caption,
        template=template,
        from_model=from_model,
        seed=seed,
        batch=batch,
        device=device,
        precision=precision,
        compile=compile,
        plan_only=plan,
        json=json,
        quiet=quiet,
    )
    from unspeckle.training.command import run

    return run(options)


@app.command(epilog="Example: unspeckle distil photographs-run --for 30m")
def distil(
    model: Annotated[Path, typer.Argument(help="The teacher: a RUN of train, or a file.", show_default=False)],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="The RUN: model, plan, log, …  [default: the teacher's name and -few]"),
    ] = None,
    for_: Annotated[str | None, typer.Option("--for", help="How long you will wait: 90s, 30m, 1h30m.")] = None,
    pictures: Annotated[str | None, typer.Option(help="Or how many pictures the teacher is to draw: 5k.")] = None,
    steps: Annotated[str | None, typer.Option(help="Or how many steps of learning.")] = None,
    corpus: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A folder, for its captions.  [default: those that the teacher's RUN kept]"),
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Of guidance, baked in.  [default: the teacher's]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures that the teacher draws for a step.")] = None,
    device: Device = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only print the plan.")] = False,
    json: Annotated[bool, typer.Option("--json", help="With --plan: print it as JSON.")] = False,
    quiet: Quiet = False,
) -> int:
    """Teach a student to draw in 1, 2 or 4 steps what a model draws in many.

    The new file carries both; draw --steps 4 asks the student. Ctrl-C stops at a clean point; the same command goes on.
    """
    from unspeckle.training.options import DistilOptions

    options = DistilOptions(
        model=model,
        out=out or model.resolve().with_name(f"{model.resolve().stem}-few"),
        corpus=corpus,
        seconds=None if for_ is None else quantities.duration(for_),
        pictures=None if pictures is None else quantities.count(pictures, "--pictures"),
        steps=None if steps is None else quantities.count(steps, "--steps"),
        scale=scale,
        seed=seed,
        batch=batch,
        device=device,
        precision=precision,
        plan_only=plan,
        json=json,
        quiet=quiet,
    )
    from unspeckle.commands.distil import run

    return run(options)


@app.command(epilog="Exit code: 0 where nothing is amiss, 1 where something is.")
def check(
    folder: Annotated[Path, typer.Argument(help="Captioned pictures.", show_default=False)],
    captions: Captions = "auto",
    caption: Annotated[str | None, typer.Option(help="One caption for all pictures.")] = None,
    template: Annotated[str | None, typer.Option(help='Around the name of a folder: "a photo of {}".')] = None,
    size: Annotated[str, typer.Option(help="At which it will be trained: 64 or WxH pixels.")] = "64",
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> int:
    """Look through a folder of captioned pictures before training on it."""
    sides = quantities.size(size)
    from unspeckle.commands.check import run

    return run(folder, captions, caption, template, sides, json)


@app.command(epilog="Example: unspeckle score my-run --corpus photographs --out my-run.html")
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
    prompts: Annotated[int, typer.Option(help="Of each category of words, for corpora of emoji scenes.")] = 25,
    steps: Annotated[int | None, typer.Option(help="Of the sampler.  [default: the model's]")] = None,
    sampler: Annotated[str | None, typer.Option(help="dpmpp_2m, ddim, heun, …  [default: the model's]")] = None,
    grid: Annotated[str | None, typer.Option(help="Of times: uniform, karras, …  [default: the model's]")] = None,
    scale: Annotated[float | None, typer.Option(help="Of guidance; 1 is none.  [default: the model's]")] = None,
    captions: Annotated[str | None, typer.Option(help="As in train.  [default: as the RUN had it, else auto]")] = None,
    caption: Annotated[str | None, typer.Option(help="As in train.")] = None,
    template: Annotated[str | None, typer.Option(help="As in train.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    device: Device = None,
    quiet: Quiet = False,
) -> int:
    """Measure a model, and write a report: distances, losses, bits, memorisation, what steps and guidance buy.

    Without --corpus only what needs no real pictures.
    """
    _share_the_cores()
    from unspeckle.commands.score import ScoreOptions, run
    from unspeckle.draw import Ask

    ask = Ask(steps=steps, sampler=sampler, grid=grid, scale=scale)
    return run(
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
        )
    )


def _share_the_cores() -> None:
    """Threads that wait for each other soon sleep instead of spinning: they would starve beside a training run."""
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # read once, when torch is imported


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. Bad input is one line on standard error and 2, Ctrl-C is 130."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be Unicode, terminals not UTF-8
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdout else "backslashreplace")
    try:
        result: Any = app(given or ["--help"], prog_name="unspeckle", standalone_mode=False)
        sys.stdout.flush()
        return result if type(result) is int else DONE
    except InputError as e:
        return _refuse(str(e))
    except (KeyboardInterrupt, typer.Abort):
        print("stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as e:
        if e.filename is None and e.strerror is None:
            raise
        return _refuse(f"{e.filename or 'a file'}: {e.strerror}")
    except MemoryError:
        return _refuse("memory does not suffice; ask for fewer or smaller pictures")
    except Exception as e:
        if not hasattr(e, "format_message"):  # what typer raises for a usage it does not know
            raise
        context = getattr(e, "ctx", None)
        return _refuse(f"{e.format_message().rstrip('.')}; see {getattr(context, 'command_path', 'unspeckle')} --help")


def _refuse(message: str) -> int:
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    print(f"unspeckle: {line}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
