"""`unspeckle train --kind gan`: from a folder of captioned images to a GAN's generator in RUN/model.safetensors."""

from collections.abc import Iterator
from dataclasses import replace

from unspeckle.errors import InputError
from unspeckle.training.check_options import check_common_options, check_learning_rate, check_out_of_corpus
from unspeckle.training.gan_losses import LOSSES
from unspeckle.training.gan_planner import make_gan_plan
from unspeckle.training.gan_task import GANTask
from unspeckle.training.options import GANOptions
from unspeckle.training.plan import GANPlan, Plan
from unspeckle.training.simple_planner import refuse_options
from unspeckle.training.task import Task
from unspeckle.training.train_command import TrainCommand, make_card

# Options of `train` that are for models that denoise
OTHER_OPTIONS = ("preset", "space", "from_model", "optimizer", "compile")


class GANCommand(TrainCommand):
    """`train --kind gan`."""

    plan_class: type[Plan] = GANPlan
    options: GANOptions

    def check_options(self) -> None:
        options = self.options
        refuse_options(options, OTHER_OPTIONS, "gan")
        if options.loss not in LOSSES:
            raise InputError(f" {options.loss}: unknown; choose {' or '.join(LOSSES)}", "loss")
        if options.unconditional and options.caption_augmentation:
            raise InputError(": captions are not read with --unconditional; leave it out", "caption_augmentation")
        check_learning_rate(options.learning_rate, "2e-4 is usual with --kind gan")
        check_common_options(options)
        check_out_of_corpus(options)

    def make_plan(self) -> GANPlan:
        return make_gan_plan(self.options, self.inputs, start_time=self.start_time, print_line=self.print_line)

    def tasks(self, plan: Plan) -> Iterator[Task]:
        assert isinstance(plan, GANPlan)
        card = make_card(self.options, plan, self.inputs)
        card = replace(
            card,
            sampler="euler",
            timestep_spacing="uniform",
            steps=1,
            step_counts=(1,),
            guidance_scale=1.0,
            vocabulary=() if plan.gan.unconditional else card.vocabulary,
        )
        yield GANTask(plan, self.options.out, self.inputs, card)
