"""`unspeckle train`: from a folder of captioned images to RUN/model.safetensors."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

from unspeckle import atomic
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import Corpus
from unspeckle.errors import InputError
from unspeckle.model import ModelCard
from unspeckle.model_io.device import resolve_device
from unspeckle.networks.latent_autoencoder import LatentAutoencoder
from unspeckle.text.tokenizer import split_words
from unspeckle.training import memory
from unspeckle.training.autoencoder_task import AutoencoderTask, check_autoencoder_kept, save_or_restore_autoencoder
from unspeckle.training.check_options import check_train_options
from unspeckle.training.command import TrainingCommand
from unspeckle.training.inputs import TOKENIZER_FILE, TrainingInputs, load_inputs
from unspeckle.training.options import TrainOptions
from unspeckle.training.plan import Plan
from unspeckle.training.plan_file import format_command_line, options_to_json
from unspeckle.training.run_folder import CAPTIONS_FILE
from unspeckle.training.task import Task
from unspeckle.training.text_to_image_task import TextToImageTask
from unspeckle.training.train_planner import TrainPlanner

# What a model draws with by default: one choice for all, measured on photos in half an hour (docs/recipe.md)
DEFAULT_SAMPLER, DEFAULT_TIMESTEP_SPACING = "euler_ancestral", "shifted"
# Captions that a RUN keeps
MAX_CAPTIONS = 20_000
# Words that a model's card suggests, and the captions that are searched for them
VOCABULARY_SIZE, VOCABULARY_CAPTIONS, MIN_WORD_LENGTH = 200, 20_000, 3


def run_training(options: TrainOptions) -> int:
    """Train as the options say, or continue a run; returns the exit code. InputError if options or folder do not allow
    it."""
    return TrainCommand(options).run()


class TrainCommand(TrainingCommand[TrainOptions, Plan]):
    """`train` without --lora."""

    plan_class = Plan

    def check_options(self) -> None:
        check_train_options(self.options)

    def open_inputs(self, plan: Plan | None) -> None:
        options = self.options
        self.listing = read_folder(options.folder, options.captions, options.caption, options.template)

    def load_inputs(self, plan: Plan | None) -> None:
        inputs = load_inputs(self.listing, self.options, plan, self.console)
        device = resolve_device(self.options.device) if plan is None else plan.compute.device
        self.inputs = inputs._replace(corpus=memory.corpus_to_device(inputs.corpus, device))

    def make_plan(self) -> Plan:
        return TrainPlanner(self.options, self.inputs, self.start_time, self.print_line).make_plan()

    def check_inputs_unchanged(self, plan: Plan) -> None:
        if plan.corpus_fingerprint != self.inputs.corpus.fingerprint:
            raise InputError(
                f"{self.options.folder}: its images or captions have changed since {self.options.out} began; give "
                "another --out (with --from, it can continue the training of another run's model)"
            )

    def write_run_files(self, plan: Plan) -> None:
        captions = "".join(f"{caption}\n" for caption in select_captions(self.inputs.corpus))
        atomic.write_bytes(self.options.out / TOKENIZER_FILE, self.inputs.tokenizer.to_json().encode())
        atomic.write_bytes(self.options.out / CAPTIONS_FILE, captions.encode())

    def tasks(self, plan: Plan) -> Iterator[Task]:
        """The autoencoder, if it is trained, then the text encoder and the network."""
        run_folder, inputs = self.options.out, self.inputs
        if len(inputs.corpus.validation) == 0:
            self.print_line("there are too few images to hold some out, so the validation loss is of training images")
        if isinstance(inputs.autoencoder, LatentAutoencoder) and plan.work.autoencoder_steps:
            check_autoencoder_kept(plan, run_folder)
            self.print_line(f"the autoencoder is trained first, for {plan.work.autoencoder_steps:,} steps")
            yield AutoencoderTask(plan, run_folder, inputs.corpus, inputs.autoencoder)
        elif isinstance(inputs.autoencoder, LatentAutoencoder):
            save_or_restore_autoencoder(run_folder, inputs.autoencoder, is_trained=inputs.base_model is not None)
        yield TextToImageTask(plan, run_folder, inputs, make_card(self.options, plan, inputs))

    def advice_when_finished(self) -> str:
        return f"draw with --model {self.options.out}"


def make_card(options: TrainOptions, plan: Plan, inputs: TrainingInputs) -> ModelCard:
    """The card of the model that is trained."""
    corpus = inputs.corpus
    summary = {
        **corpus.summary,
        "seed": plan.work.seed,
        "images_seen": plan.work.total_images,
        "steps": plan.work.steps,
    }
    captions = islice(corpus.training_captions(), VOCABULARY_CAPTIONS)
    words = (word for caption in captions for word in split_words(caption))
    word_counts = Counter(word for word in words if len(word) >= MIN_WORD_LENGTH)
    # Without paths, which are nobody else's business
    recipe_options = {**options_to_json(options), "from_model": None if options.from_model is None else "MODEL"}
    return ModelCard(
        name=options.out.absolute().name,
        license=options.license or "",
        size=plan.model.size,
        corpus=summary,
        vocabulary=tuple(word for word, _ in word_counts.most_common(VOCABULARY_SIZE)),
        recipe=format_command_line("unspeckle train FOLDER --out RUN", recipe_options),
        sampler=DEFAULT_SAMPLER,
        timestep_spacing=DEFAULT_TIMESTEP_SPACING,
    )


def select_captions(corpus: Corpus) -> list[str]:
    """At most MAX_CAPTIONS training captions, evenly chosen."""
    captions = [" ".join(caption.split()) for caption in corpus.training_captions()]
    return select_evenly(captions, MAX_CAPTIONS)


def select_evenly(captions: list[str], max_count: int) -> list[str]:
    """At most max_count of the captions, evenly chosen."""
    count = min(len(captions), max_count)
    return [captions[i * len(captions) // count] for i in range(count)]
