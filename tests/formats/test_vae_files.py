"""Autoencoders by themselves, in every layout, and tiny ones against diffusers' AutoencoderTiny."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import stable_diffusion_files
import unspeckle
from closeness import relative_error
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion import add_ons, vae_files, writing
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.metadata import image_metadata
from unspeckle.generation.pipeline import steps
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import open_checkpoint
from unspeckle.model_io.precision import set_precision
from unspeckle.output.png import read_png

PREFIX = "first_stage_model."


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    """A folder "pipe" and a single file of the same; "other", another autoencoder as a folder, and "tiny"."""
    root = tmp_path_factory.mktemp("vae")
    stable_diffusion_files.tiny_pipeline("1", root / "scratch").save_pretrained(root / "pipe")
    pipe = stable_diffusion_files.tiny_pipeline("1", root / "scratch", seed=5)
    pipe.save_pretrained(root / "whole")
    pipe.vae.save_pretrained(root / "other")
    found = open_checkpoint(root / "whole")
    assert found is not None
    for file in (root / "pipe" / "tokenizer").iterdir():
        shutil.copy(file, root / file.name)
    writing.write_single_file(found, root / "whole.safetensors")
    tiny().save_pretrained(root / "tiny")
    return root


def tiny(levels: int = 2, **changes: Any) -> Any:
    torch.manual_seed(2)
    config = {
        "encoder_block_out_channels": (16,) * levels, "decoder_block_out_channels": (16,) * levels,
        "num_encoder_blocks": (1, 3, 3, 3)[:levels], "num_decoder_blocks": (3, 3, 3, 1)[-levels:],
    }  # fmt: skip
    return stable_diffusion_files.randomize_weights(diffusers.AutoencoderTiny(**{**config, **changes}))


def originals(peer: Any, folder: Path) -> Path:
    """The two files of the original, by its count of layers: its decoder begins with a clamp."""
    folder.mkdir(exist_ok=True)
    held: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "decoder": {}}
    for name, tensor in peer.state_dict().items():
        half, _, number, rest = name.split(".", 3)
        held[half][f"{int(number) + (half == 'decoder')}.{rest}"] = tensor
    for half, tensors in held.items():
        save_file(tensors, folder / f"taesd_{half}.safetensors")
    return folder / "taesd_decoder.safetensors"


@torch.no_grad()
def assert_same(ours: Any, theirs: Any, scale: float, encodes: bool = True) -> None:
    torch.manual_seed(0)
    z, x = torch.randn(2, 4, 8, 12), torch.rand(2, 3, 16, 24) * 2 - 1
    assert relative_error(ours.decode(z), theirs.decode(z / scale).sample) <= 1e-4
    if encodes:
        encoded = theirs.encode(x)
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
        assert relative_error(ours.encode(x), latents * scale) <= 1e-4


@pytest.mark.parametrize("layout", ["folder", "pipeline", "file beside its config", "bare", "prefix", "checkpoint"])
def test_every_layout(layout: str, place: Path, tmp_path: Path) -> None:
    model, whole = unspeckle.load(place / "pipe"), place / "whole.safetensors"
    held = {name: tensor for name, tensor in load_file(whole).items() if name.startswith(PREFIX)}
    bare = {name.removeprefix(PREFIX): tensor for name, tensor in held.items()}
    made = tmp_path / "vae.safetensors"
    save_file({"bare": bare, "prefix": held}.get(layout, bare), made)
    path = {
        "folder": place / "other", "pipeline": place / "whole", "checkpoint": whole,
        "file beside its config": place / "other" / "diffusion_pytorch_model.safetensors",
    }.get(layout, made)  # fmt: skip
    before = model.hash
    add_ons.apply_add_ons(model, autoencoder=path)
    theirs = diffusers.AutoencoderKL.from_pretrained(place / "other")
    assert_same(model.autoencoder, theirs, 0.18215)
    assert (
        model.hash == add_ons.apply_add_ons(unspeckle.load(place / "pipe"), autoencoder=place / "other").hash != before
    )


@pytest.mark.parametrize(
    ("layout", "levels"), [("diffusers", 2), ("diffusers", 4), ("original", 4), ("decoder alone", 4)]
)
def test_a_tiny_one_is_that_of_diffusers(layout: str, levels: int, place: Path, tmp_path: Path) -> None:
    model = unspeckle.load(place / "pipe")
    model.autoencoder.downsampling_factor = 2 ** (levels - 1)
    theirs = tiny(levels)
    if layout == "diffusers":
        theirs.save_pretrained(tmp_path / "tiny")
        path = tmp_path / "tiny"
    else:
        path = originals(theirs, tmp_path / "files")
        if layout == "decoder alone":
            (tmp_path / "files" / "taesd_encoder.safetensors").unlink()
    ours = vae_files.read_vae(path, model)
    assert_same(ours, theirs, 1.0, encodes=layout != "decoder alone")
    if layout == "decoder alone":
        with pytest.raises(InputError, match="only decodes"):
            ours.encode(torch.zeros(1, 3, 16, 16))


def test_a_drawing_through_a_tiny_one_is_that_of_diffusers(place: Path) -> None:
    pipe, model = stable_diffusion_files.load_pipeline(place / "pipe"), unspeckle.load(place / "pipe")
    pipe.vae = tiny()
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    asked = {"num_inference_steps": 5, "height": 16, "width": 16, "guidance_scale": 4.0, "output_type": "np"}
    expected = pipe("a frog", generator=torch.Generator().manual_seed(7), **asked).images[0]
    shown = replace(model, autoencoder=add_ons.read_preview_autoencoder(model, place / "tiny"))
    *_, last = steps(model, Request("a frog", seed=7, steps=5, sampler="ddim", size=16, guidance_scale=4.0))
    found = torch.frombuffer(bytearray(decode_to_images(shown, last.x)[0].tobytes()), dtype=torch.uint8).view(16, 16, 3)
    assert (found / 255 - torch.from_numpy(expected)).abs().mean() <= 1 / 255 and expected.std() > 0.05


def test_a_drawing_through_a_tiny_one_in_bfloat16(place: Path) -> None:
    """It has no normalisation, so all of it is packed."""
    exact = add_ons.apply_add_ons(unspeckle.load(place / "pipe"), autoencoder=place / "tiny").autoencoder
    low = set_precision(
        add_ons.apply_add_ons(unspeckle.load(place / "pipe"), autoencoder=place / "tiny"), "bfloat16"
    ).autoencoder
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for one, other in ((low.decode(z), exact.decode(z)), (low.encode(z[:, :3]), exact.encode(z[:, :3]))):
            assert one.dtype == torch.float32 and 0 < (one - other).norm() < 0.03 * other.norm()


def test_the_command_line(place: Path, tmp_path: Path, capsys: Any) -> None:
    asked = ["draw", "a frog", "--model", str(place / "pipe"), "--steps", "2", "--size", "16", "--quiet"]
    asked += ["--out", str(tmp_path)]
    plain = _drawn(asked, capsys)
    shown = _drawn([*asked, "--preview", str(place / "tiny")], capsys)
    other = _drawn([*asked, "--vae", str(place / "other")], capsys)
    assert read_png(plain).tobytes() == read_png(shown).tobytes() != read_png(other).tobytes()
    assert (
        image_metadata(read_png(plain))["model"]
        == image_metadata(read_png(shown))["model"]
        != image_metadata(read_png(other))["model"]
    )
    again = ["replay", str(other), "--model", str(place / "pipe"), "--quiet"]
    assert main([*again, "--vae", str(place / "other")]) == 0 and "difference: 0" in capsys.readouterr().out
    assert main(again) == 2 and "was drawn by the model" in capsys.readouterr().err
    more = ["--vae", str(place / "other"), "--guide", str(place / "pipe")]  # which gets that one too
    guided = _drawn([*asked, *more, "--seed", "1"], capsys)
    assert main(["replay", str(guided), *again[2:], *more]) == 0 and "difference: 0" in capsys.readouterr().out


def _drawn(arguments: list[str], capsys: Any) -> Path:
    assert main(arguments) == 0
    return Path(capsys.readouterr().out.strip())


def test_what_does_not_fit_is_one_line(place: Path, tmp_path: Path) -> None:
    model = unspeckle.load(place / "pipe")
    bare = {
        k.removeprefix(PREFIX): t for k, t in load_file(place / "whole.safetensors").items() if k.startswith(PREFIX)
    }
    lone = tmp_path / "lone" / "diffusion.safetensors"
    lone.parent.mkdir()
    shutil.copy(place / "other" / "diffusion_pytorch_model.safetensors", lone)
    odd = tmp_path / "odd"
    shutil.copytree(place / "tiny", odd)
    said = json.loads((odd / "config.json").read_text())
    files = {
        "lacks the tensor": {k: t for k, t in bare.items() if k != "decoder.conv_out.bias"},
        "has a spare tensor 'decoder.more'": {**bare, "decoder.more": torch.zeros(1)},
        "not finite": {**bare, "quant_conv.bias": bare["quant_conv.bias"] * torch.nan},
        r"lacks the tensor '\S*encoder": {"x": torch.zeros(1)},
        "is no tiny decoder": {"0.weight": torch.zeros(4, 4, 3, 3)},
    }
    for says, held in files.items():
        save_file(held, tmp_path / "vae.safetensors")
        with pytest.raises(InputError, match=says) as error:
            vae_files.read_vae(tmp_path / "vae.safetensors", model)
        assert "\n" not in str(error.value)
    for says, path in {
        "config.json beside it": lone,
        "no such file": tmp_path / "none",
        "config.json: is not": tmp_path,
    }.items():
        with pytest.raises(InputError, match=says):
            vae_files.read_vae(path, model)
    for key, junk in {
        "num_decoder_blocks": [1, -1],
        "act_fn": "mish",
        "latent_channels": "x",
        "scaling_factor": "x",
    }.items():
        (odd / "config.json").write_text(json.dumps({**said, key: junk}))
        with pytest.raises(InputError):
            vae_files.read_vae(odd, model)
    model.autoencoder.downsampling_factor = 8
    with pytest.raises(InputError, match="has 4 channels at 1/2 of a side"):
        vae_files.read_vae(place / "other", model)
    with pytest.raises(InputError, match="--vae: is for Stable Diffusion, and 'tiny' is none"):
        from tiny_models import random_model

        add_ons.apply_add_ons(random_model(), autoencoder=place / "other")
