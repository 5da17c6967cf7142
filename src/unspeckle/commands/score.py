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
from unspeckle.commands.draw import resolve_device
from unspeckle.corpus import Corpus, open_corpus, read
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import Request, resolve
from unspeckle.model import Model, load
from unspeckle.model_io.precision import AUTO
from unspeckle.output.png import file_stem
from unspeckle.scoring.composition.hybrids import WAYS, hybrids_score
from unspeckle.scoring.composition.questions import Exam, exam_of
from unspeckle.scoring.composition.score import words_score
from unspeckle.scoring.composition.train_detector import detector_for
from unspeckle.scoring.measure import measure, units
from unspeckle.scoring.report import page
from unspeckle.scoring.scores import Scores
from unspeckle.scoring.task import Album, Wishes
from unspeckle.training import plan as plans
from unspeckle.training.inputs import cache

FEATURES = ("scattering", "inception", "dinov2", "clip")
EVERY = 10.0  # seconds between two lines where there is no terminal
PAIRS = 3  # prompts of a category for each pair whose hybrids are drawn, in six ways: a fifth of the work of words
SCENES = ("held-out.jsonl", "truth.jsonl")  # what tells that a corpus is of emoji scenes


@dataclass(frozen=True)
class ScoreOptions:
    """The command line's, as parsed."""

    model: Path | None
    corpus: Path | None
    out: Path | None
    features: str
    pictures: int
    seeds: int
    prompts: int  # of each category of words; 0 = no words
    ask: Request
    captions: str | None
    caption: str | None
    template: str | None
    json: bool
    quiet: bool
    device: str | None
    prediction: str | None = None
    trust_pickle: bool = False
    precision: str = "auto"


class Watching:
    """Progress on standard error: a bar with the time left, or now and then a line where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console, self.total, self.done, self.name = console, 1, 0, ""
        self.begun = self.told = time.monotonic()
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task("")

    def __enter__(self) -> "Watching":
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.progress.stop()

    def expect(self, total: int) -> None:
        self.total, self.done = max(1, total), 0
        self.begun = time.monotonic()

    def again(self, name: str, total: int) -> None:
        """A stage whose units count by themselves."""
        self.expect(total)
        self.stage(name)

    def stage(self, name: str) -> None:
        self.name = name
        self._show(0, always=True)

    def tell(self, units: int) -> None:
        self._show(units)

    def reach(self, done: int, total: int) -> None:
        """So many of the stage's units are done, all in all."""
        self.total = total
        self._show(done - self.done)

    def decode(self, done: int, total: int) -> None:
        self.progress.update(self.task, description="decoding pictures", completed=done, total=total)

    def _show(self, units: int, always: bool = False) -> None:
        self.done += units
        self.progress.update(self.task, description=self.name, completed=self.done, total=self.total)
        now = time.monotonic()
        if self.console.is_terminal or not (always or now - self.told > EVERY):
            return
        self.told, left = now, ""
        if 0 < self.done < self.total:
            left = f", about {(now - self.begun) * (self.total - self.done) / self.done:.0f} s left"
        self.console.print(f"{self.name}: {100 * self.done // self.total} %{left}", soft_wrap=True)


def run(options: ScoreOptions) -> int:
    """Measure and write; returns the exit code. InputError where the options do not allow it."""
    _check(options)
    model = load(
        options.model, resolve_device(options.device), prediction=options.prediction, trust_pickle=options.trust_pickle,
        precision=options.precision,
    )  # fmt: skip
    resolve(model, options.ask)  # says what is wrong with it before pictures are read
    out = options.out or Path(f"{file_stem(_name(model, options.model))}-score.html")
    _writable(out)
    plan = None if options.model is None or not options.model.is_dir() else plans.either(options.model)
    console = Console(stderr=True, quiet=options.quiet, highlight=False, markup=False)
    wishes = Wishes(options.pictures, options.seeds, options.features, options.ask)
    if plan is not None:
        wishes = replace(wishes, objective=plan.objective())
    with Watching(console) as watch:
        corpus = None if options.corpus is None else _corpus(options, model, plan, console, watch)
        exam, missing = _exam(options)
        for line in missing:
            console.print(f"note: {line}", soft_wrap=True)  # before the long work, not only after it
        watch.expect(units(model, corpus, wishes))
        scores, album = measure(model, corpus, "" if options.corpus is None else options.corpus.name, wishes, watch)
        scores = replace(scores, missing=(*scores.missing, *missing))
        if exam is not None:
            scores = _examined(scores, album, exam, model, options, watch)
    numbers = json.dumps(configuration.to_json(scores), ensure_ascii=False, allow_nan=False)
    data = out.with_suffix(".json")
    atomic.write_bytes(out, page(scores, album, _command(options, model)).encode())
    atomic.write_bytes(data, (numbers + "\n").encode())
    for line in (*scores.missing, *scores.warnings):
        console.print(f"note: {line}", soft_wrap=True)
    if options.json:
        console.print(f"report: {out.absolute()}", soft_wrap=True)
        print(numbers)
    else:
        print(f"{out.absolute()}\n{data.absolute()}")
    sys.stdout.flush()
    return 0


