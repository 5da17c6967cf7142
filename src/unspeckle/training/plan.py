"""What a run will do: decided once, before its first step, and kept in RUN/plan.json (see plan_file.py)."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

from torch import nn

from unspeckle import configuration
from unspeckle.denoiser import Denoiser, Network
from unspeckle.networks import NetworkConfig, build_network
from unspeckle.networks.autoencoder import PixelAutoencoderConfig
from unspeckle.networks.embedding_space import EmbeddingSpaceConfig
from unspeckle.networks.latent_autoencoder import LatentAutoencoderConfig
from unspeckle.networks.lora import init_adapters
from unspeckle.networks.vae import VAEConfig
from unspeckle.objective import Objective
from unspeckle.schedule import SCHEDULES
from unspeckle.text.clip import CLIPTextEncodersConfig
from unspeckle.text.text_encoder import TextEncoderConfig

OPTIMIZERS = ("muon", "adamw")
PIXEL_OBJECTIVE = Objective("logit_normal", mean=0.3, std=1.0)
# Latents have fewer and less smooth values than pixels, so that captions matter at higher noise.
LATENT_OBJECTIVE = Objective("logit_normal", mean=0.8, std=1.2)
# What Stable Diffusion was trained for: the plain error of what the network predicts, at all times alike.
LORA_OBJECTIVE = Objective("uniform", loss_weighting="plain", min_c_out=1e-3)


@dataclass(frozen=True)
class ModelPlan:
    """What is trained: the parts of the model, and what its network predicts of which noise."""

    # Width and height of the images in pixels
    size: tuple[int, int]
    # The network's name in presets.py, or a phrase that says where it comes from
    preset: str
    network: NetworkConfig
    text_encoder: TextEncoderConfig | CLIPTextEncodersConfig
    autoencoder: PixelAutoencoderConfig | LatentAutoencoderConfig | VAEConfig | EmbeddingSpaceConfig
    # The noise schedule as JSON: its kind and its fields (see schedule.py)
    schedule: dict[str, Any] = field(default_factory=lambda: {"kind": "flow"})
    # What the network predicts: x, eps, v or flow
    prediction: str = "v"
    # What the network is conditioned on for the time: t, index or log_sigma
    time_conditioning: str = "t"

    @property
    def input_size(self) -> tuple[int, int]:
        """Width and height of x, the input of the network."""
        factor = self.autoencoder.downsampling_factor
        return self.size[0] // factor, self.size[1] // factor

    def build_denoiser(self, network: Network) -> Denoiser:
        """A denoiser around the network."""
        schedule = configuration.kind_from_json(SCHEDULES, self.schedule, "schedule")
        return Denoiser(network, schedule, self.prediction, self.time_conditioning)


@dataclass(frozen=True)
class OptimizerPlan:
    """How weights are updated and averaged."""

    # "adamw": AdamW for all parameters. "muon": Muon for matrices and convolution kernels, AdamW for the rest
    name: str = "adamw"
    # The highest learning rate of AdamW
    learning_rate: float = 1e-3
    # The highest learning rate of Muon
    muon_learning_rate: float = 4e-3
    weight_decay: float = 0.01
    # Steps over which the learning rates rise from 0
    warmup_steps: int = 200
    # The last share of the steps, over which the learning rates fall to 0
    decay_fraction: float = 0.4
    # Decay of the averages of AdamW
    adamw_betas: tuple[float, float] = (0.9, 0.99)
    # Gradients are scaled down to this joint norm; 0: they are not scaled
    max_grad_norm: float = 1.0
    # Relative widths of the EMAs (see ema.py)
    ema_widths: tuple[float, ...] = (0.05, 0.1)
    # Steps between two updates of the EMAs
    ema_every: int = 4


@dataclass(frozen=True)
class WorkPlan:
    """How many steps of how many images, and what the images go through."""

    steps: int
    # Images in a step
    batch_size: int
    seed: int = 0
    # Steps in which the autoencoder is trained, before all others; 0 if it is not trained
    autoencoder_steps: int = 0
    # The first of `steps`, in which only the text encoder and the coarse image predictor are trained
    text_steps: int = 0
    # Whether half of the images are mirrored, except those whose captions name a side
    flip: bool = True
    # How far images of rare captions are shown more often: 0 (each image equally often) to 1 (each caption)
    balance: float = 0.0
    # Whether each image is encoded once and its latents are kept (see encoded_corpus.py)
    cache_latents: bool = False
    # Whether captions are read in different wordings (see corpus/caption_augmentation.py)
    caption_augmentation: bool = False

    @property
    def total_images(self) -> int:
        """How many images are seen in all steps, counting repetitions."""
        return self.steps * self.batch_size


@dataclass(frozen=True)
class ComputePlan:
    """Where the steps are computed, and how."""

    device: str
    # Precision of the forward and backward passes: bfloat16, float16 or float32; the master weights are float32
    precision: str
    # Whether the network is compiled by torch.compile
    compile: bool = False
    # Threads of the CPU; another number sums in another order
    threads: int = 1


@dataclass(frozen=True)
class Measurements:
    """What was counted and measured to decide the plan. 0: not measured."""

    # Trained parameters of the network and of the text encoder
    parameter_count: int = 0
    # Images per second in training steps
    images_per_second: float = 0.0
    # Seconds from the start to the end, as planned
    total_seconds: float = 0.0
    # Bytes of memory at the peak of a step
    memory_bytes: int = 0
    # Bytes in RUN at the end
    disk_bytes: int = 0
    # Floating-point operations of the network for one image, forward and backward
    flops_per_image: float = 0.0
    # Floating-point operations per second of a large matrix product on the device
    peak_flops: float = 0.0
    # Share of peak_flops that is reached at images_per_second
    mfu: float = 0.0
    # By how much of its time a step is longer because captions are read in different wordings
    caption_augmentation_cost: float = 0.0

    def compute_mfu(self, images_per_second: float) -> float:
        """The share of the device's peak that so many images per second make use of (the "MFU" of Chowdhery et al.
        2022, appendix B); NaN if the peak was not measured."""
        if not (self.peak_flops and self.flops_per_image):
            return math.nan
        return self.flops_per_image * images_per_second / self.peak_flops


@dataclass(frozen=True)
class Plan:
    """Everything that decides the weights that a run ends with, and what was measured to decide it."""

    # The options of the command, as they were given
    options: dict[str, Any]
    # Hash of the images and captions; when distilling, of the captions
    corpus_fingerprint: str
    model: ModelPlan
    work: WorkPlan
    compute: ComputePlan
    # Which loss is minimized, at which times
    objective: Objective = PIXEL_OBJECTIVE
    optimizer: OptimizerPlan = field(default_factory=OptimizerPlan)
    measured: Measurements = field(default_factory=Measurements)

    @property
    def network_batch_size(self) -> int:
        """How many images go through the network in a step."""
        return self.work.batch_size

    @property
    def corpus_size(self) -> tuple[int, int]:
        """Width and height in pixels of the images of the corpus."""
        return self.model.size

    def build_network(self) -> nn.Module:
        """The untrained network; parameters that are not trained do not require gradients."""
        return build_network(self.model.network)

    def with_changes(self, **changes: dict[str, Any]) -> Self:
        """The plan with fields of its sections changed: with_changes(work={"steps": 3}, compute={"compile": True})."""
        return replace(self, **{name: replace(getattr(self, name), **fields) for name, fields in changes.items()})


@dataclass(frozen=True)
class DistillationSettings:
    """How a student is distilled from its teacher."""

    # Hash of the teacher's weights
    teacher_hash: str
    # Guidance scale with which the teacher draws; the student draws so without guidance
    guidance_scale: float = 5.0
    # The numbers of steps in which the student learns to draw
    step_counts: tuple[int, ...] = (1, 2, 4)
    # Steps in which the teacher draws: a multiple of each of step_counts
    teacher_steps: int = 12


@dataclass(frozen=True)
class DistillationPlan(Plan):
    """The plan of a student; an image is one that the teacher draws, and corpus_fingerprint is of the captions."""

    distillation: DistillationSettings = field(kw_only=True)

    @property
    def network_batch_size(self) -> int:
        return self.work.batch_size * sum(self.distillation.step_counts)


@dataclass(frozen=True)
class LoraSettings:
    """What kind of LoRA is trained, and for which base model."""

    # Hash of the base model's weights
    base_hash: str
    rank: int = 8
    # Whether the text encoders get adapters too
    train_text_encoder: bool = False
    # Layout of the file: kohya or peft
    layout: str = "kohya"
    # Guidance scale of the samples
    guidance_scale: float = 7.5


@dataclass(frozen=True)
class LoraPlan(Plan):
    """The plan of adapters for a Stable Diffusion; measured.parameter_count counts the adapters."""

    lora: LoraSettings = field(kw_only=True)

    def build_network(self) -> nn.Module:
        network = build_network(self.model.network).requires_grad_(False)
        modules = {"network": network}
        init_adapters(modules, self.lora.rank, self.work.seed).attach(modules)
        return network


@dataclass(frozen=True)
class GANSettings:
    """How a generator is trained against a discriminator."""

    # See gan_losses.py: "relativistic" or "original"
    loss: str = "relativistic"
    # Half of it weighs each of the gradient penalties R1 and R2 (gamma in Huang et al. 2024)
    penalty_weight: float = 1.0
    # Whether captions are left unread
    unconditional: bool = False


@dataclass(frozen=True)
class GANPlan(Plan):
    """The plan of a generator; measured.parameter_count counts the discriminator too."""

    gan: GANSettings = field(kw_only=True)


@dataclass(frozen=True)
class ContrastiveSettings:
    """How images and texts are brought into one space."""

    # See contrastive_loss.py: "infonce" or "siglip"
    loss: str = "infonce"


@dataclass(frozen=True)
class CLIPPlan(Plan):
    """The plan of an image encoder, which is its network, with a text encoder; its autoencoder is not used."""

    contrastive: ContrastiveSettings = field(kw_only=True)


@dataclass(frozen=True)
class UpsamplerSettings:
    """What an upsampler does."""

    # Sides of its images, as multiples of those of the small ones
    factor: int = 2


@dataclass(frozen=True)
class UpsamplerPlan(Plan):
    """The plan of an upsampler."""

    upsampler: UpsamplerSettings = field(kw_only=True)


@dataclass(frozen=True)
class UnCLIPParts:
    """The parts of an unCLIP model besides its decoder."""

    clip: CLIPPlan
    # Its x are embeddings of images, so its autoencoder is an EmbeddingSpace
    prior: Plan
    # If the decoder draws smaller images than those of the corpus
    upsampler: UpsamplerPlan | None = None


@dataclass(frozen=True)
class UnCLIPPlan(Plan):
    """The plan of an unCLIP model: it is that of the decoder, whose network takes embeddings of images, but for
    measured.total_seconds and disk_bytes, which are of all parts."""

    parts: UnCLIPParts = field(kw_only=True)

    @property
    def corpus_size(self) -> tuple[int, int]:
        return self.model.size if self.parts.upsampler is None else self.parts.upsampler.model.size


PlanT = TypeVar("PlanT", bound=Plan)
