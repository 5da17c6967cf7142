"""What a run's steps take, where not all of them take the same."""

from typing import NamedTuple

WORD_SHARE, WORDS_MOST = 0.3, 3000  # of the steps in which the words learn alone, at about a fifth of the others' cost


def word_steps(steps: int) -> int:
    """Of so many steps, those in which the words learn alone."""
    return min(WORDS_MOST, int(WORD_SHARE * steps))


class Cost(NamedTuple):
    """In steps of the network. each: of a step, with its share of what is learnt beforehand; won: what a step in which
    the words learn alone takes less."""

    each: float
    won: float

    def of(self, steps: int) -> float:
        """What so many steps take."""
        return self.each * steps - self.won * word_steps(steps)

    def steps(self, room: float) -> int:
        """The most steps that take no more than that, but at least one."""
        few, many = room / (self.each - self.won * WORD_SHARE), (room + self.won * WORDS_MOST) / self.each
        return max(1, int(min(few, many)))


ALIKE = Cost(1.0, 0.0)


class PictureCost(NamedTuple):
    """Seconds of a picture: as the network learns from it, as the words alone do, and of the autoencoder's learning
    beforehand, its share."""

    network: float
    words: float = 0.0
    latents: float = 0.0

    def of_steps(self) -> Cost:
        won = max(0.0, 1 - self.words / self.network) if self.words else 0.0
        return Cost(1 + self.latents / self.network, won)
