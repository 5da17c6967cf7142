"""What a run will do, decided once before its first step and kept in RUN/plan.json."""

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unspeckle import atomic, configuration
from unspeckle.errors import InputError
from unspeckle.networks import Config
from unspeckle.networks.autoencoder import IdentityConfig
from unspeckle.text.encoder import TextConfig
from unspeckle.training.options import TrainOptions

FILE = "plan.json"
FREE = ("plan_only", "json", "quiet", "folder", "out")  # options that may differ when a run goes on


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
    autoencoder: IdentityConfig
    schedule: dict[str, Any] = field(default_factory=lambda: {"kind": "flow"})
    prediction: str = "v"
    clock: str = "t"
    times: tuple[float, float] = (0.3, 1.0)  # logit-normal mean and deviation
    drop: float = 0.1  # share of captions dropped
    optimizer: str = "adamw"  # "muon": Muon on matrices and kernels, AdamW on the rest
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

    def save(self, run: Path) -> None:
        atomic.write(run / FILE, json.dumps(configuration.to_json(self), indent=1).encode())


def load(run: Path) -> Plan | None:
    """RUN's plan, or None where there is none. InputError where it cannot be read."""
    path = run / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give another --out, or delete this run") from error
    return configuration.from_json(Plan, values, str(path))


def asked(options: TrainOptions) -> dict[str, Any]:
    """The options that decide a run, as JSON values."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items() if k not in FREE}


def refuse_changes(plan: Plan, options: TrainOptions) -> None:
    """InputError naming the first option that differs from those the run began with."""
    for name, value in asked(options).items():
        began = plan.asked.get(name)
        if value != began:
            raise InputError(
                f"{options.out}: this run began with {flag(name, began) or 'no ' + flag(name, 0)}, not with "
                f"{flag(name, value) or 'none'}; give the same command to go on, or another --out"
            )


def flag(name: str, value: Any) -> str:
    """An option as it is typed, such as "--for 30m"; nothing where it was not given."""
    if value is None:
        return ""
    if name == "seconds":
        return f"--for {value:g}s"
    if name == "compile":
        return "--compile" if value else "--no-compile"
    typed = {"from_model": "from"}.get(name, name).replace("_", "-")
    return f"--{typed} {shlex.quote(str(value))}"
