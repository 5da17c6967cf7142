"""A Stable Diffusion checkpoint in our terms: its parts, how it is meant to be sampled, and its tensors as stored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unspeckle.formats.checkpoint_parts import CheckpointPart, Layout, ModuleSpec
from unspeckle.schedule import STABLE_DIFFUSION, Schedule
from unspeckle.text.clip_tokenizer import CLIPTokenizer


@dataclass(frozen=True)
class Family:
    """What all checkpoints of one kind have in common, whatever their sizes."""

    # its short name
    name: str
    # the pipeline of diffusers for it, that of its inpainting models, and that of its latent consistency models if they
    # have one of their own
    pipeline: str
    inpainting_pipeline: str
    consistency_pipeline: str | None
    # what else its model_index.json says
    model_index: Mapping[str, Any]
    # its architecture by ModelSpec, which single files have in their metadata
    architecture: str
    # the guidance scale that its images are usually drawn with
    guidance_scale: float
    # the scaling factor of its latents (Rombach et al. 2022, appendix G), which single files do not say
    latent_scale: float
    # folders of its text encoders in diffusers' layout
    text_folders: tuple[str, ...]
    # prefixes of its text encoders in a single file, and whether they are stored by OpenCLIP's names
    text_prefixes: tuple[tuple[str, bool], ...]
    # what kohya's programs call its text encoders
    kohya_text_prefixes: tuple[tuple[str, ...], ...]
    # by which names kohya's programs call the layers of its network, the usual ones first
    kohya_layouts: tuple[Layout, ...]
    # how many numbers about the image's size its network takes; 5 = with an aesthetic score as the last of them
    size_values: int = 0


@dataclass(frozen=True)
class SchedulerDefaults:
    """How a checkpoint is meant to be sampled. What a file does not say is None, or what other programs default to."""

    # alpha and sigma at each time; a DiscreteSchedule where time_conditioning is "index"
    schedule: Schedule = STABLE_DIFFUSION
    # what its network predicts, a name of PREDICTIONS
    prediction: str = "eps"
    # what its network sees of the time, a name of TIME_CONDITIONINGS: "index" = one of 1,000 training timesteps
    time_conditioning: str = "index"
    # the sampler that its files recommend
    sampler: str = "dpmpp_2m"
    # where its schedulers place their timesteps: "leading", "trailing" or "linspace"; None = each sampler's own default
    timestep_spacing: str | None = None
    # how many training timesteps the "leading" spacing is moved up by
    steps_offset: int = 1
    # where DDIM and PLMS end: "first" = at the lowest noise level of the training, "zero" = without any noise
    end_at: str | None = "first"
    # whether its noise levels are spaced as by Karras et al. 2022
    use_karras_sigmas: bool = False
    # side of the images that it was trained on, in pixels
    image_size: int = 512
    # whether it was distilled to few steps without guidance
    is_turbo: bool = False


@dataclass(frozen=True)
class NetworkInputs:
    """What the network of a checkpoint takes besides x, the time and the text tokens. 0 = it does not."""

    # width of the embedded image sizes behind the pooled text in its vector (SDXL; Podell et al. 2023, section 2.2)
    size_embedding_width: int = 0
    # width of the embedded guidance scale at the end of its vector (LCM; Luo et al. 2023, section 4.2)
    guidance_embedding_width: int = 0
    # channels concatenated to x: the mask and the masked latents of an inpainting model
    concat_channels: int = 0


@dataclass
class StableDiffusionCheckpoint:
    """All that a checkpoint holds, read but not built."""

    # the file or folder that it was read from
    path: Path
    # which Stable Diffusion it is
    family: Family
    # "network", "autoencoder", "text.encoders.0", ...: by what its tensors' names begin with in `tensors`
    parts: Mapping[str, CheckpointPart]
    # the module that joins its text encoders
    text_encoder: ModuleSpec
    tokenizer: CLIPTokenizer
    network_inputs: NetworkInputs
    scheduler_defaults: SchedulerDefaults = field(default_factory=SchedulerDefaults)
    # all tensors by our full names, such as "network.conv_in.weight", in the dtypes of the file
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def text_encoder_parts(self) -> dict[str, CheckpointPart]:
        """The text encoders among the parts, in order."""
        return {name: part for name, part in self.parts.items() if name.split(".")[0] == "text"}

    def part_tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part, or of the "text" module, by their names within it."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}

    def build_modules(self) -> dict[str, nn.Module]:
        """The modules of a Model without their weights, by the names that Model.modules() gives them."""
        return {
            "network": self.parts["network"].build(),
            "text": self.text_encoder.build(),
            "autoencoder": self.parts["autoencoder"].build(),
        }
