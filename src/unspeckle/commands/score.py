"""`unspeckle score`: how good is this model? One HTML report, and the numbers as JSON beside it."""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from unspeckle import atomic, configuration
from unspeckle.corpus import Corpus, open_corpus, read_folder
from unspeckle.errors import InputError
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.model import Model
from unspeckle.model_io.device import resolve_device
from unspeckle.model_io.loading import load
from unspeckle.model_io.precision import AUTO
from unspeckle.output.png import file_stem
from unspeckle.scoring.composition.hybrids import SCORED_METHODS, score_hybrids
from unspeckle.scoring.composition.questions import CompositionTest, read_composition_test
from unspeckle.scoring.composition.score import score_composition
from unspeckle.scoring.composition.train_detector import load_or_train_detector
from unspeckle.scoring.measure import count_network_calls, measure_scores
from unspeckle.scoring.report import render_report
from unspeckle.scoring.scores import Scores
from unspeckle.scoring.task import ReportImages, ScoreSettings
from unspeckle.training import plan as plans
from unspeckle.training.inputs import image_cache_folder

FEATURE_EXTRACTORS = ("scattering", "inception", "dinov2", "clip")
LOG_INTERVAL = 10.0  # seconds between two lines where there is no terminal
PROMPTS_PER_HYBRID_PAIR = (
    3  # prompts of a category for each pair whose hybrids are drawn, in six ways: a fifth of the work of words
)
SCENE_CORPUS_FILES = ("held-out.jsonl", "truth.jsonl")  # what tells that a corpus is of emoji scenes


@dataclass(frozen=True)
class ScoreOptions:
    """The command line's, as parsed."""

    model: Path | None
    corpus: Path | None
    out: Path | None
    features: str
    images_per_seed: int
    seed_count: int
    prompts_per_category: int  # of each category of words; 0 = no words
    request: Request
    captions: str | None
    caption: str | None
    template: str | None
    print_json: bool
    quiet: bool
    device: str | None
    prediction: str | None = None
    trust_pickle: bool = False
    precision: str = "auto"


class ProgressBar:
    """Progress on standard error: a bar with the time left, or now and then a line where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console, self.total, self.completed, self.stage_name = console, 1, 0, ""
        self.start_time = self.last_log_time = time.monotonic()
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task_id = self.bar.add_task("")

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    def restart(self, total: int) -> None:
        self.total, self.completed = max(1, total), 0
        self.start_time = time.monotonic()

    def restart_stage(self, name: str, total: int) -> None:
        """A stage whose units count by themselves."""
        self.restart(total)
        self.start_stage(name)

    def start_stage(self, name: str) -> None:
        self.stage_name = name
        self._refresh(0, force=True)

    def advance(self, units: int) -> None:
        self._refresh(units)

    def set_completed(self, completed: int, total: int) -> None:
        """So many of the stage's units are done, all in all."""
        self.total = total
        self._refresh(completed - self.completed)

    def show_decoding(self, completed: int, total: int) -> None:
        self.bar.update(self.task_id, description="decoding pictures", completed=completed, total=total)

    def _refresh(self, units: int, force: bool = False) -> None:
        self.completed += units
        self.bar.update(self.task_id, description=self.stage_name, completed=self.completed, total=self.total)
        now = time.monotonic()
        if self.console.is_terminal or not (force or now - self.last_log_time > LOG_INTERVAL):
            return
        self.last_log_time, time_left = now, ""
        if 0 < self.completed < self.total:
            time_left = f", about {(now - self.start_time) * (self.total - self.completed) / self.completed:.0f} s left"
        self.console.print(f"{self.stage_name}: {100 * self.completed // self.total} %{time_left}", soft_wrap=True)


def score_model(options: ScoreOptions) -> int:
    """Measure and write; returns the exit code. InputError where the options do not allow it."""
    _check_options(options)
    model = load(
        options.model, resolve_device(options.device), prediction=options.prediction, trust_pickle=options.trust_pickle,
        precision=options.precision,
    )  # fmt: skip
    resolve(model, options.request)  # says what is wrong with it before pictures are read
    out = options.out or Path(f"{file_stem(_model_name(model, options.model))}-score.html")
    _check_writable(out)
    plan = None if options.model is None or not options.model.is_dir() else plans.load_any_plan(options.model)
    console = Console(stderr=True, quiet=options.quiet, highlight=False, markup=False)
    settings = ScoreSettings(options.images_per_seed, options.seed_count, options.features, options.request)
    if plan is not None:
        settings = replace(settings, objective=plan.build_objective())
    with ProgressBar(console) as progress:
        corpus = None if options.corpus is None else _open_corpus(options, model, plan, console, progress)
        test, missing = _read_test(options)
        for line in missing:
            console.print(f"note: {line}", soft_wrap=True)  # before the long work, not only after it
        progress.restart(count_network_calls(model, corpus, settings))
        scores, report_images = measure_scores(
            model, corpus, "" if options.corpus is None else options.corpus.name, settings, progress
        )
        scores = replace(scores, missing=(*scores.missing, *missing))
        if test is not None:
            scores = _score_composition(scores, report_images, test, model, options, progress)
    scores_json = json.dumps(configuration.to_json(scores), ensure_ascii=False, allow_nan=False)
    json_path = out.with_suffix(".json")
    atomic.write_bytes(out, render_report(scores, report_images, _command_line(options, model)).encode())
    atomic.write_bytes(json_path, (scores_json + "\n").encode())
    for line in (*scores.missing, *scores.warnings):
        console.print(f"note: {line}", soft_wrap=True)
    if options.print_json:
        console.print(f"report: {out.absolute()}", soft_wrap=True)
        print(scores_json)
    else:
        print(f"{out.absolute()}\n{json_path.absolute()}")
    sys.stdout.flush()
    return 0


