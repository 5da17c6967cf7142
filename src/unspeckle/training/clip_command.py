"""`unspeckle train --kind clip`: from a folder of captioned images to a CLIP of one's own in RUN/model.safetensors."""

from collections.abc import Iterator

from unspeckle.errors import InputError
from unspeckle.text.image_text_encoder import ImageTextCard
from unspeckle.training.check_options import check_train_options
from unspeckle.training.clip_planner import make_clip_plan
from unspeckle.training.clip_task import CLIPTask
from unspeckle.training.contrastive_loss import LOSSES
from unspeckle.training.options import CLIPOptions
from unspeckle.training.plan import CLIPPlan, Plan
from unspeckle.training.simple_planner import refuse_options
from unspeckle.training.task import Task
from unspeckle.training.train_command import TrainCommand, make_card

# Options of `train` that are for models that denoise
OTHER_OPTIONS = ("preset", "space", "from_model", "compile")


class CLIPCommand(TrainCommand):
    """`train --kind clip`."""

    plan_class: type[Plan] = CLIPPlan
    options: CLIPOptions

    def check_options(self) -> None:
        options = self.options
        refuse_options(options, OTHER_OPTIONS, "clip")
        if options.loss not in LOSSES:
            raise InputError(f" {options.loss}: unknown; choose {' or '.join(LOSSES)}", "loss")
        check_train_options(options)

    def make_plan(self) -> CLIPPlan:
        return make_clip_plan(self.options, self.inputs, start_time=self.start_time, print_line=self.print_line)

    def tasks(self, plan: Plan) -> Iterator[Task]:
        assert isinstance(plan, CLIPPlan)
        card = make_card(self.options, plan, self.inputs)
        image_text_card = ImageTextCard(card.name, card.license, card.recipe, card.corpus)
        yield CLIPTask(plan, self.options.out, self.inputs, image_text_card)

    def advice_when_finished(self) -> str:
        return f"its model is {self.output_path}, which compares images with texts"
