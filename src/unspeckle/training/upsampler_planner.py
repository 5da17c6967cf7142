"""The plan of an upsampler: as `train` plans a model, but that its network takes a small image besides."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from unspeckle.corpus.batches import Batch
from unspeckle.errors import InputError
from unspeckle.training import measurement
from unspeckle.training.cost import ImageCost
from unspeckle.training.inputs import TrainingInputs
from unspeckle.training.measurement import PrintLine, Throughput
from unspeckle.training.options import TrainOptions
from unspeckle.training.plan import ModelPlan, Plan, UpsamplerPlan, UpsamplerSettings
from unspeckle.training.train_planner import TrainPlanner
from unspeckle.training.upsampler_updater import UpsamplerUpdater


class UpsamplerPlanner(TrainPlanner):
    """Plans an upsampler by that factor."""

    def __init__(
        self, options: TrainOptions, inputs: TrainingInputs, start_time: float, print_line: PrintLine, factor: int
    ) -> None:
        super().__init__(options, inputs, start_time, print_line)
        self.factor = factor

    def make_plan(self) -> UpsamplerPlan:
        check_factor(self.inputs.corpus.training.size, self.factor)
        return UpsamplerPlan(**vars(super().make_plan()), upsampler=UpsamplerSettings(self.factor))

    def _plan_model(self, preset_name: str) -> ModelPlan:
        model = super()._plan_model(preset_name)
        network: Any = model.network
        network = replace(
            network,
            concat_channels=network.channels,
            vector_width=network.vector_width + 1,
            coarse_predictor_layers=0,
        )
        return replace(model, network=network)

    def _measure(self, plan: Plan, seconds: float, training_batches: Iterator[Batch] | None = None) -> Throughput:
        training_batches = self._batches(plan) if training_batches is None else training_batches
        plan = measurement.without_learning(plan)

        def create_updater() -> UpsamplerUpdater:
            return UpsamplerUpdater(plan, self.inputs.tokenizer, self.inputs.autoencoder, self.factor)

        return measurement.measure_steps(create_updater, training_batches, seconds)

    def _with_latent_cache(self, plan: Plan, throughput: Throughput, cost: ImageCost) -> Plan:
        return self._finalize(plan, throughput, cost)


def check_factor(size: tuple[int, int], factor: int) -> None:
    """InputError if images of that size (W, H) cannot be shrunk evenly."""
    if any(side % factor for side in size):
        nearest = "x".join(str(max(factor, round(side / factor) * factor)) for side in size)
        raise InputError(f" {size[0]}x{size[1]}: sides must be multiples of {factor} here; try {nearest}", "size")
