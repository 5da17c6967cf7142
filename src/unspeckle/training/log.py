"""What a run tells afterwards: RUN/log.jsonl, a line a report, and TensorBoard events where that is installed."""

import json
import math
import time
from pathlib import Path
from typing import Any

from PIL import Image

from unspeckle.training.heldout import LEVELS
from unspeckle.training.loop import Report


class Log:
    """Appends; a line that a killed process left unfinished is ended first."""

    def __init__(self, run: Path) -> None:
        path = run / "log.jsonl"
        broken = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self.file = path.open("a", encoding="utf-8")
        if broken:
            self.file.write("\n")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.events: Any = None
        else:
            self.events = SummaryWriter(str(run / "tensorboard"))

    def write(self, report: Report, pictures: int) -> None:
        line: dict[str, Any] = {"time": round(time.time(), 1), "step": report.step, "pictures": pictures}
        numbers = {"loss": report.loss, "norm": report.norm, "rate": report.rate, "skipped": float(report.skipped)}
        if report.held is not None:
            numbers["held_out"] = report.held.total
            line["held_out_shares"] = dict(zip(map(str, LEVELS), report.held.shares, strict=True))
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
