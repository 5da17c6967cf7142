"""`unspeckle train --lora`: from a Stable Diffusion and a folder of captioned images to RUN/lora.safetensors."""

from collections.abc import Iterator

from unspeckle import quantities
from unspeckle.corpus.captions import read_folder
from unspeckle.errors import InputError, prefix_with_option
from unspeckle.formats.lora.layer_names import LORA_LAYOUTS
from unspeckle.formats.stable_diffusion.add_ons import require_stable_diffusion
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import LORA_FILE
from unspeckle.networks.unet import UNetConfig
from unspeckle.training.cached_latents import load_or_encode_latents
from unspeckle.training.check_options import (
    check_common_options,
    check_image_size,
    check_learning_rate,
    check_out_of_corpus,
)
from unspeckle.training.command import TrainingCommand
from unspeckle.training.inputs import decode_corpus, print_lines
from unspeckle.training.lora_planner import make_lora_plan
from unspeckle.training.lora_task import LoraTask, cast_base_model
from unspeckle.training.options import LoraOptions
from unspeckle.training.plan import LoraPlan
from unspeckle.training.plan_file import format_command_line
from unspeckle.training.task import Task

MAX_RANK = 256


def run_lora_training(options: LoraOptions) -> int:
    """Train as the options say, or continue a run; returns the exit code. InputError if options, folder or model do not
    allow it."""
    return LoraCommand(options).run()


class LoraCommand(TrainingCommand[LoraOptions, LoraPlan]):
    """`train --lora`."""

    plan_class = LoraPlan
    output_file = LORA_FILE

    def check_options(self) -> None:
        options = self.options
        check_common_options(options)
        check_out_of_corpus(options)
        if not 1 <= options.rank <= MAX_RANK:
            raise InputError(f" {options.rank}: must be between 1 and {MAX_RANK}; 8 is usual", "rank")
        if options.layout not in LORA_LAYOUTS:
            raise InputError(f" {options.layout}: unknown; choose {' or '.join(LORA_LAYOUTS)}", "layout")
        check_learning_rate(options.learning_rate, "1e-4 is usual")

    def open_inputs(self, plan: LoraPlan | None) -> None:
        options = self.options
        self.listing = read_folder(options.folder, options.captions, options.caption, options.template)
        self.base_model = load_base_model(options)
        if plan is not None:
            self.size = plan.model.size
        elif options.size is not None:
            self.size = quantities.parse_size(options.size)
        else:
            self.size = self.base_model.card.size
        config = self.base_model.network.config
        assert isinstance(config, UNetConfig)
        check_image_size(self.size, config, self.base_model.autoencoder.downsampling_factor)

    def load_inputs(self, plan: LoraPlan | None) -> None:
        if plan is None:
            print_lines(self.console, self.listing.describe())
        self.corpus = decode_corpus(self.listing, self.size, self.console)

    def make_plan(self) -> LoraPlan:
        return make_lora_plan(
            self.options, self.base_model, self.corpus, start_time=self.start_time, print_line=self.print_line
        )

    def check_inputs_unchanged(self, plan: LoraPlan) -> None:
        changed = None
        if plan.lora.base_hash != self.base_model.hash:
            changed = self.options.from_model
        elif plan.corpus_fingerprint != self.corpus.fingerprint:
            changed = self.options.folder
        if changed is not None:
            raise InputError(f"{changed}: changed since {self.options.out} began; give another --out")

    def tasks(self, plan: LoraPlan) -> Iterator[Task]:
        options, base_model = self.options, cast_base_model(self.base_model, plan.compute)
        latents = load_or_encode_latents(options.out, plan, self.corpus, base_model.autoencoder, self.console)
        metadata = file_metadata(options, plan)
        yield LoraTask(plan, options.out, base_model, corpus=self.corpus, latents=latents, metadata=metadata)

    def advice_when_finished(self) -> str:
        return f"draw with --lora {self.output_path}"


def load_base_model(options: LoraOptions) -> StableDiffusionModel:
    """The Stable Diffusion that stays as it is. InputError if no LoRA can be trained for it."""
    with prefix_with_option("--from", options.from_model):
        model = load(options.from_model, prediction=options.prediction, trust_pickle=options.trust_pickle)
    base_model = require_stable_diffusion(model, "lora")
    config = base_model.network.config
    assert isinstance(config, UNetConfig)
    if config.concat_channels or config.guidance_width:
        kind = "an inpainting model" if config.concat_channels else "a consistency model (LCM)"
        raise InputError(f"--from {options.from_model}: is {kind}; train for the plain one, its LoRA fits this one too")
    # Computed now and kept, as the weights will be in another precision.
    _ = base_model.hash
    return base_model


def file_metadata(options: LoraOptions, plan: LoraPlan) -> dict[str, str]:
    """What the file says of itself, without paths."""
    recipe_options = {**plan.options, "from_model": "MODEL"}
    return {
        "modelspec.title": options.out.absolute().name,
        "ss_network_alpha": str(plan.lora.rank),
        **({"modelspec.license": options.license} if options.license else {}),
        "unspeckle.recipe": format_command_line("unspeckle train FOLDER --lora --out RUN", recipe_options),
    }
