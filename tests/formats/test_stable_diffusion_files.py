"""Stable Diffusion checkpoints in every layout: recognized, the same model in each, and refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import stable_diffusion_files
import unspeckle
from conftest import SDFolder
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.formats.stable_diffusion.weights_hash import interleaved_bit_sums
from unspeckle.generation.pipeline import steps
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import open_checkpoint
from unspeckle.networks.lora import init_adapters
from unspeckle.networks.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig


@pytest.fixture
def folder(sd_folder: SDFolder) -> Callable[[str], Path]:
    """A function from a family to the folder that its pipeline saved, in half precision."""
    return lambda family: sd_folder(family, half=True)


@pytest.fixture
def single_file(
    folder: Callable[[str], Path], sd_conversions: dict[str, Path], tmp_path: Path
) -> Callable[[str], tuple[Path, Path]]:
    """A function from a family to a copy of its folder as a single file, its vocabulary beside it, and that file as a
    folder again."""

    def convert(family: str) -> tuple[Path, Path]:
        shutil.copytree(convert_both_ways(family, folder(family), sd_conversions), tmp_path, dirs_exist_ok=True)
        return tmp_path / "to" / "model.safetensors", tmp_path / "back"

    return convert


@pytest.fixture(scope="module")
def sd_conversions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What was converted already, by family; "" is where it is written."""
    return {"": tmp_path_factory.mktemp("conversions")}


def convert_both_ways(family: str, source: Path, conversions: dict[str, Path]) -> Path:
    """A folder with the single file "to/model.safetensors" and the folder "back"."""
    if family not in conversions:
        target = conversions[""] / family
        (target / "to").mkdir(parents=True)
        copy_vocabulary(source, target / "to")
        assert main(["convert", str(source), str(target / "to" / "model.safetensors")]) == 0
        assert main(["convert", str(target / "to" / "model.safetensors"), str(target / "back")]) == 0
        conversions[family] = target
    return conversions[family]


def copy_vocabulary(source: Path, target: Path) -> None:
    """A single file has no vocabulary: put that of the source beside it."""
    tokenizers = source / "tokenizer"
    for file in (tokenizers if tokenizers.is_dir() else source / "tokenizer_2").iterdir():
        shutil.copy(file, target / file.name)


