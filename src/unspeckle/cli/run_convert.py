"""What `unspeckle convert` does: write a model in another layout, and compare what was written with the model."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.export import graph_folder, unet_folder
from unspeckle.formats.stable_diffusion import writing
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.model import build_stable_diffusion_model
from unspeckle.model import Model
from unspeckle.model_io.loading import load, open_checkpoint
from unspeckle.model_io.model_file import UnspeckleCheckpoint

EXIT_SAME, EXIT_DIFFERENT = 0, 1
# Largest relative difference at which two networks still count as the same
WEIGHTS_TOLERANCE = 1e-5
GRAPH_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ConvertOptions:
    """The options of `unspeckle convert`."""

    # A file, a RUN folder, or a Stable Diffusion checkpoint; None is the model inside the package.
    source: str | None
    # A file that ends in .safetensors, or a new folder.
    target: Path
    # "onnx" or "openvino" writes graphs; None writes the layout of Stable Diffusion.
    to: str | None = None
    # "eps" or "v", for a checkpoint that does not say what its network predicts.
    prediction: str | None = None
    # Whether the tensors of a pickle may be read.
    trust_pickle: bool = False


def run_convert(options: ConvertOptions) -> int:
    """Write the target and compare it with the source; returns the exit code, 1 where they do not compute the same.

    InputError where the options do not allow it."""
    if options.to is not None:
        return _write_graphs(options, options.to)
    if options.source is None:
        raise InputError(
            "MODEL: is missing; without it, the model inside the package is written with --to onnx or openvino"
        )
    source, target = open_source(options), options.target
    if isinstance(source, Model):
        difference = unet_folder.write_unet_folder(source, options.source, target)
        print("only the network is written: diffusers has no such text encoder", file=sys.stderr)
        print("the network's timestep is 1000 t", file=sys.stderr)
        print(f"network: relative difference {difference:.1e}", file=sys.stderr)
        print(target.absolute())
        return _exit_code(difference, WEIGHTS_TOLERANCE)
    if target.exists() and target.resolve() == Path(options.source).resolve():
        raise InputError(f"{target}: is the source itself; give another name")
    write = writing.write_single_file if target.suffix == ".safetensors" else writing.write_diffusers_folder
    write(source, target)
    reloaded = open_checkpoint(target, bpe=source.tokenizer.bpe)
    assert isinstance(reloaded, StableDiffusionCheckpoint)
    print(target.absolute())
    return _exit_code(max(print_differences(source, reloaded)), WEIGHTS_TOLERANCE)


def _write_graphs(options: ConvertOptions, to: str) -> int:
    """Write a folder of graphs for another program, and run them there."""
    runtime = graph_folder.find_runtime(to)
    writing.require_empty_folder(options.target)
    differences = graph_folder.write_graph_folder(open_source(options), options.target, runtime)
    worst = 0.0
    print(options.target.absolute())
    for name, difference in differences:
        print(f"{name}: relative difference {difference:.1e}", file=sys.stderr)
        worst = max(worst, difference)
    return _exit_code(worst, GRAPH_TOLERANCE)


def _exit_code(difference: float, tolerance: float) -> int:
    return EXIT_SAME if difference <= tolerance else EXIT_DIFFERENT


def open_source(options: ConvertOptions) -> StableDiffusionCheckpoint | Model:
    """What is to be converted: a Stable Diffusion checkpoint as it is stored, or a model of ours."""
    if options.source is None:
        return load(prediction=options.prediction)
    checkpoint = open_checkpoint(options.source, options.prediction, options.trust_pickle)
    return checkpoint.build() if isinstance(checkpoint, UnspeckleCheckpoint) else checkpoint


def print_differences(source: StableDiffusionCheckpoint, reloaded: StableDiffusionCheckpoint) -> list[float]:
    """Print how many tensors are equal, and how far the outputs of each part differ, relative to the source's."""
    equal = sum(is_bit_equal(tensor, reloaded.tensors.get(name)) for name, tensor in source.tensors.items())
    print(f"{equal} of {len(source.tensors)} tensors bit-equal when read back", file=sys.stderr)
    differences = []
    outputs = sample_outputs(reloaded)
    for name, expected in sample_outputs(source).items():
        differences.append(writing.relative_difference(outputs[name], expected))
        print(f"{name}: relative difference {differences[-1]:.1e}", file=sys.stderr)
    return differences


def is_bit_equal(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors have the same type and values."""
    return other is not None and one.dtype == other.dtype and torch.equal(one, other)


@torch.no_grad()
def sample_outputs(checkpoint: StableDiffusionCheckpoint) -> dict[str, Tensor]:
    """The outputs of the text encoders, the network and the decoder for one small input, in float32."""
    model = build_stable_diffusion_model(checkpoint)
    generator = torch.Generator().manual_seed(0)
    network_config = checkpoint.parts["network"].config
    side = 8 * network_config.size_multiple
    x = torch.randn(1, network_config.channels, side, side, generator=generator)
    text = model.text_encoder(model.tokenizer.encode(["a photograph of an astronaut riding a horse"]))
    size = (side * model.autoencoder.downsampling_factor,) * 2
    conditioning = model.add_conditioning(text, positive=True, guidance_scale=7.0, size=size)
    return {
        "text": text.tokens,
        "network": model.denoiser(x, torch.tensor([0.6]), conditioning),
        "autoencoder": model.autoencoder.decode(x[:, :, :8, :8]),
    }
