"""Options that several commands share: their texts, and the dataclass that says which model is loaded and how."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from unspeckle.errors import InputError
from unspeckle.old_names import SAMPLERS as RENAMED_SAMPLERS

# Groups of options in the help
GUIDANCE = "Guidance"
STARTING_IMAGE = "Starting from an image"
UNCLIP = "Drawing like an image (unCLIP models)"
VARIATIONS = "Variations and high resolution"
STABLE_DIFFUSION = "Stable Diffusion"
LORA_TRAINING = "LoRA training"
OTHER_KINDS = "Other kinds of models"

MODEL_HELP = (
    "The model: a .safetensors file, the RUN folder of `train`, or a Stable Diffusion checkpoint (a single file, a "
    "diffusers folder, or its OWNER/NAME on the Hugging Face hub).  [default: the model inside the package]"
)
PREDICTION_HELP = (
    "What the network of a Stable Diffusion checkpoint predicts: eps or v.  [default: as the checkpoint says]"
)
TRUST_PICKLE_HELP = (
    "Read a checkpoint in pickle format, such as .ckpt; without this option, such files are refused. A pickle can be "
    "made to run any code on the machine that loads it. Only tensors are read here, by PyTorch's restricted loader "
    "(weights_only), but use it only for files from people whom you trust."
)
LORA_HELP = (
    "Add a LoRA file with this strength, such as ink.safetensors:0.8 (without a number, 1). In a folder, the files "
    "are found that the prompt names by <lora:NAME:STRENGTH>. May be given several times."
)
EMBEDDING_HELP = (
    "Add a textual inversion, a file with the embedding of a new word. To use it, write this word in the prompt: the "
    "token that is stored in the file or, if there is none, the name of the file. May be given several times."
)
VAE_HELP = (
    "Encode and decode images with this autoencoder (VAE or TAESD) instead.  [default: the one in the checkpoint]"
)
STEPS_HELP = (
    "Number of sampling steps, 1 to 1000: more take longer and usually make finer images. In a model that holds a "
    "few-step student (see `distil`), --steps 1, 2 or 4 are drawn by the student, and any other number by the full "
    "model, as is everything that the student did not learn, such as a negative prompt or another sampler.  "
    "[default: the value stored with the model]"
)
SAMPLER_HELP = (
    "Sampling method: ddpm, ddim, euler, euler_ancestral, heun, lms, plms, dpmpp_2m, dpmpp_2m_sde, dpmpp_sde, unipc "
    "or lcm.  [default: the value stored with the model]"
)
TIMESTEP_SPACING_HELP = (
    "How the times of the steps are spaced: uniform, leading, trailing, linspace, karras, exponential or shifted.  "
    "[default: the value stored with the model]"
)
GUIDANCE_SCALE_HELP = (
    "How strongly the image follows the prompt: usually 2 to 10. High values make images more alike, and "
    "glaring; 1 disables guidance.  [default: the value stored with the model]"
)
PRECISION_HELP = (
    "Number format in which the model computes: float32, bfloat16, float16, int8 (fastest on many CPUs, but less "
    "exact), or auto, which is for Stable Diffusion bfloat16 (or on an older GPU float16) on hardware that is faster "
    "with it, and otherwise float32."
)
TRAINING_PRECISION_HELP = (
    "Number format in which the network computes: float32, bfloat16 or float16.  [default: whichever is fastest on "
    "this machine; float16 only on a GPU without bfloat16, such as a T4]"
)
DURATION_HELP = (
    "Train for about this time, which includes all preparation: 90s, 30m, 1h30m or 2d (the unit is needed). The number "
    "of steps that fit into it is planned from the measured speed; after the last one, the model is saved."
)
PLAN_HELP = "Print the plan (sizes, steps, times, memory) and exit without training."
PLAN_JSON_HELP = "With --plan: print the plan to standard output as JSON."
CAPTIONS_HELP = (
    "Where the captions are: txt (in a .txt file next to each image), metadata (in a metadata.jsonl or metadata.csv "
    "file), folders (the names of the folders), names (the names of the image files), or auto, which takes for each "
    "image the first of metadata, txt and folders that it finds."
)
CAPTION_HELP = "One caption for all images, instead of --captions.  [default: none]"
TEMPLATE_HELP = (
    "For images whose captions are the names of folders or files: the caption, in which {name} stands for the name. "
    'With "a sketch of a {name}", images in the folder red_fox get the caption "a sketch of a red fox".  '
    "[default: a photo of a {name}]"
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors and results.")]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Where the model computes: cpu, cuda, cuda:1 or mps.  [default: cuda if available, else cpu]",
    ),
]
ModelPath = Annotated[Path | None, typer.Option("--model", "-m", metavar="MODEL", help=MODEL_HELP)]
Prediction = Annotated[
    str | None, typer.Option(metavar="eps|v", help=PREDICTION_HELP, rich_help_panel=STABLE_DIFFUSION)
]
TrustPickle = Annotated[bool, typer.Option("--trust-pickle", help=TRUST_PICKLE_HELP, rich_help_panel=STABLE_DIFFUSION)]
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="FILE[:STRENGTH]|FOLDER", help=LORA_HELP, rich_help_panel=STABLE_DIFFUSION),
]
Embeddings = Annotated[
    list[Path] | None,
    typer.Option("--embedding", metavar="FILE", help=EMBEDDING_HELP, rich_help_panel=STABLE_DIFFUSION),
]
Vae = Annotated[Path | None, typer.Option(metavar="FILE|FOLDER", help=VAE_HELP, rich_help_panel=STABLE_DIFFUSION)]
Steps = Annotated[int | None, typer.Option(metavar="N", help=STEPS_HELP)]
Sampler = Annotated[str | None, typer.Option(metavar="NAME", help=SAMPLER_HELP)]
TimestepSpacing = Annotated[str | None, typer.Option(metavar="NAME", help=TIMESTEP_SPACING_HELP)]
GuidanceScale = Annotated[float | None, typer.Option(metavar="SCALE", help=GUIDANCE_SCALE_HELP)]
Precision = Annotated[str, typer.Option(metavar="NAME", help=PRECISION_HELP)]
TrainingPrecision = Annotated[str | None, typer.Option(metavar="NAME", help=TRAINING_PRECISION_HELP)]
TrainingSeed = Annotated[
    int | None, typer.Option(metavar="N", help="Seed of all random numbers in training.  [default: 0]")
]
Duration = Annotated[str | None, typer.Option("--for", metavar="TIME", help=DURATION_HELP)]
PlanOnly = Annotated[bool, typer.Option("--plan", help=PLAN_HELP)]
PlanJson = Annotated[bool, typer.Option("--json", help=PLAN_JSON_HELP)]
Captions = Annotated[str, typer.Option(metavar="KIND", help=CAPTIONS_HELP)]
Caption = Annotated[str | None, typer.Option(metavar="TEXT", help=CAPTION_HELP)]
Template = Annotated[str | None, typer.Option(metavar="TEXT", help=TEMPLATE_HELP)]


@dataclass(frozen=True)
class ModelOptions:
    """Which model is loaded, how it computes, and what is added to it."""

    # A file, a RUN folder, or a Stable Diffusion checkpoint; None is the model inside the package.
    path: Path | None = None
    # A name of torch, such as "cuda:1"; None is a CUDA GPU where there is one, else the CPU.
    device: str | None = None
    # "auto", "float32", "bfloat16", "float16" or "int8".
    precision: str = "auto"
    # "eps" or "v", for a Stable Diffusion checkpoint that does not say what its network predicts.
    prediction: str | None = None
    # Whether the tensors of a pickle may be read.
    trust_pickle: bool = False
    # LoRA files, each perhaps followed by a colon and its strength, and folders of LoRA files.
    loras: tuple[str, ...] = ()
    # Files of textual inversions.
    embeddings: tuple[Path, ...] = ()
    # An autoencoder that takes the place of the checkpoint's own.
    vae: Path | None = None


def check_sampler_name(sampler: str | None) -> None:
    """InputError with the new name where a sampler is called by its name of version 0.1."""
    if sampler in RENAMED_SAMPLERS:
        raise InputError(f"--sampler {sampler}: is now called {RENAMED_SAMPLERS[sampler]}")


def refuse_hidden_plan(plan: bool, json: bool, quiet: bool) -> None:
    """InputError where the plan is to be printed and is not, because of --quiet."""
    if plan and quiet and not json:
        raise InputError("--quiet: hides the plan that --plan prints; leave one of the two out, or add --json")


def limit_thread_spinning() -> None:
    """Make threads that wait for each other sleep soon instead of spinning: a process with spinning threads gets little
    done beside a training run. To be called before torch is imported, which reads the setting once."""
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
