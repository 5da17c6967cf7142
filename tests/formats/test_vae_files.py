"""Autoencoders on their own, in every layout, and tiny ones against diffusers' AutoencoderTiny."""

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
from conftest import SDFolder
from tiny_models import random_model
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion import add_ons, vae_files, writing
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.metadata import image_metadata
from unspeckle.generation.pipeline import steps
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import open_checkpoint
from unspeckle.output.png import read_png
from unspeckle.quantization.precision import set_precision

PREFIX = "first_stage_model."


@pytest.fixture(scope="module")
def root(sd_folder: SDFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder "pipe"; another one, "whole", with the same as a single file; its autoencoder as the folder "other"; and
    a tiny autoencoder, "tiny"."""
    folder = tmp_path_factory.mktemp("vae")
    (folder / "pipe").symlink_to(sd_folder("1"))
    (folder / "whole").symlink_to(sd_folder("1", seed=5))
    shutil.copytree(folder / "whole" / "vae", folder / "other")
    checkpoint = open_checkpoint(folder / "whole")
    assert isinstance(checkpoint, StableDiffusionCheckpoint)
    writing.write_single_file(checkpoint, folder / "whole.safetensors")
    tiny_autoencoder().save_pretrained(folder / "tiny")
    return folder


@pytest.fixture
def model(root: Path) -> StableDiffusionModel:
    loaded = unspeckle.load(root / "pipe")
    assert isinstance(loaded, StableDiffusionModel)
    return loaded


def tiny_autoencoder(levels: int = 2, **changes: Any) -> Any:
    torch.manual_seed(2)
    config = {
        "encoder_block_out_channels": (16,) * levels,
        "decoder_block_out_channels": (16,) * levels,
        "num_encoder_blocks": (1, 3, 3, 3)[:levels],
        "num_decoder_blocks": (3, 3, 3, 1)[-levels:],
    }
    return stable_diffusion_files.randomize_weights(diffusers.AutoencoderTiny(**{**config, **changes}))


def write_original_files(autoencoder: Any, folder: Path) -> Path:
    """Write the two files of the original, whose layers are counted; its decoder begins with a clamp. Returns that of
    the decoder."""
    folder.mkdir(exist_ok=True)
    halves: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "decoder": {}}
    for name, tensor in autoencoder.state_dict().items():
        half, _, layer, rest = name.split(".", 3)
        halves[half][f"{int(layer) + (half == 'decoder')}.{rest}"] = tensor
    for half, tensors in halves.items():
        save_file(tensors, folder / f"taesd_{half}.safetensors")
    return folder / "taesd_decoder.safetensors"


@torch.no_grad()
def assert_same(ours: Any, theirs: Any, scale: float, has_encoder: bool = True) -> None:
    torch.manual_seed(0)
    latents, images = torch.randn(2, 4, 8, 12), torch.rand(2, 3, 16, 24) * 2 - 1
    assert relative_error(ours.decode(latents), theirs.decode(latents / scale).sample) <= 1e-4
    if has_encoder:
        encoded = theirs.encode(images)
        their_latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
        assert relative_error(ours.encode(images), their_latents * scale) <= 1e-4


@pytest.mark.parametrize("layout", ["folder", "pipeline", "file beside its config", "bare", "prefix", "checkpoint"])
def test_every_layout(layout: str, root: Path, model: StableDiffusionModel, tmp_path: Path) -> None:
    whole = root / "whole.safetensors"
    with_prefix = {name: tensor for name, tensor in load_file(whole).items() if name.startswith(PREFIX)}
    bare = {name.removeprefix(PREFIX): tensor for name, tensor in with_prefix.items()}
    file = tmp_path / "vae.safetensors"
    save_file(with_prefix if layout == "prefix" else bare, file)
    path = {
        "folder": root / "other",
        "pipeline": root / "whole",
        "checkpoint": whole,
        "file beside its config": root / "other" / "diffusion_pytorch_model.safetensors",
    }.get(layout, file)
    own_hash = model.hash
    add_ons.apply_add_ons(model, autoencoder=path)
    assert_same(model.autoencoder, diffusers.AutoencoderKL.from_pretrained(root / "other"), 0.18215)
    from_folder = add_ons.apply_add_ons(unspeckle.load(root / "pipe"), autoencoder=root / "other")
    assert model.hash == from_folder.hash != own_hash


def test_the_scale_of_a_single_file_is_the_models(root: Path, model: StableDiffusionModel, tmp_path: Path) -> None:
    """As it says none of its own."""
    bare = {k.removeprefix(PREFIX): t for k, t in load_file(root / "whole.safetensors").items() if k.startswith(PREFIX)}
    save_file(bare, tmp_path / "vae.safetensors")
    model.autoencoder.config = replace(model.autoencoder.config, scaling_factor=0.5, shift_factor=0.25)
    config = vae_files.read_vae(tmp_path / "vae.safetensors", model).config
    assert (config.scaling_factor, config.shift_factor) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("layout", "levels"), [("diffusers", 2), ("diffusers", 4), ("original", 4), ("decoder alone", 4)]
)
def test_a_tiny_one_is_that_of_diffusers(layout: str, levels: int, model: StableDiffusionModel, tmp_path: Path) -> None:
    model.autoencoder.downsampling_factor = 2 ** (levels - 1)
    theirs = tiny_autoencoder(levels)
    if layout == "diffusers":
        theirs.save_pretrained(tmp_path / "tiny")
        path = tmp_path / "tiny"
    else:
        path = write_original_files(theirs, tmp_path / "files")
        if layout == "decoder alone":
            (tmp_path / "files" / "taesd_encoder.safetensors").unlink()
    ours = vae_files.read_vae(path, model)
    assert_same(ours, theirs, 1.0, has_encoder=layout != "decoder alone")
    if layout == "decoder alone":
        with pytest.raises(InputError, match="has no encoder"):
            ours.encode(torch.zeros(1, 3, 16, 16))


def test_a_drawing_through_a_tiny_one_is_that_of_diffusers(root: Path, model: StableDiffusionModel) -> None:
    pipeline = stable_diffusion_files.load_pipeline(root / "pipe")
    pipeline.vae = tiny_autoencoder()
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    options = {"num_inference_steps": 5, "height": 16, "width": 16, "guidance_scale": 4.0, "output_type": "np"}
    expected = pipeline("a frog", generator=torch.Generator().manual_seed(7), **options).images[0]
    preview_model = replace(model, autoencoder=add_ons.read_preview_autoencoder(model, root / "tiny"))
    *_, last = steps(model, Request("a frog", seed=7, steps=5, sampler="ddim", size=16, guidance_scale=4.0))
    image_bytes = bytearray(decode_to_images(preview_model, last.x)[0].tobytes())
    pixels = torch.frombuffer(image_bytes, dtype=torch.uint8).view(16, 16, 3) / 255
    assert (pixels - torch.from_numpy(expected)).abs().mean() <= 1 / 255 and expected.std() > 0.05


def test_a_tiny_one_in_bfloat16(root: Path) -> None:
    """It has no normalization, so all of it is packed."""
    exact, low = (add_ons.apply_add_ons(unspeckle.load(root / "pipe"), autoencoder=root / "tiny") for _ in range(2))
    set_precision(low, "bfloat16")
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded, expected_image = low.autoencoder.decode(x), exact.autoencoder.decode(x)
        encoded, expected_latents = low.autoencoder.encode(x[:, :3]), exact.autoencoder.encode(x[:, :3])
    for output, expected in ((decoded, expected_image), (encoded, expected_latents)):
        assert output.dtype == torch.float32 and 0 < relative_error(output, expected) < 0.03


def test_the_command_line(root: Path, tmp_path: Path, capsys: Any) -> None:
    line = ["draw", "a frog", "--model", str(root / "pipe"), "--steps", "2", "--size", "16"]
    line += ["--out", str(tmp_path)]
    plain = draw_by_command(line, capsys)
    with_preview = draw_by_command([*line, "--preview", str(root / "tiny")], capsys)
    other = draw_by_command([*line, "--vae", str(root / "other")], capsys)
    images = [read_png(path) for path in (plain, with_preview, other)]
    assert images[0].tobytes() == images[1].tobytes() != images[2].tobytes()
    models = [image_metadata(image)["model"] for image in images]
    assert models[0] == models[1] != models[2]
    replay = ["replay", str(other), "--model", str(root / "pipe"), "--quiet"]
    assert main([*replay, "--vae", str(root / "other")]) == 0 and "difference: 0" in capsys.readouterr().out
    assert main(replay) == 2 and "model" in capsys.readouterr().err
    # the guide model gets the other autoencoder too
    options = ["--vae", str(root / "other"), "--guide-model", str(root / "pipe")]
    guided = draw_by_command([*line, *options, "--seed", "1"], capsys)
    assert main(["replay", str(guided), *replay[2:], *options]) == 0 and "difference: 0" in capsys.readouterr().out


def draw_by_command(arguments: list[str], capsys: Any) -> Path:
    assert main(arguments) == 0
    return Path(capsys.readouterr().out.strip())


def test_what_does_not_fit_is_one_line(root: Path, model: StableDiffusionModel, tmp_path: Path) -> None:
    bare = {k.removeprefix(PREFIX): t for k, t in load_file(root / "whole.safetensors").items() if k.startswith(PREFIX)}
    without_config = tmp_path / "alone" / "diffusion.safetensors"
    without_config.parent.mkdir()
    shutil.copy(root / "other" / "diffusion_pytorch_model.safetensors", without_config)
    files = {
        "lacks the tensor": {k: t for k, t in bare.items() if k != "decoder.conv_out.bias"},
        "has an unexpected tensor 'decoder.more'": {**bare, "decoder.more": torch.zeros(1)},
        "not finite": {**bare, "quant_conv.bias": bare["quant_conv.bias"] * torch.nan},
        r"lacks the tensor '\S*encoder": {"x": torch.zeros(1)},
        "is no tiny decoder": {"0.weight": torch.zeros(4, 4, 3, 3)},
    }
    for message, tensors in files.items():
        save_file(tensors, tmp_path / "vae.safetensors")
        with pytest.raises(InputError, match=message) as error:
            vae_files.read_vae(tmp_path / "vae.safetensors", model)
        assert "\n" not in str(error.value)
    for message, path in {
        "config.json beside it": without_config,
        "no such file": tmp_path / "none",
        "config.json: does not exist": tmp_path,
    }.items():
        with pytest.raises(InputError, match=message):
            vae_files.read_vae(path, model)
    model.autoencoder.downsampling_factor = 8
    with pytest.raises(InputError, match="has 4 latent channels at 1/2 of the image's sides"):
        vae_files.read_vae(root / "other", model)
    with pytest.raises(InputError, match="autoencoder: needs a Stable Diffusion, and 'tiny' is none"):
        add_ons.apply_add_ons(random_model(), autoencoder=root / "other")


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_decoder_blocks", [1, -1]), ("act_fn", "mish"), ("latent_channels", "x"), ("scaling_factor", "x")],
)
def test_a_tiny_config_that_is_not_supported(
    key: str, value: Any, root: Path, model: StableDiffusionModel, tmp_path: Path
) -> None:
    shutil.copytree(root / "tiny", tmp_path / "odd")
    config = json.loads((root / "tiny" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(InputError):
        vae_files.read_vae(tmp_path / "odd", model)