def test_a_single_file_is_compared_where_there_is_no_vocabulary(
    folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert main(["convert", str(folder("1")), str(tmp_path / "model.safetensors")]) == 0
    with pytest.raises(InputError, match="has no vocabulary"):
        open_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("family", stable_diffusion_files.PREDICTIONS)
def test_folder_to_single_file_to_folder(family: str, folder: Any, tmp_path: Path, capsys: Any) -> None:
    source = folder(family)
    target = convert_both_ways(family, source, {"": tmp_path})
    file, back = target / "to" / "model.safetensors", target / "back"
    printed = capsys.readouterr()
    assert [Path(path).name for path in printed.out.split()] == ["model.safetensors", "back"]
    assert printed.err.count("relative difference 0.0e+00") == 6
    compared = 0
    for tensors_file in sorted(source.rglob("*.safetensors")):
        before, after = load_file(tensors_file), load_file(back / tensors_file.relative_to(source))
        if "embeddings.token_embedding.weight" in before:  # transformers 5 leaves the prefix out
            before = {f"text_model.{name}": tensor for name, tensor in before.items()}
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype
        compared += len(before)
    checkpoint = open_checkpoint(source)
    assert isinstance(checkpoint, StableDiffusionCheckpoint) and compared == len(checkpoint.tensors)
    from_folder, from_file = unspeckle.load(source), unspeckle.load(file)
    assert from_folder.denoiser.prediction == from_file.denoiser.prediction == ("v" if family == "2" else "eps")
    assert type(from_folder.network) is type(from_file.network)
    assert from_folder.autoencoder.config == from_file.autoencoder.config
    pipeline_class = json.loads((source / "model_index.json").read_text())["_class_name"]
    assert json.loads((back / "model_index.json").read_text())["_class_name"] == pipeline_class


@pytest.mark.parametrize("family", ["1", "2", "xl"])
def test_diffusers_draws_the_same_from_what_was_written(family: str, folder: Any, single_file: Any) -> None:
    source = folder(family)
    file, back = single_file(family)
    pipeline_class = diffusers.StableDiffusionXLPipeline if family == "xl" else diffusers.StableDiffusionPipeline
    extra = {} if family == "xl" else {"safety_checker": None}
    options = {"prompt": "a frog", "num_inference_steps": 3, "height": 16, "width": 16, "output_type": "latent"}
    latents = []
    for place in (source, back):
        pipeline = pipeline_class.from_pretrained(place, torch_dtype=torch.float32, **extra)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
        latents.append(pipeline(**options, generator=torch.Generator().manual_seed(0)).images)
    assert torch.equal(*latents)
    request = Request(prompt="a frog", steps=3, sampler="ddim", size=16, guidance_scale=7.5, timestep_spacing="leading")
    *_, from_file = steps(unspeckle.load(file), request)
    *_, from_folder = steps(unspeckle.load(source), request)
    assert (from_file.x - from_folder.x).norm() <= 1e-5 * from_folder.x.norm()


def test_names_in_a_single_file_are_those_of_the_original_code(folder: Any, single_file: Any) -> None:
    """By the converter of diffusers, which reads the original layout into its own names."""
    from diffusers.loaders import single_file_utils as peer

    source, tensors = folder("1"), load_file(single_file("1")[0])
    unet_config = dict(diffusers.UNet2DConditionModel(**stable_diffusion_files.UNET_CONFIGS["1"]).config)
    theirs = peer.convert_ldm_unet_checkpoint(dict(tensors), unet_config)
    expected = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    assert theirs.keys() == expected.keys() and all(torch.equal(theirs[name], expected[name]) for name in theirs)
    theirs = peer.convert_ldm_vae_checkpoint(dict(tensors), json.loads((source / "vae" / "config.json").read_text()))
    expected = load_file(source / "vae" / "diffusion_pytorch_model.safetensors")
    assert theirs.keys() == expected.keys()
    assert all(torch.equal(theirs[name].reshape(expected[name].shape), expected[name]) for name in theirs)


def test_variants_and_shards(folder: Any, tmp_path: Path) -> None:
    source = folder("1")
    expected_hash = unspeckle.load(source).hash
    for kind in ("fp16", "sharded"):
        place = tmp_path / kind
        shutil.copytree(source, place)
        for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
            whole = place / part / f"{name}.safetensors"
            if kind == "fp16":
                whole.rename(place / part / f"{name}.fp16.safetensors")
                continue
            tensors = list(load_file(whole).items())
            whole.unlink()
            shards = {f"{name}-0000{n}-of-00002.safetensors": dict(tensors[n - 1 :: 2]) for n in (1, 2)}
            for shard, shard_tensors in shards.items():
                save_file(shard_tensors, place / part / shard)
            index = {"weight_map": {key: shard for shard, shard_tensors in shards.items() for key in shard_tensors}}
            (place / part / f"{name}.safetensors.index.json").write_text(json.dumps(index))
        assert unspeckle.load(place).hash == expected_hash
    next((tmp_path / "sharded" / "unet").glob("*-00002-*")).unlink()
    with pytest.raises(InputError, match=r"00002-of-00002.safetensors: is named in the index but does not exist"):
        unspeckle.load(tmp_path / "sharded")


def test_names_that_older_programs_wrote(folder: Any, tmp_path: Path) -> None:
    """The autoencoder's attention had others until 2023; CLIP's began with a prefix until transformers 5."""
    source, place = folder("1"), tmp_path / "old"
    shutil.copytree(source, place)
    file = place / "vae" / "diffusion_pytorch_model.safetensors"
    tensors, old_names = load_file(file), {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in old_names.items():
        tensors = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): tensors[key] for key in tensors}
    assert sum(".proj_attn." in key for key in tensors) == 4
    save_file(tensors, file)
    file = place / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in load_file(file).items()}
    save_file({**tensors, "text_model.embeddings.position_ids": torch.arange(77)[None]}, file)
    assert unspeckle.load(place).hash == unspeckle.load(source).hash


def test_a_vocabulary_in_the_hubs_cache_serves_single_files(
    folder: Any, single_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = single_file("1")
    alone = tmp_path / "alone" / "model.safetensors"
    alone.parent.mkdir()
    file.rename(alone)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"put vocab.json and merges.txt"):
        unspeckle.load(alone)
    cached = tmp_path / "cache" / "models--a--b" / "snapshots" / "0" / "tokenizer"
    shutil.copytree(folder("1") / "tokenizer", cached)
    assert unspeckle.load(alone).hash == unspeckle.load(folder("1")).hash


def test_what_a_stable_diffusion_2_predicts(single_file: Any) -> None:
    file, _ = single_file("2")
    assert unspeckle.load(file).denoiser.prediction == "v"  # by the metadata that were written
    save_file(load_file(file), file)
    with pytest.raises(InputError, match=r"is a Stable Diffusion 2, .* decide with --prediction v or --prediction eps"):
        unspeckle.load(file)
    assert unspeckle.load(file, prediction="v").denoiser.prediction == "v"
    assert unspeckle.load(file, prediction="eps").card.size == (512, 512)
    file.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert unspeckle.load(file).denoiser.prediction == "v"
    file.with_suffix(".yaml").unlink()
    save_file({**load_file(file), "v_pred": torch.tensor([])}, file)
    assert unspeckle.load(file).denoiser.prediction == "v"


