"""What the steps of a run take, where not all of them take the same."""

from typing import NamedTuple

# Steps of the text stage, in which the text encoder is trained alone, at about a fifth of the cost of the others: as a
# share of all steps, and at most
TEXT_STEP_FRACTION, MAX_TEXT_STEPS = 0.3, 3000


def count_text_steps(steps: int) -> int:
    """How many of the steps belong to the text stage."""
    return min(MAX_TEXT_STEPS, int(TEXT_STEP_FRACTION * steps))


class StepCost(NamedTuple):
    """What steps take, in units of a step of the network."""

    # A step, with its share of the autoencoder's training
    per_step: float
    # What a step of the text stage takes less
    text_step_saving: float

    def total(self, steps: int) -> float:
        """What that many steps take."""
        return self.per_step * steps - self.text_step_saving * count_text_steps(steps)

    def steps_within(self, budget: float) -> int:
        """The largest number of steps that take at most the budget, but at least 1."""
        steps_if_fraction = budget / (self.per_step - self.text_step_saving * TEXT_STEP_FRACTION)
        steps_if_capped = (budget + self.text_step_saving * MAX_TEXT_STEPS) / self.per_step
        return max(1, int(min(steps_if_fraction, steps_if_capped)))


UNIFORM_COST = StepCost(1.0, 0.0)


class ImageCost(NamedTuple):
    """Seconds for a training image."""

    network_seconds: float
    # In the text stage, 0 if there is none
    text_seconds: float = 0.0
    # Its share of the autoencoder's training
    autoencoder_seconds: float = 0.0

    def to_step_cost(self) -> StepCost:
        """The same in units of a step of the network."""
        text_step_saving = max(0.0, 1 - self.text_seconds / self.network_seconds) if self.text_seconds else 0.0
        return StepCost(1 + self.autoencoder_seconds / self.network_seconds, text_step_saving)
