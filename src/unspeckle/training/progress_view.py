"""Training as a person watches it: a live panel in a terminal, a line now and then elsewhere. All on standard error."""

import time
from datetime import datetime, timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from unspeckle.networks.autoencoder import IdentityConfig
from unspeckle.training.plan import LoraPlan, Plan
from unspeckle.training.stage import Report
from unspeckle.training.validation import Judged

LINE_EVERY = 30.0  # seconds, where there is no terminal


def spoken(seconds: float) -> str:
    """A duration as people say it: 42 s, 7 min, 1 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def paced(rate: float) -> str:
    """Pictures a second, or a minute where they are few."""
    return f"{rate:.0f} pictures/s" if rate >= 2 else f"{60 * rate:.1f} pictures/min"


def table(plan: Plan, done: int) -> Table:
    """The plan, before the first step or the one after `done`."""
    width, height = plan.size
    seconds = plan.seconds * min(1, (plan.steps - done) / max(1, plan.steps - plan.word_steps))  # the words' are quick
    end = datetime.now() + timedelta(seconds=seconds)
    work = f"{plan.device}, {plan.precision}, {'compiled' if plan.compile else 'eager'}"
    rows = {
        "works on": f"{work}, {paced(plan.rate)} measured",
        **({"reaches": _reached(plan)} if plan.peak else {}),
        "network": f"{plan.preset}, {plan.parameters / 1e6:.1f} M parameters{_words(plan)}",
        "denoises": _space(plan),
        "pictures": f"{width}x{height}, {plan.pictures:,} in {plan.steps:,} steps of {plan.batch}{_shown(plan)}",
        "optimiser": _optimiser(plan),
        "memory": f"{plan.memory / 2**30:.1f} GiB at the peak",
        "disk": f"{plan.disk / 2**20:,.0f} MiB in the run's folder",
        "time": f"{spoken(seconds)}, until about {end:%H:%M}" + (f", from step {done + 1:,}" if done else ""),
    }
    if plan.word_steps:
        rows["words"] = f"learn alone for the first {plan.word_steps:,} of these steps, which are quick"
    shown = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        shown.add_row(Text(name, style="bold"), value)
    return shown


def _reached(plan: Plan) -> str:
    return f"{plan.work * plan.rate / 1e12:.2f} of {plan.peak / 1e12:.2f} TFLOP/s measured, {plan.mfu:.0%} (MFU)"


def _optimiser(plan: Plan) -> str:
    if plan.optimizer == "muon":
        return f"Muon, rate {small(plan.muon_rate)}; AdamW, rate {small(plan.learning_rate)}, for what is no matrix"
    return f"AdamW, rate {small(plan.learning_rate)}"


def small(number: float) -> str:
    """As people write small numbers: 4e-3."""
    digits, _, power = f"{number:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def _words(plan: Plan) -> str:
    return " with its words" if not isinstance(plan, LoraPlan) or plan.words else ""


def _shown(plan: Plan) -> str:
    mirrored = ", half of them mirrored" if type(plan) is Plan and plan.mirror else ""
    return mirrored + (", those of rare captions more often" if plan.balance else "")


def _space(plan: Plan) -> str:
    if isinstance(plan.autoencoder, IdentityConfig):
        return "pixels"
    width, height = plan.extent
    learnt = f"learnt in {plan.latent_steps:,} steps before" if plan.latent_steps else "of the model it goes on from"
    return f"latents of {width}x{height}x{plan.autoencoder.channels}, {learnt}"


class View:
    """A context manager: `with View(plan, quiet) as view: view.show(report)`."""

    def __init__(self, plan: Plan, console: Console, quiet: bool) -> None:
        self.plan, self.console, self.quiet = plan, console, quiet
        self.held: Judged | None = None
        self.spoke = 0.0
        self.progress = Progress(
            BarColumn(bar_width=None), TextColumn("{task.percentage:3.0f} %"), TextColumn("{task.description}"),
            console=console, expand=True,
        )  # fmt: skip
        self.bar = self.progress.add_task("", total=plan.steps)
        self.live = Live(console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> "View":
        if self.console.is_terminal and not self.quiet:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(line, highlight=False, soft_wrap=True)

    def show(self, report: Report) -> None:
        if report.held is not None:
            self.held = report.held
        if self.quiet:
            return
        now = (
            ("words alone · " if report.words else "")
            + f"{paced(report.rate)} · loss {report.loss:.4f} · {spoken(report.left)} left"
            + (f" · {report.skipped} steps skipped" if report.skipped else "")
        )  # fmt: skip
        if self.live.is_started:
            self.progress.update(self.bar, completed=report.step, description=now)
            self.live.update(self._panel())
        elif report.held is not None or time.monotonic() - self.spoke > LINE_EVERY:
            self.spoke = time.monotonic()
            held = "" if report.held is None else f" · {report.held.said}"
            if report.rate:
                self.say(f"{100 * report.step / report.steps:3.0f} % · step {report.step:,} · {now}{held}")
        if report.samples is not None:
            self.say(f"samples: {report.samples}")

    def _panel(self) -> RenderableType:
        if self.held is None:
            return self.progress
        heading = "held-out error, of predicting the mean picture"
        levels = Table(self.held.heading, heading, box=None, expand=False)
        for level, share in zip(self.held.levels, self.held.shares, strict=True):
            bar = "█" * round(30 * min(share, 1.0))
            levels.add_row(level, f"{share:6.1%} {bar}")
        return Group(self.progress, Text(self.held.said), levels)
