"""`unspeckle convert`: a model from one layout to another, and what that changed."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.export import unet_folder
from unspeckle.formats.stable_diffusion import writing
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.model import build_stable_diffusion_model
from unspeckle.model import Model
from unspeckle.model_io.loading import load, open_checkpoint
from unspeckle.model_io.model_file import UnspeckleCheckpoint

SAME, DIFFERENT = 0, 1


def run(source: str | None, target: Path, to: str | None, prediction: str | None, trust_pickle: bool) -> int:
    """Write `target` and compare. to: "onnx" or "openvino", a folder of graphs; None: a single file if it is named
    .safetensors, else a folder of diffusers. source None: the model inside the package. Returns the exit code: 1 where
    what was written does not compute the same."""
    if to is not None:
        from unspeckle.commands import export

        runtime = export.find_runtime(to)
        writing.require_empty_folder(target)
        worst = export.run(open_source(source, prediction, trust_pickle), target, runtime)
        return SAME if worst <= export.TOLERANCE else DIFFERENT
    if source is None:
        raise InputError("convert: wants A and B; the model inside is written with --to onnx or --to openvino")
    read = open_source(source, prediction, trust_pickle)
    if not isinstance(read, StableDiffusionCheckpoint):
        worst = unet_folder.write_unet_folder(read, source, target)
        print(target.absolute())
        return SAME if worst <= 1e-5 else DIFFERENT
    if target.exists() and target.resolve() == Path(source).resolve():
        raise InputError(f"{target}: is the source itself; give another name")
    (writing.write_single_file if target.suffix == ".safetensors" else writing.write_diffusers_folder)(read, target)
    again = open_checkpoint(target, vocabulary=read.tokenizer.bpe)
    assert isinstance(again, StableDiffusionCheckpoint)
    print(target.absolute())
    worst = max(report_differences(read, again))
    return SAME if worst <= 1e-5 else DIFFERENT


def open_source(source: str | None, prediction: str | None, trust_pickle: bool) -> StableDiffusionCheckpoint | Model:
    """The checkpoint to convert: a Stable Diffusion as it lies there, or a model of ours."""
    if source is None:
        return load()
    checkpoint = open_checkpoint(source, prediction, trust_pickle)
    return checkpoint.build() if isinstance(checkpoint, UnspeckleCheckpoint) else checkpoint


def report_differences(one: StableDiffusionCheckpoint, other: StableDiffusionCheckpoint) -> list[float]:
    """Says of each part how far the two are apart, relative to what the first computes."""
    equal = sum(is_bit_equal(tensor, other.tensors.get(name)) for name, tensor in one.tensors.items())
    print(f"{equal} of {len(one.tensors)} tensors bit-equal when read back", file=sys.stderr)
    errors = []
    theirs = sample_outputs(other)
    for name, expected in sample_outputs(one).items():
        errors.append(writing.relative_difference(theirs[name], expected))
        print(f"{name}: relative difference {errors[-1]:.1e}", file=sys.stderr)
    return errors


def is_bit_equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.dtype == other.dtype and torch.equal(one, other)


@torch.no_grad()
def sample_outputs(checkpoint: StableDiffusionCheckpoint) -> dict[str, Tensor]:
    """What each part makes of the same small question, in float32."""
    model = build_stable_diffusion_model(checkpoint)
    generator = torch.Generator().manual_seed(0)
    sides = [8 * checkpoint.unet_config.size_multiple] * 2
    x = torch.randn(1, checkpoint.unet_config.channels, *sides, generator=generator)
    words = model.text_encoder(model.tokenizer.encode(["a photograph of an astronaut riding a horse"]))
    wide = sides[0] * model.autoencoder.downsampling_factor
    given = model.add_conditioning(words, positive=True, guidance_scale=7.0, size=(wide, wide))
    return {
        "text": words.tokens,
        "network": model.denoiser(x, torch.tensor([0.6]), given),
        "autoencoder": model.autoencoder.decode(x[:, :, :8, :8]),
    }
