"""Is anything slower than in another checkout? Four times, the two versions in turns in one run.

    git worktree add /tmp/before b242062
    python benchmarks/compare_speed.py /tmp/before --rounds 5

    loading     `import unspeckle` and unspeckle.load() of the embedded model in a fresh process that has imported torch
    cold draw   `unspeckle draw "a frog on stilts"`, the whole process
    SD step     one step with guidance of a Stable Diffusion 1.5 U-Net of random weights at 512 × 512 in bfloat16
    training    a step of the preset micro at 64 × 64, batches of 16, in bfloat16

Prints the median seconds of each and the median of the ratios of neighboring runs (after / before).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOADING = (
    "import time, torch; t = time.perf_counter(); import unspeckle; unspeckle.load(); print(time.perf_counter() - t)"
)
COLD_DRAW = ["-m", "unspeckle", "draw", "a frog on stilts", "--quiet", "--out"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("before", type=Path, help="a checkout of the version before")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="loading,cold draw,SD step,training")
    parser.add_argument("--worker", choices=("SD step", "training"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(args.worker)
        return
    roots = {"before": args.before.resolve(), "after": ROOT}
    print(f"{'':10s} {'before':>9s} {'after':>9s}   after / before (median of pairs, least to most)")
    for name in args.only.split(","):
        seconds = measure(name, roots, args.rounds)
        ratios = sorted(after / before for before, after in zip(seconds["before"], seconds["after"], strict=True))
        medians = (statistics.median(seconds[version]) for version in roots)
        before, after = medians
        spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"{name:10s} {before:9.3f} {after:9.3f}   {spread}", flush=True)


def measure(name: str, roots: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    """Seconds of each version, in turns; a first round is not counted."""
    seconds: dict[str, list[float]] = {version: [] for version in roots}
    servers = (
        {} if name in ("loading", "cold draw") else {v: start(name, root, roots["before"]) for v, root in roots.items()}
    )
    with tempfile.TemporaryDirectory() as scratch:
        for count in range(rounds + 1):
            for version, root in roots.items():
                taken = ask(servers[version]) if servers else run(name, root, scratch)
                if count:
                    seconds[version].append(taken)
    for server in servers.values():
        server.stdin.close()
        server.wait()
    return seconds


def run(name: str, root: Path, scratch: str) -> float:
    import time

    arguments = ["-c", LOADING] if name == "loading" else [*COLD_DRAW, scratch]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], env=environment(root), capture_output=True, text=True, check=True
    )
    return float(done.stdout) if name == "loading" else time.perf_counter() - began


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root / 'benchmarks'}"}


def start(name: str, root: Path, before: Path) -> Any:
    command = [sys.executable, __file__, str(before), "--worker", name]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(root), **pipes)


def ask(server: Any) -> float:
    server.stdin.write("\n")
    server.stdin.flush()
    return float(json.loads(server.stdout.readline()))


def serve(name: str) -> None:
    """In a process of one version: the seconds of one step for each line that comes in."""
    import time

    step = sd_step() if name == "SD step" else training_step()
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(json.dumps(time.perf_counter() - began), flush=True)


def sd_step() -> Any:
    """The U-Net of Stable Diffusion 1.5, ready to draw in bfloat16, on a batch of two."""
    import torch

    from unspeckle import presets

    try:
        from unspeckle.denoiser import Conditioning
        from unspeckle.kernels.inference import cast_for_inference
        from unspeckle.networks import build_network

        config = presets.STABLE_DIFFUSION_CONFIGS["1.5"]
    except ImportError:  # version 0.1
        from unspeckle.networks.packing import lowered as cast_for_inference

        from unspeckle.denoiser import Given as Conditioning
        from unspeckle.networks import build as build_network

        config = presets.STABLE_DIFFUSION["1.5"]
    torch.manual_seed(0)
    network = build_network(config).eval().requires_grad_(False)
    cast_for_inference(network, torch.bfloat16)
    x, t = torch.randn(2, 4, 64, 64).bfloat16(), torch.full((2,), 500.0)
    prepared = network.prepare(Conditioning(torch.randn(2, 77, 768).bfloat16()))

    @torch.no_grad()
    def step() -> None:
        network(x, t, prepared)

    return step


def training_step() -> Any:
    """A step of the version's own benchmarks/training_step.py, on its own batches."""
    # Python looks into this script's own folder first, which has today's benchmark; `environment` names the version's.
    sys.path.append(sys.path.pop(0))
    import training_step as bench

    from unspeckle.corpus.batches import batches
    from unspeckle.text.tokenizer import Tokenizer

    folder = tempfile.TemporaryDirectory()
    opened = bench.corpus(Path(folder.name), 64, 0, 128)
    if hasattr(Tokenizer, "train"):
        from unspeckle.networks.autoencoder import PixelAutoencoder, PixelAutoencoderConfig

        tokenizer, autoencoder = Tokenizer.train(opened.training_captions()), PixelAutoencoder(PixelAutoencoderConfig())
    else:  # version 0.1
        from unspeckle.networks.autoencoder import Identity, IdentityConfig

        tokenizer, autoencoder = Tokenizer.learn(opened.captions()), Identity(IdentityConfig())
    plan = bench.plan_for("micro", 64, 16, tokenizer)
    train, data = bench.ours(plan, tokenizer, autoencoder), batches(opened.training, 16, seed=0, start=0)

    def step() -> None:
        train(next(data))

    step.folder = folder  # type: ignore[attr-defined]
    return step


if __name__ == "__main__":
    main()
