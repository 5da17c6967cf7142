"""The options of `unspeckle score`: their checks, and the command line that repeats a report."""

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from unspeckle.cli.options import ModelOptions
from unspeckle.errors import InputError
from unspeckle.generation.request import Request
from unspeckle.quantization.precision import AUTO
from unspeckle.scoring.composition.prompts import HELD_OUT_FILE
from unspeckle.scoring.pretrained import PRETRAINED_FEATURES
from unspeckle.scoring.scoring_run import ScoreSettings

FEATURE_EXTRACTORS = ("scattering", *PRETRAINED_FEATURES)
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
    if options.prompts_per_category and not is_emoji_corpus(options.corpus):
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


def is_emoji_corpus(folder: Path | None) -> bool:
    """Whether the folder was made by `unspeckle make-corpus emoji`."""
    return folder is not None and all((folder / name).is_file() for name in EMOJI_CORPUS_FILES)


def command_line(options: ScoreOptions, precision: str) -> str:
    """The command that measures the same, without paths. precision is that of the model."""
    settings, arguments = options.settings, ["unspeckle score MODEL"]
    if options.corpus is not None:
        arguments.append("--corpus FOLDER")
    if options.features != "scattering":
        extractor_name, separator, _ = options.features.partition(":")
        arguments.append(f"--features {extractor_name}{':…' if separator else ''}")
    arguments.append(f"--images {options.images_per_seed}")
    if options.corpus is not None:
        arguments.append(f"--seeds {settings.seed_count}")
    if is_emoji_corpus(options.corpus):
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
    if options.model.precision != AUTO or precision != "float32":
        arguments.append(f"--precision {precision}")
    return " ".join(arguments)
