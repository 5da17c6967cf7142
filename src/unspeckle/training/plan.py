"""What a run will do, decided once before its first step and kept in RUN/plan.json."""

import json
import math
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from unspeckle import atomic, configuration
from unspeckle.denoiser import Denoiser, Network
from unspeckle.errors import InputError
from unspeckle.networks import NetworkConfig, build_network
from unspeckle.networks.autoencoder import PixelAutoencoderConfig
from unspeckle.networks.latent_autoencoder import LatentAutoencoderConfig
from unspeckle.networks.lora import init_adapters
from unspeckle.networks.vae import VAEConfig
from unspeckle.objective import Objective
from unspeckle.schedule import SCHEDULES
from unspeckle.text.clip import CLIPTextEncodersConfig
from unspeckle.text.text_encoder import TextEncoderConfig
from unspeckle.training.options import Options

PLAN_FILE = "plan.json"
OPTIMIZERS = ("muon", "adamw")
CHANGEABLE_OPTIONS = (
    "plan_only",
    "json",
    "quiet",
    "folder",
    "model",
    "corpus",
    "out",
)  # options that may differ when a run goes on


@dataclass(frozen=True)
class Plan:
    """Everything that decides the weights a run ends with, and what was measured to decide it."""

    options: dict[str, Any]  # the options as given
    corpus_fingerprint: str  # its fingerprint
    size: tuple[int, int]  # width, height in pixels
    preset: str
    network_config: NetworkConfig
    text_config: TextEncoderConfig
    steps: int
    batch_size: int
    seed: int
    device: str
    precision: str  # of the work; the weights themselves are float32: "bfloat16" or "float32"
    compile: bool
    threads: int  # of the CPU; another number adds in another order
    parameter_count: int  # network and text encoder
    images_per_second: float  # pictures/s, measured
    total_seconds: float  # from start to end, as planned
    memory_bytes: int  # bytes at the peak of a step, measured
    disk_bytes: int  # bytes in RUN at the end
    autoencoder_config: PixelAutoencoderConfig | LatentAutoencoderConfig
    flops_per_image: float = 0.0  # FLOP of the network for a picture, there and back
    peak_flops: float = 0.0  # FLOP/s of a large matrix product here, measured; 0 where nobody did
    mfu: float = 0.0  # the share of it that is reached at that rate
    autoencoder_steps: int = 0  # in which the autoencoder is learnt, before the others
    text_steps: int = 0  # the first of `steps`, in which only the words learn, and the draft of what they mean
    schedule: dict[str, Any] = field(default_factory=lambda: {"kind": "flow"})
    prediction: str = "v"
    time_conditioning: str = "t"
    time_distribution: str = "logit_normal"  # of the times: see objective.py
    time_mean_std: tuple[float, float] = (0.3, 1.0)  # mean and deviation of a distribution that has such
    loss_weighting: str = "v"  # of the error of x̂ at each time
    snr_gamma: float = 5.0  # of the weights "min_snr" and "soft"
    caption_dropout: float = 0.1  # share of captions dropped
    flip: bool = True  # half of the pictures whose words name no side
    balance: float = 0.0  # 0 to 1: how much more often pictures of rare captions are shown
    cache_latents: bool = False  # each picture, and the latents are kept: see encoded.py
    optimizer: str = "adamw"  # of OPTIMIZERS. "muon": Muon on matrices and kernels, AdamW on the rest
    learning_rate: float = 1e-3  # AdamW's
    muon_learning_rate: float = 4e-3
    weight_decay: float = 0.01
    warmup_steps: int = 200  # steps
    decay_fraction: float = 0.4  # the last share of the steps, over which the rate falls to zero
    max_grad_norm: float = 1.0  # largest norm of the gradient
    ema_widths: tuple[float, ...] = (0.05, 0.1)  # relative widths of the EMAs
    ema_every: int = 4  # steps

    @property
    def total_images(self) -> int:
        return self.steps * self.batch_size

    @property
    def input_size(self) -> tuple[int, int]:
        """Width and height of x."""
        return self.size[0] // self.autoencoder_config.downsampling_factor, self.size[
            1
        ] // self.autoencoder_config.downsampling_factor

    @property
    def network_batch_size(self) -> int:
        """Of the network in a step."""
        return self.batch_size

    def compute_mfu(self, images_per_second: float) -> float:
        """The share of the device's peak that so many pictures/s make use of (the "MFU" of Chowdhery et al. 2022,
        appendix B), NaN where the peak was not measured."""
        return (
            self.flops_per_image * images_per_second / self.peak_flops
            if self.peak_flops and self.flops_per_image
            else math.nan
        )

    def build_network(self) -> nn.Module:
        """The untrained network, with what learns in it."""
        return build_network(self.network_config)

    def build_denoiser(self, network: Network) -> Denoiser:
        """The network, with what the plan says of noise and predictions."""
        schedule = configuration.kind_from_json(SCHEDULES, self.schedule, "schedule")
        return Denoiser(network, schedule, self.prediction, self.time_conditioning)

    def build_objective(self) -> Objective:
        """What is minimised. InputError for a distribution or a weight that there is not."""
        return Objective(
            self.time_distribution,
            *self.time_mean_std,
            loss_weighting=self.loss_weighting,
            gamma=self.snr_gamma,
            caption_dropout=self.caption_dropout,
        )

    def save(self, run_folder: Path) -> None:
        atomic.write_bytes(run_folder / PLAN_FILE, json.dumps(configuration.to_json(self), indent=1).encode())


