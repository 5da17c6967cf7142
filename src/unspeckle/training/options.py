"""The options of `unspeckle train`, `train --lora` and `distil`. None: to be chosen."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainOptions:
    """Of `train`. Exactly one of seconds, images and steps says how long."""

    # Captioned images
    folder: Path
    # The RUN folder
    out: Path
    seconds: float | None = None
    # Images to train on, counting repetitions
    images: int | None = None
    steps: int | None = None
    # Width and height in pixels, such as "64" or "96x64" (see quantities.parse_size)
    size: str | None = None
    preset: str | None = None
    # What is denoised: "pixels" or "latents"
    space: str | None = None
    # Where captions come from: auto, txt, metadata, folders or names
    captions: str = "auto"
    # One caption for all images
    caption: str | None = None
    # A caption around a folder's name: "a photo of a {name}"
    template: str | None = None
    # A model to continue training
    from_model: Path | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    seed: int | None = None
    # Images in a step
    batch_size: int | None = None
    device: str | None = None
    precision: str | None = None
    compile: bool | None = None
    # Whether half of the images are mirrored
    flip: bool | None = None
    # How far rare captions are shown more often, 0 to 1
    balance: float | None = None
    # Whether captions are read in different wordings
    caption_augmentation: bool | None = None
    # Of the model, for its card
    license: str | None = None
    # Only print the plan
    plan_only: bool = False
    # Print the plan as JSON
    json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class GANOptions(TrainOptions):
    """Of `train --kind gan`; images are not encoded as latents."""

    # See gan_losses.py: "relativistic" or "original"
    loss: str = "relativistic"
    # Whether captions are left unread
    unconditional: bool = False


@dataclass(frozen=True)
class CLIPOptions(TrainOptions):
    """Of `train --kind clip`."""

    # See contrastive_loss.py: "infonce" or "siglip"
    loss: str = "infonce"


@dataclass(frozen=True)
class UnCLIPOptions(TrainOptions):
    """Of `train --kind unclip`. seconds: of all parts together; images or steps: of each."""


@dataclass(frozen=True)
class UpsamplerOptions(TrainOptions):
    """Of `train --kind upsampler`; size is that of the large images."""

    # Their sides, as multiples of those of the small images
    factor: int = 2


@dataclass(frozen=True)
class DistilOptions:
    """Of `distil`. Exactly one of seconds, images and steps says how long."""

    # The teacher: a RUN folder or a file
    model: Path
    # The RUN folder
    out: Path
    # A folder whose captions are used; None: those that the teacher's RUN kept
    corpus: Path | None = None
    seconds: float | None = None
    # Images that the teacher draws
    images: int | None = None
    steps: int | None = None
    # Guidance scale with which the student will draw
    guidance_scale: float | None = None
    seed: int | None = None
    # Images that the teacher draws for a step
    batch_size: int | None = None
    device: str | None = None
    precision: str | None = None
    # Only print the plan
    plan_only: bool = False
    # Print the plan as JSON
    json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class LoraOptions:
    """Of `train --lora`. Exactly one of seconds, images and steps says how long."""

    # Captioned images
    folder: Path
    # The RUN folder
    out: Path
    # A Stable Diffusion: a file, a folder or a name on the hub
    from_model: Path
    seconds: float | None = None
    # Images to train on, counting repetitions
    images: int | None = None
    steps: int | None = None
    # Width and height in pixels, such as "512" or "640x512"
    size: str | None = None
    # Where captions come from: auto, txt, metadata, folders or names
    captions: str = "auto"
    # One caption for all images
    caption: str | None = None
    # A caption around a folder's name: "a photo of a {name}"
    template: str | None = None
    rank: int = 8
    # Whether the text encoders are trained too
    train_text_encoder: bool = False
    # Of the file: kohya or peft
    layout: str = "kohya"
    learning_rate: float | None = None
    # Of the LoRA, for the file's metadata
    license: str | None = None
    seed: int | None = None
    # Images in a step
    batch_size: int | None = None
    device: str | None = None
    precision: str | None = None
    # What the network predicts, eps or v, if the checkpoint does not say
    prediction: str | None = None
    # Whether tensors are read from a pickled checkpoint
    trust_pickle: bool = False
    # Only print the plan
    plan_only: bool = False
    # Print the plan as JSON
    json: bool = False
    quiet: bool = False


Options = TrainOptions | DistilOptions | LoraOptions
