"""`unspeckle train --kind unclip`: from a folder of captioned images to a CLIP, a prior and a decoder in one model."""

from collections.abc import Iterator
from dataclasses import replace

from unspeckle.model_io.image_text_file import load_image_text_model
from unspeckle.model_io.loading import load
from unspeckle.text.image_text_encoder import ImageTextCard
from unspeckle.training.check_options import check_train_options
from unspeckle.training.clip_task import CLIPTask
from unspeckle.training.decoder_task import DecoderTask
from unspeckle.training.options import UnCLIPOptions
from unspeckle.training.plan import Plan, UnCLIPPlan
from unspeckle.training.prior_task import PriorTask, fit_embedding_space, prior_card
from unspeckle.training.simple_planner import refuse_options
from unspeckle.training.task import Task
from unspeckle.training.train_command import TrainCommand, make_card
from unspeckle.training.unclip_planner import make_unclip_plan

# In RUN: the folders of the parts
CLIP_FOLDER, PRIOR_FOLDER, DECODER_FOLDER = "clip", "prior", "decoder"
# Options of `train` that an unCLIP model has no use for
OTHER_OPTIONS = ("space", "from_model", "compile")


def run_unclip_training(options: UnCLIPOptions) -> int:
    """Train as the options say, or continue a run; returns the exit code. InputError if options or folder do not allow
    it."""
    return UnCLIPCommand(options).run()


class UnCLIPCommand(TrainCommand):
    """`train --kind unclip`."""

    plan_class: type[Plan] = UnCLIPPlan
    options: UnCLIPOptions

    def check_options(self) -> None:
        refuse_options(self.options, OTHER_OPTIONS, "unclip")
        check_train_options(self.options)

    def make_plan(self) -> UnCLIPPlan:
        return make_unclip_plan(self.options, self.inputs, start_time=self.start_time, print_line=self.print_line)

    def tasks(self, plan: Plan) -> Iterator[Task]:
        """The CLIP, then the prior, then the decoder, each of which needs those before."""
        assert isinstance(plan, UnCLIPPlan)
        run_folder, inputs, parts = self.options.out, self.inputs, plan.parts
        card = make_card(self.options, plan, inputs)
        self.print_line(f"first a CLIP, in {parts.clip.work.steps:,} steps")
        image_text_card = ImageTextCard(f"{card.name}'s CLIP", card.license, card.recipe, card.corpus)
        yield CLIPTask(parts.clip, run_folder / CLIP_FOLDER, inputs, image_text_card)
        image_text = load_image_text_model(run_folder / CLIP_FOLDER)
        image_text.encoder.to(plan.compute.device)
        space = fit_embedding_space(inputs.corpus.training, image_text)
        self.print_line(f"then the prior, in {parts.prior.work.steps:,} steps")
        prior_inputs = inputs._replace(autoencoder=space)
        yield PriorTask(parts.prior, run_folder / PRIOR_FOLDER, prior_inputs, prior_card(card), image_text)
        self.print_line(f"then the decoder, in {plan.work.steps:,} steps")
        yield DecoderTask(
            replace(plan),
            run_folder / DECODER_FOLDER,
            inputs,
            card,
            image_text=image_text,
            prior=load(run_folder / PRIOR_FOLDER, plan.compute.device),
            model_path=self.output_path,
        )
