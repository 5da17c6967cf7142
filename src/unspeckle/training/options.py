"""What a person asked of `unspeckle train`, as the command line parsed it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainOptions:
    """None = choose for me. Exactly one of seconds, pictures and steps says how long."""

    folder: Path
    out: Path
    seconds: float | None = None
    pictures: int | None = None
    steps: int | None = None
    size: str | None = None  # "64" or "96x64", not yet parsed: quantities.size
    preset: str | None = None
    space: str | None = None  # in which to denoise: "pixels" or "latents"
    captions: str = "auto"  # auto, txt, metadata, folders, names
    caption: str | None = None  # one caption for all pictures
    template: str | None = None  # a caption around a folder's name, "a photo of {}"
    from_model: Path | None = None
    seed: int | None = None
    batch: int | None = None
    device: str | None = None
    precision: str | None = None
    compile: bool | None = None
    plan_only: bool = False
    json: bool = False
    quiet: bool = False