def _check(options: ScoreOptions) -> None:
    kind, given, where = options.features.partition(":")
    if kind not in FEATURES or (given and not where):
        raise InputError(
            f"--features {options.features!r}: unknown; choose one of {', '.join(FEATURES)}, "
            "and for a file or folder of your own inception:FILE, dinov2:FOLDER or clip:FOLDER"
        )
    if kind == "scattering" and where:
        raise InputError(f"--features {options.features}: scattering is computed and needs no file; leave it out")
    if kind != "scattering" and options.corpus is None:
        raise InputError(f"--features {kind}: has nothing to compare drawn pictures with; give --corpus as well")
    if not 8 <= options.pictures <= 1_000_000:
        raise InputError(f"--pictures {options.pictures}: out of range; give 8 to 1000000, some hundreds are usual")
    if not 1 <= options.seeds <= 100:
        raise InputError(f"--seeds {options.seeds}: out of range; give 1 to 100, 4 is usual")
    if not 0 <= options.prompts <= 10_000:
        raise InputError(f"--prompts {options.prompts}: out of range; give 25 or more of each category, 0 for no words")
    if options.out is not None and options.out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {options.out}: give a file that ends in .html; the numbers go beside it as .json")


def _writable(out: Path) -> None:
    folder = out.absolute().parent
    if out.is_dir() or not folder.is_dir():
        why = "is a folder" if out.is_dir() else f"there is no folder {folder}"
        raise InputError(f"--out {out}: {why}; give a file in a folder that is there")


def _name(model: Model, path: Path | None) -> str:
    if path is None:
        return model.card.name
    return path.absolute().name if path.is_dir() else path.stem


def _corpus(options: ScoreOptions, model: Model, plan: plans.Plan | None, console: Console, watch: Watching) -> Corpus:
    """The corpus as the model saw it: at its size, its captions read as its RUN read them where no option says else."""
    assert options.corpus is not None
    asked: dict[str, Any] = {} if plan is None else plan.asked
    captions, caption, template = (
        asked.get(name) if given is None else given
        for name, given in (
            ("captions", options.captions),
            ("caption", options.caption),
            ("template", options.template),
        )
    )
    listing = read(options.corpus, captions or "auto", caption, template)
    corpus = open_corpus(listing, resolve(model, options.ask).size, cache=cache(), progress=watch.decode)
    for line in corpus.describe():
        console.print(line, soft_wrap=True)
    return corpus


def _exam(options: ScoreOptions) -> tuple[Exam | None, tuple[str, ...]]:
    """What the corpus lets the model be asked, where it tells what is in its scenes; else why not, if words are wanted.
    Before anything is measured, so that nothing measured is lost."""
    folder = options.corpus
    if folder is None or not options.prompts or not all((folder / name).is_file() for name in SCENES):
        return None, ()
    try:
        return exam_of(folder, options.prompts), ()
    except (InputError, OSError) as e:
        return None, (f"no words and no hybrids: {_why(e)}",)


def _examined(scores: Scores, album: Album, exam: Exam, model: Model, options: ScoreOptions, watch: Watching) -> Scores:
    """The scores with those of words and of hybrids; of what fails, the reason."""
    pairs = min(len(exam.pairs), max(1, options.prompts // PAIRS))
    try:
        watch.again("the detector of words learns, where it is not there yet", 1)
        detector = detector_for(exam.library, exam.size, watch.reach)
        watch.again("words", len(exam.asked))
        found = words_score(model, exam, seeds=options.seeds, ask=options.ask, detector=detector, progress=watch.reach)
        scores = replace(scores, words=configuration.to_json(found))
        if pairs:
            watch.again("hybrids", pairs * options.seeds * len(WAYS))
            crossed, album.hybrids = hybrids_score(
                model, exam.pairs, pairs, options.seeds, options.ask, detector, watch.tell
            )
            scores = replace(scores, hybrids=crossed)
    except (InputError, OSError) as e:
        what = "words and no hybrids" if scores.words is None else "hybrids"
        return replace(scores, missing=(*scores.missing, f"no {what}: {_why(e)}"))
    return scores


def _why(error: Exception) -> str:
    """For a report that others may read."""
    return str(error).replace(str(Path.home()), "~")


def _command(options: ScoreOptions, model: Model) -> str:
    """What makes the report again, without paths."""
    parts = ["unspeckle score MODEL"] + ["--corpus FOLDER"] * (options.corpus is not None)
    kind, given, _ = options.features.partition(":")
    parts += [f"--features {kind}{given and ':…'}"] * (options.features != "scattering")
    parts += [f"--pictures {options.pictures} --seeds {options.seeds} --prompts {options.prompts}"]
    for name in ("steps", "sampler", "grid", "scale"):
        if (value := getattr(options.ask, name)) is not None:
            parts.append(f"--{name} {value}")
    if options.precision != AUTO or model.precision != "float32":
        parts.append(f"--precision {model.precision}")
    return " ".join(parts)
