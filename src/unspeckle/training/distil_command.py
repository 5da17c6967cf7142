"""`unspeckle distil`: from a model to one that also carries a student, which draws the same in 1, 2 or 4 steps."""

import hashlib
import math
from collections.abc import Iterator
from random import Random

from unspeckle.corpus.caption_augmentation import WORDINGS, words_of
from unspeckle.corpus.captions import read_folder
from unspeckle.errors import InputError
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.check_options import check_common_options
from unspeckle.training.command import TrainingCommand
from unspeckle.training.distillation_planner import make_distillation_plan
from unspeckle.training.distillation_task import VALIDATION_IMAGES, DistillationTask, student_card
from unspeckle.training.inputs import load_trainable_model, make_caption_augmenter
from unspeckle.training.options import DistilOptions
from unspeckle.training.plan import DistillationPlan
from unspeckle.training.plan_file import format_command_line
from unspeckle.training.run_folder import CAPTIONS_FILE
from unspeckle.training.task import Task
from unspeckle.training.train_command import MAX_CAPTIONS, select_evenly

# Different captions below which none is held out
VALIDATION_MIN_CAPTIONS = 320
# One caption in so many is empty, so that the student can draw without a prompt too
EMPTY_CAPTION_EVERY = 50


def run_distillation(options: DistilOptions) -> int:
    """Distil as the options say, or continue a run; returns the exit code. InputError if options or model do not allow
    it."""
    return DistilCommand(options).run()


class DistilCommand(TrainingCommand[DistilOptions, DistillationPlan]):
    """`distil`."""

    plan_class = DistillationPlan

    def check_options(self) -> None:
        scale = self.options.guidance_scale
        if scale is not None and not math.isfinite(scale):
            raise InputError(f" {scale}: must be a number; 1 is no guidance, 3 to 7 is usual", "guidance_scale")
        check_common_options(self.options)

    def open_inputs(self, plan: DistillationPlan | None) -> None:
        self.teacher = load_trainable_model(self.options.model)
        captions = load_captions(self.options)
        self.fingerprint = hashlib.blake2b("\n".join(captions).encode(), digest_size=16).hexdigest()
        self.captions, self.validation_captions = split_captions(captions)

    def load_inputs(self, plan: DistillationPlan | None) -> None:
        """Nothing that takes long."""

    def make_plan(self) -> DistillationPlan:
        return make_distillation_plan(
            self.options,
            self.teacher,
            self.captions,
            fingerprint=self.fingerprint,
            start_time=self.start_time,
            print_line=self.print_line,
        )

    def check_inputs_unchanged(self, plan: DistillationPlan) -> None:
        changed = None
        if plan.distillation.teacher_hash != self.teacher.hash:
            changed = f"the model {self.options.model} has"
        elif plan.corpus_fingerprint != self.fingerprint:
            changed = "its captions have"
        if changed:
            raise InputError(f"{self.options.out}: {changed} changed since this run began; give another --out")

    def tasks(self, plan: DistillationPlan) -> Iterator[Task]:
        yield DistillationTask(
            plan,
            self.options.out,
            self.teacher,
            captions=self.reword(self.captions, plan) if plan.work.caption_augmentation else self.captions,
            validation_captions=self.validation_captions,
            card=student_card(
                self.teacher, plan, format_command_line("unspeckle distil MODEL --out RUN", plan.options)
            ),
        )

    def reword(self, captions: tuple[str, ...], plan: DistillationPlan) -> tuple[str, ...]:
        """Each caption in one of its wordings, which is a pure function of the caption, its place and the seed."""
        tokenizer, seed = self.teacher.tokenizer, plan.work.seed
        assert isinstance(tokenizer, Tokenizer)
        augmenter = make_caption_augmenter(words_of(self.captions), tokenizer, seed)
        numbers = Random(f"wordings {seed}").choices(range(WORDINGS), k=len(captions))
        return tuple(
            augmenter.reword(caption, n) if caption else "" for caption, n in zip(captions, numbers, strict=True)
        )

    def advice_when_finished(self) -> str:
        return f"draw with --model {self.options.out}"


def load_captions(options: DistilOptions) -> list[str]:
    """What the teacher is to draw: the captions of --corpus, or those that its RUN kept; at most MAX_CAPTIONS."""
    if options.corpus is not None:
        captions = [" ".join(caption.split()) for caption in read_folder(options.corpus).all_captions()]
    else:
        folder = options.model if options.model.is_dir() else options.model.parent
        try:
            captions = (folder / CAPTIONS_FILE).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            message = (
                f"{options.model}: there is no {CAPTIONS_FILE} beside it; name the folder of its images with --corpus"
            )
            raise InputError(message) from error
    if not captions:
        raise InputError(f"{options.corpus or options.model}: has no captions; name a captioned folder with --corpus")
    return select_evenly(captions, MAX_CAPTIONS)


def split_captions(captions: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions to train on, some of them empty, and captions to validate with, which are not among the former unless
    there are too few different ones."""
    distinct = list(dict.fromkeys(captions))
    chosen = (distinct[i * len(distinct) // VALIDATION_IMAGES] for i in range(VALIDATION_IMAGES))
    validation_captions = tuple(dict.fromkeys(chosen))
    if len(distinct) >= VALIDATION_MIN_CAPTIONS:
        captions = [caption for caption in captions if caption not in validation_captions]
    return (*captions, *[""] * -(-len(captions) // EMPTY_CAPTION_EVERY)), validation_captions