@dataclass(frozen=True)
class DistilPlan(Plan):
    """What a student will be taught. corpus is the fingerprint of its captions; a picture is one the teacher draws."""

    teacher_hash: str = ""  # the hash of its model
    guidance_scale: float = 5.0  # of its guidance
    step_counts: tuple[int, ...] = (1, 2, 4)  # of steps that the student learns
    teacher_steps: int = 12  # of the teacher's drawings: a multiple of each count

    @property
    def network_batch_size(self) -> int:
        return self.batch_size * sum(self.step_counts)


@dataclass(frozen=True)
class LoraPlan(Plan):
    """What adapters of a Stable Diffusion will learn; parameters counts these. text and autoencoder are its own."""

    text_config: CLIPTextEncodersConfig  # type: ignore[assignment]
    autoencoder_config: VAEConfig  # type: ignore[assignment]
    time_distribution: str = (
        "uniform"  # what its own training minimised: the plain error of what it predicts, at all its
    )
    loss_weighting: str = "plain"  # times alike
    base_hash: str = ""  # the hash of its model
    rank: int = 8
    train_text_encoder: bool = False  # its text encoders learn too
    layout: str = "kohya"  # of the file
    guidance_scale: float = 7.5  # of the samples' guidance

    def build_network(self) -> nn.Module:
        network = build_network(self.network_config).requires_grad_(False)
        modules = {"network": network}
        init_adapters(modules, self.rank, self.seed).attach(modules)
        return network


PlanT = TypeVar("PlanT", bound=Plan)


def load_plan(run_folder: Path, plan_class: type[PlanT] = Plan) -> PlanT | None:  # type: ignore[assignment]
    """RUN's plan, or None where there is none. InputError where it cannot be read, or is of another kind."""
    plan = load_any_plan(run_folder)
    if plan is not None and type(plan) is not plan_class:
        command = {DistilPlan: "distil", LoraPlan: "train --lora"}.get(type(plan), "train")
        raise InputError(f"{run_folder / PLAN_FILE}: is the plan of a run of `{command}`; give another --out")
    return plan


def load_any_plan(run_folder: Path) -> Plan | None:
    """The same, of whichever kind it is."""
    path = run_folder / PLAN_FILE
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give another --out, or delete this run") from error
    fields = data if isinstance(data, dict) else {}
    plan_class = DistilPlan if "teacher_hash" in fields else LoraPlan if "rank" in fields else Plan
    plan = configuration.from_json(plan_class, data, str(path))
    for name in ("steps", "batch_size", "threads", "warmup_steps", "ema_every"):
        if getattr(plan, name) < 1:
            raise InputError(
                f"{path}: field {name!r} must be at least 1, not {getattr(plan, name)}; give another --out"
            )
    if plan.optimizer not in OPTIMIZERS:
        raise InputError(f"{path}: optimizer {plan.optimizer!r} is unknown; give another --out")
    try:
        plan.build_objective()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return plan


_OPTION_NAMES = {
    "from_model": "from",
    "seconds": "for",
}  # fields whose options have other names


def options_to_json(options: Options) -> dict[str, Any]:
    """The options that decide a run, as JSON values."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items() if k not in CHANGEABLE_OPTIONS}


def check_options_unchanged(plan: Plan, options: Options) -> None:
    """InputError naming the first option that differs from those the run began with."""
    for name, value in options_to_json(options).items():
        original = plan.options.get(name)
        if value != original:
            raise InputError(
                f"{options.out}: this run began with {format_option(name, original) or 'no ' + option_name(name)}, not with "
                f"{format_option(name, value) or 'none'}; give the same command to go on, or another --out"
            )


def format_option(name: str, value: Any) -> str:
    """An option as it is typed, such as "--for 30m"; nothing where it was not given."""
    if value is None:
        return ""
    if name in ("compile", "flip"):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, bool):
        return option_name(name) if value else ""
    return f"{option_name(name)} {f'{value:g}s' if name == 'seconds' else shlex.quote(str(value))}"


def option_name(name: str) -> str:
    """The option of that field, without a value: "--for"."""
    return "--" + _OPTION_NAMES.get(name, name).replace("_", "-")
