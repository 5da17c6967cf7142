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
from unspeckle.networks import Config, build
from unspeckle.networks.autoencoder import IdentityConfig
from unspeckle.networks.latent_autoencoder import LatentConfig
from unspeckle.networks.lora import fresh
from unspeckle.networks.vae import VaeConfig
from unspeckle.objective import Objective
from unspeckle.schedule import SCHEDULES
from unspeckle.text.clip import ClipTextsConfig
from unspeckle.text.text_encoder import TextConfig
from unspeckle.training.options import Options

FILE = "plan.json"
OPTIMIZERS = ("muon", "adamw")
FREE = ("plan_only", "json", "quiet", "folder", "model", "corpus", "out")  # options that may differ when a run goes on


@dataclass(frozen=True)
class Plan:
    """Everything that decides the weights a run ends with, and what was measured to decide it."""

    asked: dict[str, Any]  # the options as given
    corpus: str  # its fingerprint
    size: tuple[int, int]  # width, height in pixels
    preset: str
    network: Config
    text: TextConfig
    steps: int
    batch: int
    seed: int
    device: str
    precision: str  # of the work; the weights themselves are float32: "bfloat16" or "float32"
    compile: bool
    threads: int  # of the CPU; another number adds in another order
    parameters: int  # network and text encoder
    rate: float  # pictures/s, measured
    seconds: float  # from start to end, as planned
    memory: int  # bytes at the peak of a step, measured
    disk: int  # bytes in RUN at the end
    autoencoder: IdentityConfig | LatentConfig
    work: float = 0.0  # FLOP of the network for a picture, there and back
    peak: float = 0.0  # FLOP/s of a large matrix product here, measured; 0 where nobody did
    mfu: float = 0.0  # the share of it that is reached at that rate
    latent_steps: int = 0  # in which the autoencoder is learnt, before the others
    word_steps: int = 0  # the first of `steps`, in which only the words learn, and the draft of what they mean
    schedule: dict[str, Any] = field(default_factory=lambda: {"kind": "flow"})
    prediction: str = "v"
    clock: str = "t"
    distribution: str = "logit_normal"  # of the times: see objective.py
    times: tuple[float, float] = (0.3, 1.0)  # mean and deviation of a distribution that has such
    weight: str = "v"  # of the error of x̂ at each time
    gamma: float = 5.0  # of the weights "min_snr" and "soft"
    drop: float = 0.1  # share of captions dropped
    mirror: bool = True  # half of the pictures whose words name no side
    balance: float = 0.0  # 0 to 1: how much more often pictures of rare captions are shown
    encode_once: bool = False  # each picture, and the latents are kept: see encoded.py
    optimizer: str = "adamw"  # of OPTIMIZERS. "muon": Muon on matrices and kernels, AdamW on the rest
    learning_rate: float = 1e-3  # AdamW's
    muon_rate: float = 4e-3
    weight_decay: float = 0.01
    warmup: int = 200  # steps
    decay: float = 0.4  # the last share of the steps, over which the rate falls to zero
    clip: float = 1.0  # largest norm of the gradient
    averages: tuple[float, ...] = (0.05, 0.1)  # relative widths of the EMAs
    average_every: int = 4  # steps

    @property
    def pictures(self) -> int:
        return self.steps * self.batch

    @property
    def extent(self) -> tuple[int, int]:
        """Width and height of x."""
        return self.size[0] // self.autoencoder.factor, self.size[1] // self.autoencoder.factor

    @property
    def rows(self) -> int:
        """Of the network in a step."""
        return self.batch

    def utilisation(self, rate: float) -> float:
        """The share of the device's peak that so many pictures/s make use of (the "MFU" of Chowdhery et al. 2022,
        appendix B), NaN where the peak was not measured."""
        return self.work * rate / self.peak if self.peak and self.work else math.nan

    def built(self) -> nn.Module:
        """The untrained network, with what learns in it."""
        return build(self.network)

    def denoiser(self, network: Network) -> Denoiser:
        """The network, with what the plan says of noise and predictions."""
        schedule = configuration.kind_from_json(SCHEDULES, self.schedule, "schedule")
        return Denoiser(network, schedule, self.prediction, self.clock)

    def objective(self) -> Objective:
        """What is minimised. InputError for a distribution or a weight that there is not."""
        return Objective(self.distribution, *self.times, loss_weighting=self.weight, gamma=self.gamma, caption_dropout=self.drop)

    def save(self, run: Path) -> None:
        atomic.write_bytes(run / FILE, json.dumps(configuration.to_json(self), indent=1).encode())


