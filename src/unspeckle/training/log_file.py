"""What a run tells afterwards: RUN/log.jsonl, a line a report, and TensorBoard events where that is installed."""

import json
import math
import time
from pathlib import Path
from typing import Any

from PIL import Image

from unspeckle import atomic
from unspeckle.training.stage import Report


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class Log:
    """Appends. Lines of steps that a killed process did but did not keep, or did not end, are dropped first."""

    def __init__(self, run: Path, done: int) -> None:
        run.mkdir(parents=True, exist_ok=True)
        path = run / "log.jsonl"
        if path.exists():
            kept = [line for line in path.read_text("utf-8").splitlines() if _step(line) <= done]
            atomic.write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
        self.file = path.open("a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.events: Any = None
        else:
            self.events = SummaryWriter(str(run / "tensorboard"), purge_step=done + 1)

    def write(self, report: Report, pictures: int) -> None:
        line: dict[str, Any] = {"time": round(time.time(), 1), "step": report.step, "pictures": pictures}
        numbers = {"loss": report.loss, "norm": report.norm, "rate": report.rate, "skipped": float(report.skipped)}
        numbers["mfu"] = report.utilisation
        if report.words:
            line["words"] = True
        if report.held is not None:
            numbers["held_out"] = report.held.total
            shares = zip(report.held.levels, report.held.shares, strict=True)
            line["held_out_shares"] = {level: round(share, 5) for level, share in shares}
        line |= {name: value for name, value in numbers.items() if math.isfinite(value)}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        if self.events is not None:
            for name, value in numbers.items():
                if math.isfinite(value):
                    self.events.add_scalar(name, value, report.step)
            if report.samples is not None:
                import numpy as np

                with Image.open(report.samples) as grid:
                    self.events.add_image("samples", np.asarray(grid.convert("RGB")), report.step, dataformats="HWC")

    def close(self) -> None:
        self.file.close()
        if self.events is not None:
            self.events.close()
