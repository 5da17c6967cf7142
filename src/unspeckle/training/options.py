"""What a person asked of `unspeckle train` and `unspeckle distil`, as the command line parsed it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainOptions:
    """None = choose for me. Exactly one of seconds, pictures and steps says how long."""

    folder: Path
    out: Path
    seconds: float | None = None
    images: int | None = None
    steps: int | None = None
    size: str | None = None  # "64" or "96x64", not yet parsed: quantities.size
    preset: str | None = None
    space: str | None = None  # in which to denoise: "pixels" or "latents"
    captions: str = "auto"  # auto, txt, metadata, folders, names
    caption: str | None = None  # one caption for all pictures
    template: str | None = None  # a caption around a folder's name, "a photo of a {name}"
    from_model: Path | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    seed: int | None = None
    batch_size: int | None = None
    device: str | None = None
    precision: str | None = None
    compile: bool | None = None
    flip: bool | None = None  # half of the pictures
    balance: float | None = None  # of captions
    license: str | None = None  # of the model, for its card
    plan_only: bool = False
    json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class DistilOptions:
    """None = choose for me. Exactly one of seconds, pictures and steps says how long."""

    model: Path  # the teacher: a RUN or a file
    out: Path
    corpus: Path | None = None  # a folder, for its captions; None = those that the RUN kept
    seconds: float | None = None
    images: int | None = None  # that the teacher is to draw
    steps: int | None = None
    guidance_scale: float | None = None  # of guidance, baked in
    seed: int | None = None
    batch_size: int | None = None
    device: str | None = None
    precision: str | None = None
    plan_only: bool = False
    json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class LoraOptions:
    """None = choose for me. Exactly one of seconds, pictures and steps says how long."""

    folder: Path
    out: Path
    from_model: Path  # a Stable Diffusion: file, folder or hub name
    seconds: float | None = None
    images: int | None = None
    steps: int | None = None
    size: str | None = None
    captions: str = "auto"
    caption: str | None = None
    template: str | None = None
    rank: int = 8
    train_text_encoder: bool = False  # its text encoders learn too
    layout: str = "kohya"
    learning_rate: float | None = None
    license: str | None = None  # of the file, for its metadata
    seed: int | None = None
    batch_size: int | None = None
    device: str | None = None
    precision: str | None = None
    prediction: str | None = None
    trust_pickle: bool = False
    plan_only: bool = False
    json: bool = False
    quiet: bool = False


Options = TrainOptions | DistilOptions | LoraOptions
