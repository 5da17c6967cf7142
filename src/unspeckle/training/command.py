"""`unspeckle train`: from a folder to RUN/model.safetensors, or from where it was stopped."""

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console

from unspeckle import atomic, configuration
from unspeckle.corpus import Corpus, read
from unspeckle.errors import InputError
from unspeckle.model import MODEL_FILE, ModelCard
from unspeckle.model_io.precision import keep_freed_memory
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.latent_autoencoder import Latents
from unspeckle.text.tokenizer import words
from unspeckle.training import autoencoder_task, check_options, checkpoint, measurement, memory, planner
from unspeckle.training import plan as plans
from unspeckle.training.inputs import WORDS, Materials, gather
from unspeckle.training.log_file import Log
from unspeckle.training.loop import Course, Training, train
from unspeckle.training.master_weights import Weights, fresh
from unspeckle.training.options import Options, TrainOptions
from unspeckle.training.plan import Plan
from unspeckle.training.progress_view import View, table
from unspeckle.training.stage import Failed, Report

DONE, FAILED, STOPPED = 0, 1, 130
PROMPTS = 16
LOCK = ".lock"  # in a RUN
SAMPLER, GRID = "euler_a", "shifted"  # one choice for all, measured on photos in half an hour: docs/recipe.md

CAPTIONS = "captions.txt"  # in a RUN: some of those it learns from, one a line, for `distil`
CAPTIONS_KEPT = 20_000

Stop = Callable[[], bool]


def run(options: TrainOptions) -> int:
    """Do what was asked; returns the exit code. InputError where the options or the folder do not allow it."""
    started = time.monotonic()
    keep_freed_memory()
    console = Console(stderr=True, quiet=options.quiet)
    plan = plans.load(options.out)
    if plan is not None:
        plans.refuse_changes(plan, options)
        if (options.out / MODEL_FILE).exists() and not options.plan_only:
            console.print(f"this run is finished; draw with --model {options.out}", highlight=False, soft_wrap=True)
            print((options.out / MODEL_FILE).absolute())
            return DONE
    else:
        check_options.check(options)
    usable(options, plan)
    done = plan is not None
    listing = read(options.folder, options.captions, options.caption, options.template)
    with alone(options):
        materials = gather(listing, options, plan, console)
        device = (options.device or measurement.usual_device()) if plan is None else plan.device
        materials = materials._replace(corpus=memory.near(materials.corpus, device))
        if plan is None:
            size = materials.corpus.training.size
            plan = planner.choose(options, size, *materials, started, lambda line: console.print(line, highlight=False))
        elif plan.corpus != materials.corpus.fingerprint:
            raise InputError(
                f"{options.folder}: its pictures or captions have changed since {options.out} began; "
                "give another --out (with --from, it can go on from another run's model)"
            )
        console.print(table(plan, checkpoint.steps_done(options.out / "checkpoints") if done else 0))
        if options.plan_only:
            if options.json:
                print(json.dumps(configuration.to_json(plan)))
            return DONE
        return _carry_out(options, plan, materials, console)


def usable(options: Options, plan: Plan | None) -> None:
    """InputError where --out cannot be a RUN, or its plan cannot be carried on here."""
    if plan is not None and not check_options.usable(plan.device):
        raise InputError(f"{options.out}: was begun on {plan.device}, which is not here; give another --out")
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out}: is a file; give a folder")
    if plan is not None or not options.out.is_dir():
        return
    names = {entry.name for entry in options.out.iterdir() if not entry.name.startswith(".unspeckle-")}
    if names - ({LOCK, WORDS, CAPTIONS} if LOCK in names else set()):  # what a run holds that died before its plan
        raise InputError(f"--out {options.out}: holds other things; give a new or empty folder")


@contextmanager
def alone(options: Options) -> Iterator[None]:
    """Let no second process train into the same RUN; the lock falls with the process."""
    if options.plan_only:
        yield
        return
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        file = (options.out / LOCK).open("w")
    except OSError as error:
        raise InputError(f"--out {options.out}: cannot be written ({error.strerror}); give another folder") from error
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # Windows
        except BlockingIOError as error:
            raise InputError(f"{options.out}: another process trains there; wait, or give another --out") from error
        for torn in options.out.rglob(".unspeckle-*.part"):  # of a process that was killed
            torn.unlink()
        yield


