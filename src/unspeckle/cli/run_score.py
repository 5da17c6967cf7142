"""What `unspeckle score` does: measure a model, and write a report as HTML and its numbers as JSON."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from unspeckle import atomic, configuration
from unspeckle.cli.score_options import ScoreOptions, check_options, check_report_path, command_line, is_emoji_corpus
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import Corpus, open_corpus
from unspeckle.errors import InputError
from unspeckle.generation.resolve import resolve
from unspeckle.model import Model
from unspeckle.model_io.device import resolve_device
from unspeckle.model_io.loading import load
from unspeckle.output.png import file_stem
from unspeckle.scoring.composition.composition_test import CompositionTest, read_composition_test
from unspeckle.scoring.composition.hybrids import SCORED_METHODS, score_hybrids
from unspeckle.scoring.composition.score import score_composition
from unspeckle.scoring.composition.train_detector import load_or_train_detector
from unspeckle.scoring.measure import count_network_calls, measure_scores
from unspeckle.scoring.progress import ProgressBar
from unspeckle.scoring.report import render_report
from unspeckle.scoring.scores import Scores
from unspeckle.scoring.scoring_run import ReportImages
from unspeckle.training.inputs import image_cache_folder
from unspeckle.training.plan import Plan
from unspeckle.training.plan_file import load_any_plan


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
    atomic.write_bytes(out, render_report(scores, report_images, command_line(options, model.precision)).encode())
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


def _model_name(model: Model, path: Path | None) -> str:
    if path is None:
        return model.card.name
    return path.absolute().name if path.is_dir() else path.stem


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
    size = resolve(model, options.request).final_size
    progress.restart_stage("decoding images", 1)
    corpus = open_corpus(listing, size, cache_dir=image_cache_folder(), progress=progress.set_completed)
    for line in corpus.describe():
        console.print(line, soft_wrap=True)
    return corpus


def _read_test(options: ScoreOptions) -> tuple[CompositionTest | None, tuple[str, ...]]:
    """The composition test, if the corpus is of emoji scenes; or why there is none.

    It is read before anything is measured, so that nothing measured is lost."""
    if options.corpus is None or not options.prompt_count or not is_emoji_corpus(options.corpus):
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
                model,
                test.hybrid_pairs,
                detector,
                options.request,
                max_pairs=pair_count,
                seed_count=seed_count,
                advance=progress.advance,
            )
            scores = replace(scores, hybrids=hybrids)
    except (InputError, OSError) as error:
        parts = "composition and hybrids are" if scores.composition is None else "hybrids are"
        return replace(scores, missing=(*scores.missing, f"{parts} not measured: {_error_text(error)}"))
    return scores


def _error_text(error: Exception) -> str:
    """The error's message for a report that others may read: without the user's name in paths."""
    return str(error).replace(str(Path.home()), "~")
