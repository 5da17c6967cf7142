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
from unspeckle.corpus import Corpus, read_folder
from unspeckle.errors import InputError
from unspeckle.model import ModelCard
from unspeckle.model_io.model_file import MODEL_FILE
from unspeckle.model_io.process_memory import keep_freed_memory
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.latent_autoencoder import LatentAutoencoder
from unspeckle.text.tokenizer import split_words
from unspeckle.training import autoencoder_task, check_options, checkpoint, measurement, memory, planner
from unspeckle.training import plan as plans
from unspeckle.training.inputs import TOKENIZER_FILE, TrainingInputs, load_inputs
from unspeckle.training.log_file import TrainingLog
from unspeckle.training.loop import TextToImageTask, TrainingTask, fit
from unspeckle.training.master_weights import TrainableModules, init_modules
from unspeckle.training.options import Options, TrainOptions
from unspeckle.training.plan import Plan
from unspeckle.training.progress_view import ProgressView, plan_table
from unspeckle.training.stage import ProgressReport, TrainingError

EXIT_DONE, EXIT_FAILED, EXIT_STOPPED = 0, 1, 130
MAX_SAMPLE_PROMPTS = 16
LOCK_FILE = ".lock"  # in a RUN
DEFAULT_SAMPLER, DEFAULT_TIMESTEP_SPACING = (
    "euler_ancestral",
    "shifted",
)  # one choice for all, measured on photos in half an hour: docs/recipe.md

CAPTIONS_FILE = "captions.txt"  # in a RUN: some of those it learns from, one a line, for `distil`
MAX_CAPTIONS = 20_000

ShouldStop = Callable[[], bool]


def run_training(options: TrainOptions) -> int:
    """Do what was asked; returns the exit code. InputError where the options or the folder do not allow it."""
    start_time = time.monotonic()
    keep_freed_memory()
    console = Console(stderr=True, quiet=options.quiet)
    plan = plans.load_plan(options.out)
    if plan is not None:
        plans.check_options_unchanged(plan, options)
        if (options.out / MODEL_FILE).exists() and not options.plan_only:
            console.print(f"this run is finished; draw with --model {options.out}", highlight=False, soft_wrap=True)
            print((options.out / MODEL_FILE).absolute())
            return EXIT_DONE
    else:
        check_options.check_train_options(options)
    check_run_folder(options, plan)
    is_resumed = plan is not None
    listing = read_folder(options.folder, options.captions, options.caption, options.template)
    with lock_run(options):
        inputs = load_inputs(listing, options, plan, console)
        device = (options.device or measurement.default_device()) if plan is None else plan.device
        inputs = inputs._replace(corpus=memory.corpus_to_device(inputs.corpus, device))
        if plan is None:
            size = inputs.corpus.training.size
            plan = planner.make_train_plan(
                options, size, *inputs, start_time, lambda line: console.print(line, highlight=False)
            )
        elif plan.corpus_fingerprint != inputs.corpus.fingerprint:
            raise InputError(
                f"{options.folder}: its pictures or captions have changed since {options.out} began; "
                "give another --out (with --from, it can go on from another run's model)"
            )
        console.print(plan_table(plan, checkpoint.latest_step(options.out / "checkpoints") if is_resumed else 0))
        if options.plan_only:
            if options.json:
                print(json.dumps(configuration.to_json(plan)))
            return EXIT_DONE
        return _train_task(options, plan, inputs, console)


def check_run_folder(options: Options, plan: Plan | None) -> None:
    """InputError where --out cannot be a RUN, or its plan cannot be carried on here."""
    if plan is not None and not check_options.is_device_usable(plan.device):
        raise InputError(f"{options.out}: was begun on {plan.device}, which is not here; give another --out")
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out}: is a file; give a folder")
    if plan is not None or not options.out.is_dir():
        return
    names = {entry.name for entry in options.out.iterdir() if not entry.name.startswith(".unspeckle-")}
    if names - (
        {LOCK_FILE, TOKENIZER_FILE, CAPTIONS_FILE} if LOCK_FILE in names else set()
    ):  # what a run holds that died before its plan
        raise InputError(f"--out {options.out}: holds other things; give a new or empty folder")


@contextmanager
def lock_run(options: Options) -> Iterator[None]:
    """Let no second process train into the same RUN; the lock falls with the process."""
    if options.plan_only:
        yield
        return
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        file = (options.out / LOCK_FILE).open("w")
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
        for partial_file in options.out.rglob(".unspeckle-*.part"):  # of a process that was killed
            partial_file.unlink()
        yield


