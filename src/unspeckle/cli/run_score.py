"""What `unspeckle score` does: measure a model, and write a report as HTML and its numbers as JSON."""

import json
import os
import stat
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from unspeckle import atomic, configuration
from unspeckle.cli.options import ModelOptions
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
from unspeckle.scoring.composition.prompts import HELD_OUT_FILE, CompositionTest, read_composition_test
from unspeckle.scoring.composition.score import score_composition
from unspeckle.scoring.composition.train_detector import load_or_train_detector
from unspeckle.scoring.measure import count_network_calls, measure_scores
from unspeckle.scoring.progress import ProgressBar
from unspeckle.scoring.report import render_report
from unspeckle.scoring.scores import Scores
from unspeckle.scoring.scoring_run import ReportImages, ScoreSettings
from unspeckle.training.inputs import image_cache_folder
from unspeckle.training.plan import Plan
from unspeckle.training.plan_file import load_any_plan

FEATURE_EXTRACTORS = ("scattering", "inception", "dinov2", "clip")
DEFAULT_SEEDS = 4
DEFAULT_PROMPTS = 25
PROMPTS_PER_HYBRID_PAIR = 3  # hybrids of a pair are drawn with six methods: a fifth of the work of the prompts
EMOJI_CORPUS_FILES = (HELD_OUT_FILE, "truth.jsonl")  # a corpus of emoji scenes has these