def test_every_command_that_draws_passes_on_how_to_read_a_model(single_file: Any, tmp_path: Path, capsys: Any) -> None:
    """For a Stable Diffusion 2 as .ckpt, which does not say what it predicts, and is a pickle."""
    file, _ = single_file("2")
    pickle, out = file.with_suffix(".ckpt"), ["-o", str(tmp_path / "images")]
    torch.save({"state_dict": load_file(file)}, pickle)
    prompt, reading = ["a frog", "--size", "16", "--steps", "2", "-q"], ["--prediction", "v", "--trust-pickle"]
    models = ["--model", str(pickle), "--guide-model", str(pickle)]
    capsys.readouterr()
    assert main(["draw", *prompt, *models, *out, *reading]) == 0
    image = capsys.readouterr().out.strip()
    assert main(["replay", image, *models, "-q", *reading]) == 0
    assert "difference: 0\n" in capsys.readouterr().out
    report = ["-n", "8", "--steps", "1", "-q", "-o", str(tmp_path / "a.html")]
    lines = (["draw", *prompt, *models, *out], ["replay", image, *models], ["score", str(pickle), *report])
    for line in lines:
        for options, message in (
            ([], "--trust-pickle"),
            (reading[2:], "--prediction v or"),
            (["--prediction", "x"], "eps or v"),
        ):
            assert main([*line, *options]) == 2
            printed = capsys.readouterr()
            assert printed.out == "" and len(printed.err.splitlines()) == 1 and message in printed.err


def test_pickles(single_file: Any, tmp_path: Path) -> None:
    file, _ = single_file("1")
    pickle = file.with_suffix(".ckpt")
    torch.save({"state_dict": load_file(file), "global_step": 3}, pickle)
    with pytest.raises(InputError, match=r"unspeckle convert model.ckpt model.safetensors --trust-pickle"):
        unspeckle.load(pickle)
    assert unspeckle.load(pickle, trust_pickle=True).hash == unspeckle.load(file).hash
    assert main(["convert", str(pickle), str(tmp_path / "safe"), "--trust-pickle"]) == 0

    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"state_dict": load_file(file), "x": Hostile()}, pickle)
    with pytest.raises(InputError, match="holds more than tensors, or is damaged, and is not loaded"):
        unspeckle.load(pickle, trust_pickle=True)
    assert not (tmp_path / "executed").exists()


def fill_by_shape(model: unspeckle.Model) -> StableDiffusionModel:
    """The model with weights that follow from their shapes alone, whatever libraries drew the random ones."""
    assert isinstance(model, StableDiffusionModel)
    for tensor in model.state_dict().values():
        tensor.copy_((torch.arange(tensor.numel(), dtype=torch.float32) % 97 / 97 - 0.5).view(tensor.shape))
    return model.invalidate_hash()


# As version 0.1 (commit b242062) computed them for the same checkpoints, filled in the same way
HASHES = {
    "1": "da53dae1e35e",
    "1-inpaint": "0380a5b620db",
    "1-lcm": "ec53c78d09dd",
    "2": "474c8827c769",
    "xl": "1c94ed18479b",
    "xl-inpaint": "ad64d4778c8a",
    "xl-refiner": "88955e08a82d",
}


@pytest.mark.parametrize("family", HASHES)
def test_hashes_are_those_of_version_0_1(family: str, sd_folder: SDFolder) -> None:
    """Images name their model by its hash, so those drawn before can still be replayed."""
    assert fill_by_shape(unspeckle.load(sd_folder(family))).weights_hash == HASHES[family]


def test_hashes_with_add_ons_are_those_of_version_0_1(sd_folder: SDFolder) -> None:
    model = unspeckle.load(sd_folder("1"))
    model.autoencoder = TinyAutoencoder(
        TinyAutoencoderConfig(base_channels=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    )
    assert fill_by_shape(model).weights_hash == "a7f1d03fcd23"
    init_adapters(model.modules(), 2, 0).attach(model.modules())
    assert fill_by_shape(model).weights_hash == "81baef1899c2"
    assert model.hash == "ccebd9c19f3d"


@pytest.mark.parametrize(
    "shape", [(7,), (64,), (30, 64, 3, 3), (30, 128, 1, 1), (5, 6, 3, 3), (70, 33), (2100, 64, 2, 2)]
)
def test_bit_sums_are_the_same_in_every_memory_format(shape: tuple[int, ...]) -> None:
    """And those of the plain formula."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * -1e38
    bits = (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).contiguous().view(torch.int32).flatten()
    expected = torch.nn.functional.pad(bits, (0, -len(bits) % 64)).view(-1, 64).sum(0, dtype=torch.int64).tolist()
    assert interleaved_bit_sums(tensor) == expected
    if tensor.ndim == 4:
        assert interleaved_bit_sums(tensor.contiguous(memory_format=torch.channels_last)) == expected