def _carry_out(options: TrainOptions, plan: Plan, materials: Materials, console: Console) -> int:
    if not (options.out / plans.FILE).exists():
        atomic.write_bytes(options.out / WORDS, materials.tokenizer.to_json().encode())
        atomic.write_bytes(options.out / CAPTIONS, "".join(f"{line}\n" for line in kept(materials.corpus)).encode())
        plan.save(options.out)
    if plan.threads != torch.get_num_threads() and plan.device == "cpu":
        torch.set_num_threads(plan.threads)
    corpus, tokenizer, autoencoder, origin = materials
    weights = fresh(plan) if origin is None else Weights(origin.network, origin.text_encoder)
    heard = Counter(word for caption in islice(corpus.captions(), 20_000) for word in words(caption) if len(word) > 2)
    summary = {**corpus.summary, "seed": plan.seed, "pictures_seen": plan.pictures, "steps": plan.steps}
    card = ModelCard(
        name=options.out.absolute().name, license=options.licence or "", size=plan.size, corpus=summary,
        vocabulary=tuple(word for word, _ in heard.most_common(200)), recipe=_recipe(options), sampler=SAMPLER,
        timestep_spacing=GRID,
    )  # fmt: skip
    distinct = tuple(dict.fromkeys(corpus.heldout.captions(range(len(corpus.heldout))) or corpus.captions()))
    if len(corpus.heldout) == 0:
        console.print(
            "too few pictures to hold some out: the held-out loss is one of training pictures", soft_wrap=True
        )
    stop = listen()
    try:
        ready = _autoencoder(options, plan, corpus, autoencoder, origin is not None, stop, console)
    except Failed as failure:
        return _failed(options, failure)
    if not ready:
        return _stopped(console)
    training = Training(plan, options.out, corpus, tokenizer, autoencoder, card, distinct[:PROMPTS], weights)
    return follow(training, options, console, stop)


def _autoencoder(
    options: TrainOptions,
    plan: Plan,
    corpus: Corpus,
    autoencoder: Autoencoder,
    given: bool,
    stop: Stop,
    console: Console,
) -> bool:
    """See to it that the autoencoder is ready; False where it was stopped on the way. given: it has learnt already."""
    if isinstance(autoencoder, Latents) and plan.latent_steps:
        kept = checkpoint.steps_done(options.out / autoencoder_task.FOLDER / "checkpoints")
        if checkpoint.steps_done(options.out / "checkpoints") and kept < plan.latent_steps:
            raise autoencoder_task.lost(options.out)
        learning = autoencoder_task.LatentTraining(plan, options.out, corpus, autoencoder, stop)
        console.print(f"the autoencoder learns first, for {plan.latent_steps:,} steps", highlight=False)
        _watch(
            autoencoder_task.learn(learning),
            learning.plan,
            options.out / autoencoder_task.FOLDER,
            console,
            options.quiet,
        )
        return not stop()
    if isinstance(autoencoder, Latents):
        autoencoder_task.settle(options.out, autoencoder, given=given)
    return True


def kept(corpus: Corpus) -> list[str]:
    """At most CAPTIONS_KEPT wordings, evenly from all."""
    captions = [" ".join(caption.split()) for caption in corpus.captions()]
    count = min(len(captions), CAPTIONS_KEPT)
    return [captions[i * len(captions) // count] for i in range(count)]


def follow(course: Course, options: Options, console: Console, stop: Stop) -> int:
    """Carry a course on to its end or until somebody stops it, told and logged; returns the exit code."""
    course.stop = stop
    try:
        report = _watch(train(course), course.plan, options.out, console, options.quiet)
    except Failed as failure:
        return _failed(options, failure)
    if not (options.out / course.file).exists():
        return _stopped(console)
    if report is not None and report.held is not None:
        console.print(report.held.said, highlight=False)
    print((options.out / course.file).absolute())
    return DONE


def _failed(options: Options, failure: Failed) -> int:
    print(f"{options.out}: {failure}", file=sys.stderr)
    return FAILED


def _stopped(console: Console) -> int:
    console.print("stopped at a clean point; the same command goes on from here", highlight=False)
    return STOPPED


def _watch(reports: Iterator[Report], plan: Plan, folder: Path, console: Console, quiet: bool) -> Report | None:
    """Show and log the reports of the plan's steps; returns the last one, if there was any."""
    report = None
    log = Log(folder, checkpoint.steps_done(folder / "checkpoints"))
    if log.events is None:
        console.print("no TensorBoard events without the package tensorboard; log.jsonl has the same", soft_wrap=True)
    try:
        with View(plan, console, quiet) as view:
            for report in reports:
                log.write(report, report.step * plan.batch)
                view.show(report)
    finally:
        log.close()
    return report


def _recipe(options: TrainOptions) -> str:
    """The command, without paths."""
    given = {**plans.asked(options), "from_model": None if options.from_model is None else "MODEL"}
    given = {name: value for name, value in given.items() if (name, value) != ("captions", "auto")}
    return " ".join(["unspeckle train FOLDER --out RUN", *filter(None, (plans.flag(k, v) for k, v in given.items()))])


def listen() -> Stop:
    """Whether the person or the system has asked to stop from now on; the second Ctrl-C stops at once."""
    heard: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)
        print("\nstopping after this step, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)

    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError):  # not in the main thread: whoever called listens
            signal.signal(number, note)
    return lambda: bool(heard)