@dataclass(frozen=True)
class DistilPlan(Plan):
    """What a student will be taught. corpus is the fingerprint of its captions; a picture is one the teacher draws."""

    teacher: str = ""  # the hash of its model
    scale: float = 5.0  # of its guidance
    counts: tuple[int, ...] = (1, 2, 4)  # of steps that the student learns
    moves: int = 12  # of the teacher's drawings: a multiple of each count

    @property
    def rows(self) -> int:
        return self.batch * sum(self.counts)


@dataclass(frozen=True)
class LoraPlan(Plan):
    """What adapters of a Stable Diffusion will learn; parameters counts these. text and autoencoder are its own."""

    text: ClipTextsConfig  # type: ignore[assignment]
    autoencoder: VaeConfig  # type: ignore[assignment]
    distribution: str = "uniform"  # what its own training minimised: the plain error of what it predicts, at all its
    weight: str = "plain"  # times alike
    origin: str = ""  # the hash of its model
    rank: int = 8
    words: bool = False  # its text encoders learn too
    layout: str = "kohya"  # of the file
    scale: float = 7.5  # of the samples' guidance

    def built(self) -> nn.Module:
        network = build(self.network).requires_grad_(False)
        parts = {"network": network}
        fresh(parts, self.rank, self.seed).attach(parts)
        return network


AnyPlan = TypeVar("AnyPlan", bound=Plan)


def load(run: Path, kind: type[AnyPlan] = Plan) -> AnyPlan | None:  # type: ignore[assignment]
    """RUN's plan, or None where there is none. InputError where it cannot be read, or is of another kind."""
    found = either(run)
    if found is not None and type(found) is not kind:
        other = {DistilPlan: "distil", LoraPlan: "train --lora"}.get(type(found), "train")
        raise InputError(f"{run / FILE}: is the plan of a run of `{other}`; give another --out")
    return found


def either(run: Path) -> Plan | None:
    """The same, of whichever kind it is."""
    path = run / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give another --out, or delete this run") from error
    held = values if isinstance(values, dict) else {}
    kind = DistilPlan if "teacher" in held else LoraPlan if "rank" in held else Plan
    plan = configuration.from_json(kind, values, str(path))
    for name in ("steps", "batch", "threads", "warmup", "average_every"):
        if getattr(plan, name) < 1:
            raise InputError(
                f"{path}: field {name!r} must be at least 1, not {getattr(plan, name)}; give another --out"
            )
    if plan.optimizer not in OPTIMIZERS:
        raise InputError(f"{path}: optimizer {plan.optimizer!r} is unknown; give another --out")
    try:
        plan.objective()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return plan


_TYPED = {"from_model": "from", "words": "text-encoder", "seconds": "for"}  # fields whose options have other names


def asked(options: Options) -> dict[str, Any]:
    """The options that decide a run, as JSON values."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items() if k not in FREE}


def refuse_changes(plan: Plan, options: Options) -> None:
    """InputError naming the first option that differs from those the run began with."""
    for name, value in asked(options).items():
        began = plan.asked.get(name)
        if value != began:
            raise InputError(
                f"{options.out}: this run began with {flag(name, began) or 'no ' + option(name)}, not with "
                f"{flag(name, value) or 'none'}; give the same command to go on, or another --out"
            )


def flag(name: str, value: Any) -> str:
    """An option as it is typed, such as "--for 30m"; nothing where it was not given."""
    if value is None:
        return ""
    if name in ("compile", "mirror"):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, bool):
        return option(name) if value else ""
    return f"{option(name)} {f'{value:g}s' if name == 'seconds' else shlex.quote(str(value))}"


def option(name: str) -> str:
    """The option of that field, without a value: "--for"."""
    return "--" + _TYPED.get(name, name).replace("_", "-")
