"""Foreign checkpoints in every layout: found to be what they are, the same in each, and refused in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import stable_diffusion_files
import unspeckle
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.model import interleaved_bit_sums
from unspeckle.generation.pipeline import steps
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import open_checkpoint

FAMILIES = {"1": "epsilon", "1-inpaint": "epsilon", "1-lcm": "epsilon", "2": "v_prediction", "xl": "epsilon",
            "xl-inpaint": "epsilon", "xl-refiner": "epsilon"}  # fmt: skip
FOLDERS: dict[str, Path] = {}


@pytest.fixture
def folder(tmp_path_factory: Any) -> Any:
    """A function from a family to the folder that its pipeline saved, in half precision."""

    def made(family: str) -> Path:
        if family not in FOLDERS:
            place = tmp_path_factory.mktemp(family)
            pipe = stable_diffusion_files.tiny_pipeline(family, place / "scratch", FAMILIES[family]).to(torch.float16)
            pipe.save_pretrained(place / "pipe")
            FOLDERS[family] = place / "pipe"
        return FOLDERS[family]

    return made


def vocabulary(beside: Path, source: Path) -> None:
    """Single files have none: put one beside."""
    tokenizers = source / "tokenizer"
    for file in (tokenizers if tokenizers.is_dir() else source / "tokenizer_2").iterdir():
        shutil.copy(file, beside / file.name)


def converted(source: Path, tmp: Path) -> tuple[Path, Path]:
    """The folder as a single file, and that as a folder."""
    if not (source.parent / "done").is_dir():
        done = source.parent / "done"
        (done / "to").mkdir(parents=True)
        vocabulary(done / "to", source)
        assert main(["convert", str(source), str(done / "to" / "model.safetensors")]) == 0
        assert main(["convert", str(done / "to" / "model.safetensors"), str(done / "back")]) == 0
    shutil.copytree(source.parent / "done", tmp, dirs_exist_ok=True)
    return tmp / "to" / "model.safetensors", tmp / "back"


def test_a_single_file_is_compared_where_no_vocabulary_is(folder: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert main(["convert", str(folder("1")), str(tmp_path / "model.safetensors")]) == 0
    with pytest.raises(InputError, match="has no vocabulary"):
        open_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_to_single_file_to_folder(family: str, folder: Any, tmp_path: Path, capsys: Any) -> None:
    source = folder(family)
    shutil.rmtree(source.parent / "done", ignore_errors=True)
    file, back = converted(source, tmp_path)
    said = capsys.readouterr()
    assert [Path(path).name for path in said.out.split()] == ["model.safetensors", "back"]
    assert said.err.count("relative difference 0.0e+00") == 6
    compared = 0
    for weights in sorted(source.rglob("*.safetensors")):
        before, after = load_file(weights), load_file(back / weights.relative_to(source))
        if "embeddings.token_embedding.weight" in before:  # transformers 5 leaves the prefix out
            before = {f"text_model.{name}": tensor for name, tensor in before.items()}
        assert before.keys() == after.keys()
        assert all(
            torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before
        )
        compared += len(before)
    assert compared == len(open_checkpoint(source).tensors)
    one, other = unspeckle.load(source), unspeckle.load(file)
    assert one.denoiser.prediction == other.denoiser.prediction == ("v" if family == "2" else "eps")
    assert type(one.network) is type(other.network) and one.autoencoder.config == other.autoencoder.config
    config = json.loads((source / "model_index.json").read_text())["_class_name"]
    assert json.loads((back / "model_index.json").read_text())["_class_name"] == config


@pytest.mark.parametrize("family", ["1", "2", "xl"])
def test_diffusers_draws_the_same_from_what_was_written(family: str, folder: Any, tmp_path: Path) -> None:
    source = folder(family)
    file, back = converted(source, tmp_path)
    kind = diffusers.StableDiffusionXLPipeline if family == "xl" else diffusers.StableDiffusionPipeline
    more = {} if family == "xl" else {"safety_checker": None}
    asked = {"prompt": "a frog", "num_inference_steps": 3, "height": 16, "width": 16, "output_type": "latent"}
    drawn = []
    for place in (source, back):
        pipe = kind.from_pretrained(place, torch_dtype=torch.float32, **more)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
        drawn.append(pipe(**asked, generator=torch.Generator().manual_seed(0)).images)
    assert torch.equal(*drawn)
    ours = unspeckle.load(file)
    *_, last = steps(
        ours, Request(prompt="a frog", steps=3, sampler="ddim", timestep_spacing="leading", size=16, guidance_scale=7.5)
    )
    *_, from_folder = steps(
        unspeckle.load(source), Request(prompt="a frog", steps=3, sampler="ddim", size=16, guidance_scale=7.5)
    )
    assert (last.x - from_folder.x).norm() <= 1e-5 * from_folder.x.norm()


def test_ldm_names_are_those_of_the_original_code(folder: Any, tmp_path: Path) -> None:
    """By the converter of diffusers, which reads the original layout into its own names."""
    from diffusers.loaders import single_file_utils as peer

    file, _ = converted(folder("1"), tmp_path)
    held, source = load_file(file), folder("1")
    theirs = peer.convert_ldm_unet_checkpoint(
        dict(held), dict(diffusers.UNet2DConditionModel(**stable_diffusion_files.UNET_CONFIGS["1"]).config)
    )
    expected = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    assert theirs.keys() == expected.keys() and all(torch.equal(theirs[name], expected[name]) for name in theirs)
    config = json.loads((source / "vae" / "config.json").read_text())
    theirs = peer.convert_ldm_vae_checkpoint(dict(held), config)
    expected = load_file(source / "vae" / "diffusion_pytorch_model.safetensors")
    assert theirs.keys() == expected.keys()
    assert all(torch.equal(theirs[name].reshape(expected[name].shape), expected[name]) for name in theirs)


def test_variants_and_shards(folder: Any, tmp_path: Path) -> None:
    source = folder("1")
    expected = unspeckle.load(source).hash
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
            for shard, held in shards.items():
                save_file(held, place / part / shard)
            index = {"weight_map": {key: shard for shard, held in shards.items() for key in held}}
            (place / part / f"{name}.safetensors.index.json").write_text(json.dumps(index))
        assert unspeckle.load(place).hash == expected
    next((tmp_path / "sharded" / "unet").glob("*-00002-*")).unlink()
    with pytest.raises(InputError, match=r"00002-of-00002.safetensors: is named in the index but is not there"):
        unspeckle.load(tmp_path / "sharded")


def test_names_that_older_programs_wrote(folder: Any, tmp_path: Path) -> None:
    """The autoencoder's attention had others until 2023; CLIP's began with a prefix until transformers 5."""
    source, place = folder("1"), tmp_path / "old"
    shutil.copytree(source, place)
    file = place / "vae" / "diffusion_pytorch_model.safetensors"
    held, old = load_file(file), {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        held = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): held[key] for key in held}
    assert sum(".proj_attn." in key for key in held) == 4
    save_file(held, file)
    file = place / "text_encoder" / "model.safetensors"
    held = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in load_file(file).items()}
    save_file({**held, "text_model.embeddings.position_ids": torch.arange(77)[None]}, file)
    assert unspeckle.load(place).hash == unspeckle.load(source).hash


def test_a_vocabulary_in_the_hubs_cache_serves_single_files(folder: Any, tmp_path: Path, monkeypatch: Any) -> None:
    file, _ = converted(folder("1"), tmp_path)
    alone = tmp_path / "alone" / "model.safetensors"
    alone.parent.mkdir()
    file.rename(alone)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"put vocab.json and merges.txt"):
        unspeckle.load(alone)
    cached = tmp_path / "cache" / "models--a--b" / "snapshots" / "0" / "tokenizer"
    shutil.copytree(folder("1") / "tokenizer", cached)
    assert unspeckle.load(alone).hash == unspeckle.load(folder("1")).hash


def test_what_a_stable_diffusion_2_predicts(folder: Any, tmp_path: Path) -> None:
    file, _ = converted(folder("2"), tmp_path)
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


def test_every_command_that_draws_hears_how_to_read_a_model(folder: Any, tmp_path: Path, capsys: Any) -> None:
    """A Stable Diffusion 2 as .ckpt, which neither tells what it predicts nor is read unasked."""
    file, _ = converted(folder("2"), tmp_path)
    pickle, out = file.with_suffix(".ckpt"), ["-o", str(tmp_path / "drawn")]
    torch.save({"state_dict": load_file(file)}, pickle)
    asked, told = ["a frog", "--size", "16", "--steps", "2", "-q"], ["--prediction", "v", "--trust-pickle"]
    both = ["--model", str(pickle), "--guide", str(pickle)]
    capsys.readouterr()
    assert main(["draw", *asked, *both, *out, *told]) == 0
    picture = capsys.readouterr().out.strip()
    assert main(["replay", picture, *both, "-q", *told]) == 0
    assert capsys.readouterr().out == "largest pixel difference: 0\n"
    report = ["-n", "8", "--steps", "1", "-q", "-o", str(tmp_path / "a.html")]
    lines = (["draw", *asked, *both, *out], ["replay", picture, *both], ["score", str(pickle), *report])
    for line in lines:
        for some, says in (
            ([], "--trust-pickle"),
            (told[2:], "--prediction v or"),
            (["--prediction", "x"], "eps or v"),
        ):
            assert main([*line, *some]) == 2
            said = capsys.readouterr()
            assert said.out == "" and len(said.err.splitlines()) == 1 and says in said.err


def test_pickles(folder: Any, tmp_path: Path) -> None:
    file, _ = converted(folder("1"), tmp_path)
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


@pytest.mark.parametrize(
    "shape", [(7,), (64,), (30, 64, 3, 3), (30, 128, 1, 1), (5, 6, 3, 3), (70, 33), (2100, 64, 2, 2)]
)
def test_what_is_hashed_of_weights_is_the_same_in_every_order_of_memory(shape: tuple[int, ...]) -> None:
    """By the plain way, so that records of pictures from before name the same model."""
    held = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * -1e38
    bits = (held.permute(0, 2, 3, 1) if held.ndim == 4 else held).contiguous().view(torch.int32).flatten()
    plain = torch.nn.functional.pad(bits, (0, -len(bits) % 64)).view(-1, 64).sum(0, dtype=torch.int64).tolist()
    assert interleaved_bit_sums(held) == plain
    if held.ndim == 4:
        assert interleaved_bit_sums(held.contiguous(memory_format=torch.channels_last)) == plain