@dataclass(frozen=True)
class ScoreOptions:
    """The options of `unspeckle score`."""

    model: ModelOptions
    # The sampling setup of all images; its prompt is not used.
    request: Request
    # The folder of captioned images that the model is compared with.
    corpus: Path | None
    # The report; None is a file named after the model, in the current folder.
    out: Path | None
    # A name of FEATURE_EXTRACTORS, perhaps followed by a colon and a path.
    features: str
    # Images drawn for each seed.
    images_per_seed: int
    # How often everything is drawn; None is DEFAULT_SEEDS.
    seed_count: int | None
    # Composition prompts of each category; None is DEFAULT_PROMPTS, 0 skips the test.
    prompts_per_category: int | None
    # How the corpus's captions are read; None is as the model's run read them.
    captions: str | None
    caption: str | None
    template: str | None
    # Whether the numbers are printed as JSON.
    print_json: bool
    # Whether nothing but errors and paths is printed.
    quiet: bool

    @property
    def hybrid_pairs(self) -> int:
        """How many pairs of nouns hybrids are drawn of."""
        return max(1, self.prompt_count // PROMPTS_PER_HYBRID_PAIR)

    @property
    def prompt_count(self) -> int:
        return DEFAULT_PROMPTS if self.prompts_per_category is None else self.prompts_per_category

    @property
    def settings(self) -> ScoreSettings:
        seed_count = DEFAULT_SEEDS if self.seed_count is None else self.seed_count
        return ScoreSettings(self.images_per_seed, seed_count, self.features, self.request)


def run_score(options: ScoreOptions) -> int:
    """Measure the model and print the paths of the report, or its numbers; returns the exit code.

    InputError if the options do not allow it."""
    check_options(options)
    if options.out is not None:
        check_report_path(options.out)
    model = load(
        options.model.path,
        resolve_device(options.model.device),
        prediction=options.model.prediction,
        trust_pickle=options.model.trust_pickle,
        precision=options.model.precision,
    )
    resolve(model, options.request)  # raises InputError before images are read
    out = options.out
    if out is None:
        out = Path(f"{file_stem(_model_name(model, options.model.path))}-score.html")
        check_report_path(out)
    console = Console(stderr=True, quiet=options.quiet, highlight=False, markup=False)
    scores, report_images = _measure(options, model, console)
    json_path = out.with_suffix(".json")
    scores_json = json.dumps(configuration.to_json(scores), ensure_ascii=False, allow_nan=False)
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


def check_options(options: ScoreOptions) -> None:
    """InputError for a value out of range, and for an option that would have no effect."""
    _check_features(options)
    settings = options.settings
    if not 8 <= options.images_per_seed <= 1_000_000:
        raise InputError(f" {options.images_per_seed}: must be 8 to 1000000; some hundreds are usual", "images")
    if not 1 <= settings.seed_count <= 100:
        raise InputError(f" {settings.seed_count}: must be 1 to 100; {DEFAULT_SEEDS} is usual", "seeds")
    if not 0 <= options.prompt_count <= 10_000:
        raise InputError(f" {options.prompt_count}: must be 0 to 10000; 0 skips the composition test", "prompts")
    if options.prompts_per_category and not _is_emoji_corpus(options.corpus):
        reason = "has an effect only if --corpus is a folder made by `unspeckle make-corpus emoji`; leave it out"
        raise InputError(f" {options.prompts_per_category}: {reason}", "prompts")


def _check_features(options: ScoreOptions) -> None:
    name, separator, source = options.features.partition(":")
    if name not in FEATURE_EXTRACTORS or (separator and not source):
        reason = f"choose one of {', '.join(FEATURE_EXTRACTORS)}; inception:FILE, dinov2:FOLDER and clip:FOLDER"
        raise InputError(f" {options.features!r}: is unknown; {reason} take weights of your own", "features")
    if name == "scattering" and source:
        raise InputError(f" {options.features}: scattering needs no file; leave {separator}{source} out", "features")
    if name != "scattering" and options.corpus is None:
        raise InputError(f" {name}: has an effect only with --corpus; give the folder as well", "features")


def check_report_path(out: Path) -> None:
    """InputError if the report, or the JSON file next to it, could not be written."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f" {out}: must end in .html; the numbers are saved next to it as .json", "out")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise InputError(f" {out}: there is no folder {folder}; create it, or give a file in another folder", "out")
    for path in (out, out.with_suffix(".json")):
        if path.is_dir():
            raise InputError(f" {out}: {path} is a folder; give the name of a file", "out")
        if path.exists() and not _may_replace(path, folder):
            raise InputError(f" {out}: {path} exists and may not be replaced; give another name", "out")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"nothing can be written in {folder} ({error.strerror}); give a file in another folder"
        raise InputError(f" {out}: {reason}", "out") from error


def _may_replace(path: Path, folder: Path) -> bool:
    """Whether the user may replace an existing file: it is writable, and not protected by a sticky folder like /tmp."""
    if not os.access(path, os.W_OK):
        return False
    if not hasattr(os, "geteuid") or not folder.stat().st_mode & stat.S_ISVTX:
        return True
    return os.geteuid() in (0, path.lstat().st_uid, folder.stat().st_uid)


def _model_name(model: Model, path: Path | None) -> str:
    if path is None:
        return model.card.name
    return path.absolute().name if path.is_dir() else path.stem


def _is_emoji_corpus(folder: Path | None) -> bool:
    return folder is not None and all((folder / name).is_file() for name in EMOJI_CORPUS_FILES)


def _measure(options: ScoreOptions, model: Model, console: Console) -> tuple[Scores, ReportImages]:
    """Everything that the options ask for, with its progress on standard error."""
    path, settings = options.model.path, options.settings
    plan = None if path is None or not path.is_dir() else load_any_plan(path)
    if plan is not None:
        settings = replace(settings, objective=plan.objective)
    if options.corpus is None and options.seed_count is not None:
        console.print("note: --seeds has no effect without --corpus", soft_wrap=True)
    with ProgressBar(console) as progress:
        corpus = None if options.corpus is None else _open_corpus(options, model, plan, console, progress)
        test, missing = _read_test(options)
        for line in missing:  # before the long work, not only after it
            console.print(f"note: {line}", soft_wrap=True)
        progress.restart(count_network_calls(model, corpus, settings))
        corpus_name = "" if options.corpus is None else options.corpus.name
        scores, report_images = measure_scores(model, corpus, corpus_name, settings, progress)
        scores = replace(scores, missing=(*scores.missing, *missing))
        if test is not None:
            scores = _score_composition(scores, report_images, test, model, options, progress)
    return scores, report_images


def _open_corpus(
    options: ScoreOptions, model: Model, plan: Plan | None, console: Console, progress: ProgressBar
) -> Corpus:
    """The corpus at the model's size; its captions as the options say, else as the model's run read them."""
    assert options.corpus is not None
    plan_options = {} if plan is None else plan.options
    captions, caption, template = (
        plan_options.get(name) if value is None else value
        for name, value in (
            ("captions", options.captions),
            ("caption", options.caption),
            ("template", options.template),
        )
    )
    listing = read_folder(options.corpus, captions or "auto", caption, template)
    size = resolve(model, options.request).size
    progress.restart_stage("decoding images", 1)
    corpus = open_corpus(listing, size, cache_dir=image_cache_folder(), progress=progress.set_completed)
    for line in corpus.describe():
        console.print(line, soft_wrap=True)
    return corpus


def _read_test(options: ScoreOptions) -> tuple[CompositionTest | None, tuple[str, ...]]:
    """The composition test, if the corpus is of emoji scenes; or why there is none.

    It is read before anything is measured, so that nothing measured is lost."""
    if options.corpus is None or not options.prompt_count or not _is_emoji_corpus(options.corpus):
        return None, ()
    try:
        return read_composition_test(options.corpus, options.prompt_count), ()
    except (InputError, OSError) as error:
        return None, (f"composition and hybrids are not measured: {_error_text(error)}",)


def _score_composition(
    scores: Scores,
    report_images: ReportImages,
    test: CompositionTest,
    model: Model,
    options: ScoreOptions,
    progress: ProgressBar,
) -> Scores:
    """The scores with those of composition and hybrids, or with the reason why they are missing."""
    seed_count, pair_count = options.settings.seed_count, min(len(test.hybrid_pairs), options.hybrid_pairs)
    try:
        progress.restart_stage("the detector of objects (trained if it is not in the cache)", 1)
        detector = load_or_train_detector(test.library, test.image_size, progress.set_completed)
        progress.restart_stage("composition", len(test.prompts))
        composition = score_composition(
            model, test, detector, request=options.request, seed_count=seed_count, progress=progress.set_completed
        )
        scores = replace(scores, composition=composition)
        if pair_count:
            progress.restart_stage("hybrids", pair_count * seed_count * len(SCORED_METHODS))
            hybrids, report_images.hybrids = score_hybrids(
                model, test.hybrid_pairs, detector, options.request,
                max_pairs=pair_count, seed_count=seed_count, advance=progress.advance,
            )  # fmt: skip
            scores = replace(scores, hybrids=hybrids)
    except (InputError, OSError) as error:
        parts = "composition and hybrids are" if scores.composition is None else "hybrids are"
        return replace(scores, missing=(*scores.missing, f"{parts} not measured: {_error_text(error)}"))
    return scores


def _error_text(error: Exception) -> str:
    """The error's message for a report that others may read: without the user's name in paths."""
    return str(error).replace(str(Path.home()), "~")


def _command_line(options: ScoreOptions, model: Model) -> str:
    """The command that measures the same, without paths."""
    settings, arguments = options.settings, ["unspeckle score MODEL"]
    if options.corpus is not None:
        arguments.append("--corpus FOLDER")
    if options.features != "scattering":
        extractor_name, separator, _ = options.features.partition(":")
        arguments.append(f"--features {extractor_name}{':…' if separator else ''}")
    arguments.append(f"--images {options.images_per_seed}")
    if options.corpus is not None:
        arguments.append(f"--seeds {settings.seed_count}")
    if _is_emoji_corpus(options.corpus):
        arguments.append(f"--prompts {options.prompt_count}")
    request = options.request
    for option, value in (
        ("--steps", request.steps),
        ("--sampler", request.sampler),
        ("--timestep-spacing", request.timestep_spacing),
        ("--guidance-scale", request.guidance_scale),
    ):
        if value is not None:
            arguments.append(f"{option} {value}")
    if options.model.precision != AUTO or model.precision != "float32":
        arguments.append(f"--precision {model.precision}")
    return " ".join(arguments)
