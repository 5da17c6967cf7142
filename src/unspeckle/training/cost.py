"""What a run's steps take, where not all of them take the same."""

from typing import NamedTuple

TEXT_STEP_FRACTION, MAX_TEXT_STEPS = (
    0.3,
    3000,
)  # of the steps in which the words learn alone, at about a fifth of the others' cost


def count_text_steps(steps: int) -> int:
    """Of so many steps, those in which the words learn alone."""
    return min(MAX_TEXT_STEPS, int(TEXT_STEP_FRACTION * steps))


class StepCost(NamedTuple):
    """In steps of the network. each: of a step, with its share of what is learnt beforehand; won: what a step in which
    the words learn alone takes less."""

    per_step: float
    text_step_saving: float

    def total(self, steps: int) -> float:
        """What so many steps take."""
        return self.per_step * steps - self.text_step_saving * count_text_steps(steps)

    def steps_within(self, budget: float) -> int:
        """The most steps that take no more than that, but at least one."""
        steps_if_fraction, steps_if_capped = (
            budget / (self.per_step - self.text_step_saving * TEXT_STEP_FRACTION),
            (budget + self.text_step_saving * MAX_TEXT_STEPS) / self.per_step,
        )
        return max(1, int(min(steps_if_fraction, steps_if_capped)))


UNIFORM_COST = StepCost(1.0, 0.0)


class ImageCost(NamedTuple):
    """Seconds of a picture: as the network learns from it, as the words alone do, and of the autoencoder's learning
    beforehand, its share."""

    network_seconds: float
    text_seconds: float = 0.0
    autoencoder_seconds: float = 0.0

    def to_step_cost(self) -> StepCost:
        text_step_saving = max(0.0, 1 - self.text_seconds / self.network_seconds) if self.text_seconds else 0.0
        return StepCost(1 + self.autoencoder_seconds / self.network_seconds, text_step_saving)