def _check_options(options: ScoreOptions) -> None:
    extractor_name, separator, source = options.features.partition(":")
    if extractor_name not in FEATURE_EXTRACTORS or (separator and not source):
        raise InputError(
            f"--features {options.features!r}: unknown; choose one of {', '.join(FEATURE_EXTRACTORS)}, "
            "and for a file or folder of your own inception:FILE, dinov2:FOLDER or clip:FOLDER"
        )
    if extractor_name == "scattering" and source:
        raise InputError(f"--features {options.features}: scattering is computed and needs no file; leave it out")
    if extractor_name != "scattering" and options.corpus is None:
        raise InputError(
            f"--features {extractor_name}: has nothing to compare drawn pictures with; give --corpus as well"
        )
    if not 8 <= options.images_per_seed <= 1_000_000:
        raise InputError(
            f"--pictures {options.images_per_seed}: out of range; give 8 to 1000000, some hundreds are usual"
        )
    if not 1 <= options.seed_count <= 100:
        raise InputError(f"--seeds {options.seed_count}: out of range; give 1 to 100, 4 is usual")
    if not 0 <= options.prompts_per_category <= 10_000:
        raise InputError(
            f"--prompts {options.prompts_per_category}: out of range; give 25 or more of each category, 0 for no words"
        )
    if options.out is not None and options.out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {options.out}: give a file that ends in .html; the numbers go beside it as .json")


def _check_writable(out: Path) -> None:
    folder = out.absolute().parent
    if out.is_dir() or not folder.is_dir():
        reason = "is a folder" if out.is_dir() else f"there is no folder {folder}"
        raise InputError(f"--out {out}: {reason}; give a file in a folder that is there")


def _model_name(model: Model, path: Path | None) -> str:
    if path is None:
        return model.card.name
    return path.absolute().name if path.is_dir() else path.stem


def _open_corpus(
    options: ScoreOptions, model: Model, plan: plans.Plan | None, console: Console, progress: ProgressBar
) -> Corpus:
    """The corpus as the model saw it: at its size, its captions read as its RUN read them where no option says else."""
    assert options.corpus is not None
    plan_options: dict[str, Any] = {} if plan is None else plan.options
    captions, caption, template = (
        plan_options.get(name) if value is None else value
        for name, value in (
            ("captions", options.captions),
            ("caption", options.caption),
            ("template", options.template),
        )
    )
    listing = read_folder(options.corpus, captions or "auto", caption, template)
    corpus = open_corpus(
        listing, resolve(model, options.request).size, cache_dir=image_cache_folder(), progress=progress.show_decoding
    )
    for line in corpus.describe():
        console.print(line, soft_wrap=True)
    return corpus


def _read_test(options: ScoreOptions) -> tuple[CompositionTest | None, tuple[str, ...]]:
    """What the corpus lets the model be asked, where it tells what is in its scenes; else why not, if words are wanted.
    Before anything is measured, so that nothing measured is lost."""
    folder = options.corpus
    if (
        folder is None
        or not options.prompts_per_category
        or not all((folder / name).is_file() for name in SCENE_CORPUS_FILES)
    ):
        return None, ()
    try:
        return read_composition_test(folder, options.prompts_per_category), ()
    except (InputError, OSError) as e:
        return None, (f"no words and no hybrids: {_error_text(e)}",)


def _score_composition(
    scores: Scores,
    report_images: ReportImages,
    test: CompositionTest,
    model: Model,
    options: ScoreOptions,
    progress: ProgressBar,
) -> Scores:
    """The scores with those of words and of hybrids; of what fails, the reason."""
    pair_count = min(len(test.hybrid_pairs), max(1, options.prompts_per_category // PROMPTS_PER_HYBRID_PAIR))
    try:
        progress.restart_stage("the detector of words learns, where it is not there yet", 1)
        detector = load_or_train_detector(test.library, test.image_size, progress.set_completed)
        progress.restart_stage("words", len(test.prompts))
        composition_score = score_composition(
            model,
            test,
            seed_count=options.seed_count,
            request=options.request,
            detector=detector,
            progress=progress.set_completed,
        )
        scores = replace(scores, composition=configuration.to_json(composition_score))
        if pair_count:
            progress.restart_stage("hybrids", pair_count * options.seed_count * len(SCORED_METHODS))
            hybrid_scores, report_images.hybrids = score_hybrids(
                model, test.hybrid_pairs, pair_count, options.seed_count, options.request, detector, progress.advance
            )
            scores = replace(scores, hybrids=hybrid_scores)
    except (InputError, OSError) as e:
        missing_part = "words and no hybrids" if scores.composition is None else "hybrids"
        return replace(scores, missing=(*scores.missing, f"no {missing_part}: {_error_text(e)}"))
    return scores


def _error_text(error: Exception) -> str:
    """For a report that others may read."""
    return str(error).replace(str(Path.home()), "~")


def _command_line(options: ScoreOptions, model: Model) -> str:
    """What makes the report again, without paths."""
    arguments = ["unspeckle score MODEL"] + ["--corpus FOLDER"] * (options.corpus is not None)
    extractor_name, separator, _ = options.features.partition(":")
    arguments += [f"--features {extractor_name}{separator and ':…'}"] * (options.features != "scattering")
    arguments += [
        f"--pictures {options.images_per_seed} --seeds {options.seed_count} --prompts {options.prompts_per_category}"
    ]
    for name in ("steps", "sampler", "grid", "scale"):
        if (value := getattr(options.request, name)) is not None:
            arguments.append(f"--{name} {value}")
    if options.precision != AUTO or model.precision != "float32":
        arguments.append(f"--precision {model.precision}")
    return " ".join(arguments)
