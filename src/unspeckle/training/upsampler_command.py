"""`unspeckle train --kind upsampler`: from a folder of captioned images to a model that enlarges images."""

from collections.abc import Iterator

from unspeckle.errors import InputError
from unspeckle.training.check_options import check_train_options
from unspeckle.training.options import UpsamplerOptions
from unspeckle.training.plan import Plan, UpsamplerPlan
from unspeckle.training.simple_planner import refuse_options
from unspeckle.training.task import Task
from unspeckle.training.train_command import TrainCommand, make_card
from unspeckle.training.upsampler_planner import UpsamplerPlanner
from unspeckle.training.upsampler_task import UpsamplerTask, upsampler_card

# Options of `train` that an upsampler has no use for
OTHER_OPTIONS = ("space", "from_model", "compile")
MAX_FACTOR = 8


class UpsamplerCommand(TrainCommand):
    """`train --kind upsampler`."""

    plan_class: type[Plan] = UpsamplerPlan
    options: UpsamplerOptions

    def check_options(self) -> None:
        refuse_options(self.options, OTHER_OPTIONS, "upsampler")
        if not 2 <= self.options.factor <= MAX_FACTOR:
            raise InputError(f" {self.options.factor}: must be from 2 to {MAX_FACTOR}", "factor")
        check_train_options(self.options)

    def make_plan(self) -> UpsamplerPlan:
        planner = UpsamplerPlanner(self.options, self.inputs, self.start_time, self.print_line, self.options.factor)
        return planner.make_plan()

    def tasks(self, plan: Plan) -> Iterator[Task]:
        assert isinstance(plan, UpsamplerPlan)
        card = upsampler_card(make_card(self.options, plan, self.inputs))
        yield UpsamplerTask(plan, self.options.out, self.inputs, card, plan.upsampler.factor)

    def advice_when_finished(self) -> str:
        return f"draw with another model and --upsampler {self.options.out}"
