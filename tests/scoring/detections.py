"""Detections as a detector might find them."""

from collections.abc import Sequence

from unspeckle.scoring.composition.detector import Detection


def detect(
    *nouns: str,
    at: Sequence[float] = (0.5, 0.5),
    side: float = 0.3,
    score: float = 0.9,
    tint: str = "",
    wearing: str = "",
) -> Detection:
    box = (at[0] - side / 2, at[1] - side / 2, at[0] + side / 2, at[1] + side / 2)
    return Detection(nouns, box, tint=tint, wearing=wearing, score=score)


FROG, CAR, TREE = detect("frog"), detect("car"), detect("tree")
LEFT, RIGHT, TOP, LOW = (0.2, 0.5), (0.8, 0.5), (0.5, 0.2), (0.5, 0.8)