def _train_task(options: TrainOptions, plan: Plan, inputs: TrainingInputs, console: Console) -> int:
    if not (options.out / plans.PLAN_FILE).exists():
        atomic.write_bytes(options.out / TOKENIZER_FILE, inputs.tokenizer.to_json().encode())
        atomic.write_bytes(
            options.out / CAPTIONS_FILE, "".join(f"{line}\n" for line in select_captions(inputs.corpus)).encode()
        )
        plan.save(options.out)
    if plan.threads != torch.get_num_threads() and plan.device == "cpu":
        torch.set_num_threads(plan.threads)
    corpus, tokenizer, autoencoder, base_model = inputs
    modules = (
        init_modules(plan) if base_model is None else TrainableModules(base_model.network, base_model.text_encoder)
    )
    word_counts = Counter(
        word for caption in islice(corpus.training_captions(), 20_000) for word in split_words(caption) if len(word) > 2
    )
    summary = {**corpus.summary, "seed": plan.seed, "pictures_seen": plan.total_images, "steps": plan.steps}
    card = ModelCard(
        name=options.out.absolute().name, license=options.license or "", size=plan.size, corpus=summary,
        vocabulary=tuple(word for word, _ in word_counts.most_common(200)), recipe=_command_line(options), sampler=DEFAULT_SAMPLER,
        timestep_spacing=DEFAULT_TIMESTEP_SPACING,
    )  # fmt: skip
    distinct_captions = tuple(
        dict.fromkeys(corpus.validation.first_captions(range(len(corpus.validation))) or corpus.training_captions())
    )
    if len(corpus.validation) == 0:
        console.print(
            "too few pictures to hold some out: the held-out loss is one of training pictures", soft_wrap=True
        )
    should_stop = stop_on_signal()
    try:
        autoencoder_ready = _prepare_autoencoder(
            options, plan, corpus, autoencoder, base_model is not None, should_stop, console
        )
    except TrainingError as error:
        return _print_failure(options, error)
    if not autoencoder_ready:
        return _print_stopped(console)
    task = TextToImageTask(
        plan, options.out, corpus, tokenizer, autoencoder, card, distinct_captions[:MAX_SAMPLE_PROMPTS], modules
    )
    return run_task(task, options, console, should_stop)


def _prepare_autoencoder(
    options: TrainOptions,
    plan: Plan,
    corpus: Corpus,
    autoencoder: Autoencoder,
    is_trained: bool,
    should_stop: ShouldStop,
    console: Console,
) -> bool:
    """See to it that the autoencoder is ready; False where it was stopped on the way. given: it has learnt already."""
    if isinstance(autoencoder, LatentAutoencoder) and plan.autoencoder_steps:
        autoencoder_steps_done = checkpoint.latest_step(
            options.out / autoencoder_task.AUTOENCODER_FOLDER / "checkpoints"
        )
        if checkpoint.latest_step(options.out / "checkpoints") and autoencoder_steps_done < plan.autoencoder_steps:
            raise autoencoder_task.missing_autoencoder_error(options.out)
        task = autoencoder_task.AutoencoderTask(plan, options.out, corpus, autoencoder, should_stop)
        console.print(f"the autoencoder learns first, for {plan.autoencoder_steps:,} steps", highlight=False)
        _show_and_log(
            autoencoder_task.train_autoencoder(task),
            task.plan,
            options.out / autoencoder_task.AUTOENCODER_FOLDER,
            console,
            options.quiet,
        )
        return not should_stop()
    if isinstance(autoencoder, LatentAutoencoder):
        autoencoder_task.save_or_restore_autoencoder(options.out, autoencoder, is_trained=is_trained)
    return True


def select_captions(corpus: Corpus) -> list[str]:
    """At most CAPTIONS_KEPT wordings, evenly from all."""
    captions = [" ".join(caption.split()) for caption in corpus.training_captions()]
    count = min(len(captions), MAX_CAPTIONS)
    return [captions[i * len(captions) // count] for i in range(count)]


def run_task(task: TrainingTask, options: Options, console: Console, should_stop: ShouldStop) -> int:
    """Carry a course on to its end or until somebody stops it, told and logged; returns the exit code."""
    task.should_stop = should_stop
    try:
        report = _show_and_log(fit(task), task.plan, options.out, console, options.quiet)
    except TrainingError as error:
        return _print_failure(options, error)
    if not (options.out / task.output_file).exists():
        return _print_stopped(console)
    if report is not None and report.validation is not None:
        console.print(report.validation.summary, highlight=False)
    print((options.out / task.output_file).absolute())
    return EXIT_DONE


def _print_failure(options: Options, error: TrainingError) -> int:
    print(f"{options.out}: {error}", file=sys.stderr)
    return EXIT_FAILED


def _print_stopped(console: Console) -> int:
    console.print("stopped at a clean point; the same command goes on from here", highlight=False)
    return EXIT_STOPPED


def _show_and_log(
    reports: Iterator[ProgressReport], plan: Plan, folder: Path, console: Console, quiet: bool
) -> ProgressReport | None:
    """Show and log the reports of the plan's steps; returns the last one, if there was any."""
    report = None
    log = TrainingLog(folder, checkpoint.latest_step(folder / "checkpoints"))
    if log.tensorboard is None:
        console.print("no TensorBoard events without the package tensorboard; log.jsonl has the same", soft_wrap=True)
    try:
        with ProgressView(plan, console, quiet) as view:
            for report in reports:
                log.write_report(report, report.step * plan.batch_size)
                view.show_report(report)
    finally:
        log.close()
    return report


def _command_line(options: TrainOptions) -> str:
    """The command, without paths."""
    values = {**plans.options_to_json(options), "from_model": None if options.from_model is None else "MODEL"}
    values = {name: value for name, value in values.items() if (name, value) != ("captions", "auto")}
    return " ".join(
        ["unspeckle train FOLDER --out RUN", *filter(None, (plans.format_option(k, v) for k, v in values.items()))]
    )


def stop_on_signal() -> ShouldStop:
    """Whether the person or the system has asked to stop from now on; the second Ctrl-C stops at once."""
    signals: list[int] = []

    def handle_signal(signal_number: int, _: FrameType | None) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(signal_number)
        print("\nstopping after this step, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError):  # not in the main thread: whoever called listens
            signal.signal(signal_number, handle_signal)
    return lambda: bool(signals)
