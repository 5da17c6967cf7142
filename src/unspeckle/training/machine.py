"""What this machine is, for somebody who has not seen it, such as the user of a notebook in the cloud."""

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from unspeckle import configuration
from unspeckle.model_io.device import default_device
from unspeckle.quantization.precision import fastest_precision
from unspeckle.training import measurement, memory

CPUINFO_FILE = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Machine:
    """A machine; in a notebook it shows itself as a table."""

    # Where models compute: "cuda" if there is a GPU, else "cpu"
    device: str
    # Of the GPU, or of the processor
    name: str
    # Bytes on the device that are free, None where that is not known
    free_memory_bytes: int | None
    # In which precision it computes fastest: bfloat16, float16 or float32
    precision: str
    # Floating-point operations per second of a large matrix product in that precision
    peak_flops: float
    # Threads of the processor that torch uses
    threads: int
    # Bytes free in the working folder
    free_disk_bytes: int

    def _repr_html_(self) -> str:
        kind = "GPU" if self.device.startswith("cuda") else "processor (no GPU: training takes longer)"
        free = "unknown" if self.free_memory_bytes is None else f"{self.free_memory_bytes / 2**30:.1f} GiB"
        rows = {
            "computes on": f"{kind} {self.name}",
            "memory free there": free,
            "fastest in": f"{self.precision}, {self.peak_flops / 1e12:.2f} TFLOP/s measured",
            "processor threads": self.threads,
            "disk free": f"{self.free_disk_bytes / 2**30:.0f} GiB",
            "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        }
        return configuration.to_html("This machine", rows)


def machine() -> Machine:
    """This machine, some of it measured in about a second."""
    device = default_device()
    precision = fastest_precision(device)
    return Machine(
        device=device,
        name=torch.cuda.get_device_name(device) if device == "cuda" else processor_name(),
        free_memory_bytes=memory.free_memory_bytes(device),
        precision=precision,
        peak_flops=measurement.measure_peak_flops(device, precision, measurement.PEAK_FLOPS_SECONDS),
        threads=torch.get_num_threads(),
        free_disk_bytes=shutil.disk_usage(Path.cwd()).free,
    )


def processor_name() -> str:
    """As the system calls it."""
    try:
        lines = CPUINFO_FILE.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
