"""`unspeckle train --kind unclip`: from a folder of captioned images to a CLIP, a prior and a decoder in one model."""

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from unspeckle.corpus.shrunk_split import shrink_corpus
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
from unspeckle.training.upsampler_task import UpsamplerTask, upsampler_card
from unspeckle.upsampler import UpsamplerModel

# In RUN: the folders of the parts
CLIP_FOLDER, PRIOR_FOLDER, UPSAMPLER_FOLDER, DECODER_FOLDER = "clip", "prior", "upsampler", "decoder"
# Options of `train` that an unCLIP model has no use for
OTHER_OPTIONS = ("space", "from_model", "compile")


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
        """The CLIP, then the prior, perhaps an upsampler, and the decoder, each of which needs those before."""
        assert isinstance(plan, UnCLIPPlan)
        run_folder, parts, device = self.options.out, plan.parts, plan.compute.device
        card = make_card(self.options, plan, self.inputs)
        factor = 1 if parts.upsampler is None else parts.upsampler.upsampler.factor
        inputs = self.inputs._replace(corpus=shrink_corpus(self.inputs.corpus, factor))
        self.print_line(f"first a CLIP, in {parts.clip.work.steps:,} steps")
        image_text_card = ImageTextCard(f"{card.name}'s CLIP", card.license, card.recipe, card.corpus)
        yield CLIPTask(parts.clip, run_folder / CLIP_FOLDER, inputs, image_text_card)
        image_text = load_image_text_model(run_folder / CLIP_FOLDER)
        image_text.encoder.to(device)
        self.print_line(f"then the prior, in {parts.prior.work.steps:,} steps")
        prior_inputs = inputs._replace(autoencoder=fit_embedding_space(inputs.corpus.training, image_text))
        yield PriorTask(parts.prior, run_folder / PRIOR_FOLDER, prior_inputs, prior_card(card), image_text)
        upsampler = None
        if parts.upsampler is not None:
            self.print_line(f"then the upsampler, in {parts.upsampler.work.steps:,} steps")
            large_card = upsampler_card(replace(card, size=parts.upsampler.model.size))
            yield UpsamplerTask(parts.upsampler, run_folder / UPSAMPLER_FOLDER, self.inputs, large_card, factor)
            upsampler = cast(UpsamplerModel, load(run_folder / UPSAMPLER_FOLDER, device))
        self.print_line(f"then the decoder, in {plan.work.steps:,} steps")
        yield DecoderTask(
            plan,
            run_folder / DECODER_FOLDER,
            inputs,
            card,
            image_text=image_text,
            prior=load(run_folder / PRIOR_FOLDER, device),
            upsampler=upsampler,
            model_path=self.output_path,
        )
