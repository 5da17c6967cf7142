"""Models as graphs for other programs: each computes what our part does, whatever the sizes, and is there whole or not
at all."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stable_diffusion_files
import unspeckle
from tiny_models import random_model
from unspeckle.cli import main
from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.formats.export import graph_folder, graphs, model_graphs, runtimes, stable_diffusion_graphs
from unspeckle.formats.export.runtimes import RUNTIMES
from unspeckle.formats.stable_diffusion import writing
from unspeckle.model_io.loading import open_checkpoint
from unspeckle.model_io.model_file import save
from unspeckle.networks import Transformer, TransformerConfig, UNet, UNetConfig

FAMILIES = {"1": "epsilon", "1-inpaint": "epsilon", "1-lcm": "epsilon", "2": "v_prediction", "xl": "epsilon",
            "xl-refiner": "epsilon"}  # fmt: skip


@pytest.fixture
def onnx() -> Any:
    for package in RUNTIMES["onnx"].packages:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'unspeckle[onnx]'")
    return RUNTIMES["onnx"]


@pytest.fixture
def openvino() -> Any:
    for package in RUNTIMES["openvino"].packages:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'unspeckle[openvino]'")
    return RUNTIMES["openvino"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Any:
    """A function from a family to the folder that its pipeline saved."""
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            place = tmp_path_factory.mktemp(family)
            stable_diffusion_files.tiny_pipeline(family, place / "scratch", FAMILIES[family]).save_pretrained(
                place / "pipe"
            )
            made[family] = place / "pipe"
        return made[family]

    return find


def apart(one: Any, other: Tensor) -> float:
    return float((torch.as_tensor(np.asarray(one)).float() - other).norm() / other.norm())


def parts(folder: Path) -> dict[str, graphs.ExportGraph]:
    checkpoint = open_checkpoint(folder)
    assert checkpoint is not None
    return {
        graph.name: graph
        for graph in stable_diffusion_graphs.build_stable_diffusion_graphs(
            checkpoint, writing.build_diffusers_configs(checkpoint)[1]
        )
    }


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_is_exported_takes_and_gives_what_diffusers_parts_do(family: str, folder: Any) -> None:
    """By the names of their arguments and outputs, in their units."""
    found, pipe = parts(folder(family)), diffusers.DiffusionPipeline.from_pretrained(folder(family))
    graph = found["unet"]
    question = dict(zip(graph.inputs, graph.example_inputs(True), strict=True))
    added = {name: question[name] for name in ("text_embeds", "time_ids") if name in question}
    expected = pipe.unet(
        question["sample"], question["timestep"], question["encoder_hidden_states"], return_dict=False,
        timestep_cond=question.get("timestep_cond"), added_cond_kwargs=added or None,
    )[0]  # fmt: skip
    assert apart(graph.build_module()(*question.values()), expected) <= 1e-5
    graph = found["vae_decoder"]
    assert (
        apart(graph.build_module()(*graph.example_inputs(True)), pipe.vae.decode(*graph.example_inputs(True)).sample)
        <= 1e-5
    )
    graph = found["vae_encoder"]
    moments = pipe.vae.encode(*graph.example_inputs(True)).latent_dist.parameters
    assert apart(graph.build_module()(*graph.example_inputs(True)), moments) <= 1e-5
    readers = [name for name in found if name.startswith("text_encoder")]
    assert readers == [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]
    for name in readers:
        graph = found[name]
        ids = graph.example_inputs(True)[0]
        said = getattr(pipe, name)(ids.long(), output_hidden_states=True)
        told = dict(zip(graph.outputs, graph.build_module()(ids), strict=True))
        for output, value in told.items():
            kind, _, at = output.partition(".")
            theirs = said[kind][int(at)] if at else said[kind]
            assert apart(value, theirs) <= 1e-5, output


def test_diffusers_own_pipeline_draws_from_what_is_written(onnx: Any, folder: Any, tmp_path: Path, capsys: Any) -> None:
    place = tmp_path / "graphs"
    assert main(["convert", str(folder("1")), str(place), "--to", "onnx"]) == 0
    said = capsys.readouterr()
    assert said.out.split() == [str(place)] and said.err.count("relative difference") == len(parts(folder("1"))) == 4
    asked: Any = {"prompt": "a frog", "num_inference_steps": 3, "output_type": "np"}
    theirs = stable_diffusion_files.load_pipeline(folder("1"))
    ours = diffusers.OnnxStableDiffusionPipeline.from_pretrained(place, safety_checker=None)
    ours.set_progress_bar_config(disable=True)
    x = np.random.default_rng(0).standard_normal((1, 4, 12, 8), dtype=np.float32)
    drawn = ours(**asked, latents=x, height=96, width=64).images  # it takes every autoencoder's factor for 8
    expected = theirs(**asked, latents=torch.from_numpy(x), height=24, width=16).images
    assert drawn.shape == expected.shape and np.abs(drawn - expected).mean() <= 1e-4
    for part in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        assert (place / part / "model.onnx").is_file() and (place / part / "config.json").is_file()


def test_the_larger_network_as_a_graph(onnx: Any, folder: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """XL's, its weights in a file of their own, as those of full size are."""
    monkeypatch.setattr(runtimes, "EXTERNAL_DATA_BYTES", 0)
    graph = parts(folder("xl"))["unet"]
    module = graph.build_module()
    runtimes.write_graph(graph, module, tmp_path / "unet", onnx)
    assert sorted(file.name for file in (tmp_path / "unet").iterdir()) == ["model.onnx", "model.onnx.data"]
    for question in (graph.example_inputs(True), graph.example_inputs(False)):
        (told,) = onnx.run_graph(tmp_path / "unet", list(graph.inputs), question)
        assert apart(told, runtimes.run_module(module, question)[0]) <= 1e-5


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_model_of_ours_draws_by_its_graphs(to: str, tmp_path: Path, request: Any, capsys: Any) -> None:
    runtime, model = request.getfixturevalue(to), random_model()
    save(model, tmp_path / "tiny.safetensors")
    place = tmp_path / "graphs"
    assert main(["convert", str(tmp_path / "tiny.safetensors"), str(place), "--to", to]) == 0
    said = capsys.readouterr()
    names = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert [line.split(":")[0] for line in said.err.splitlines()] == names
    assert all((place / name / runtime.model_file).is_file() for name in names)
    told = json.loads((place / graph_folder.DESCRIPTION_FILE).read_text())
    ids = model.tokenizer.encode(["a frog on stilts"])
    tokens, _, mask = runtime.run_graph(place / "text_encoder", ["input_ids"], (ids.int(),))
    x = torch.randn(1, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    ways = zip(told["times"]["t"], told["times"]["alpha"], told["times"]["sigma"], strict=True)
    (_, _, sigma), *ways = ways
    last, t = sigma * x, told["times"]["t"][0]
    inputs = ["sample", "timestep", "encoder_hidden_states", "encoder_attention_mask"]
    with torch.no_grad():
        expected, given = last, model.text_encoder(ids)
        for s, alpha_s, sigma_s in ways:  # DDIM, as docs/stable-diffusion.md tells it
            now, later = torch.tensor([t]), torch.tensor([s])
            guess = runtime.run_graph(place / "unet", inputs, (last, now, tokens, mask.bool()))[0]
            last = alpha_s * guess + sigma_s * (last - (1 - t) * guess) / t
            guess = model.denoiser(expected, now, given)
            expected = alpha_s * guess + sigma_s * (expected - (1 - t) * guess) / t
            t = float(later)
        assert apart(last, expected) <= 1e-4
        (picture,) = runtime.run_graph(place / "vae_decoder", ["latent_sample"], (last,))
        assert apart(picture, model.autoencoder.decode(expected)) <= 1e-4


@pytest.mark.parametrize("kind", ["draft", "transformer"])
def test_other_networks_of_ours_as_graphs(kind: str, onnx: Any, tmp_path: Path) -> None:
    model = random_model()
    if kind == "draft":
        config: Any = UNetConfig(
            patch_size=2,
            base_channels=16,
            blocks_per_level=1,
            head_width=16,
            text_width=32,
            vector_width=32,
            norm_groups=0,
            coarse_predictor_layers=1,
        )
        network: nn.Module = UNet(config)
    else:
        network = Transformer(
            TransformerConfig(widths=(16, 32), depths=(1, 1), head_width=16, text_width=32, patch_size=2)
        )
    stable_diffusion_files.randomize_weights(network)
    model.denoiser = Denoiser(network, model.denoiser.schedule, "x")  # type: ignore[arg-type]
    graph = model_graphs.build_model_graphs(model)[1]
    assert graph.name == ("unet" if kind == "draft" else "transformer")
    runtimes.write_graph(graph, graph.build_module(), tmp_path / graph.name, onnx)
    (told,) = onnx.run_graph(tmp_path / graph.name, list(graph.inputs), graph.example_inputs(True))
    x, t, tokens, mask, *rest = graph.example_inputs(True)
    with torch.no_grad():
        expected = model.denoiser(x, t, Conditioning(tokens, mask, *rest))
    assert apart(told, expected) <= 1e-5


def fake(monkeypatch: Any, answer: Any, write: Any = lambda *_: None) -> None:
    """A runtime that writes nothing, so that no package is needed."""
    runtime = runtimes.Runtime("onnx", "model.onnx", (), lambda *_: None, answer)
    monkeypatch.setattr(export, "RUNTIMES", {"onnx": runtime})
    monkeypatch.setattr(export, "write", write)


def test_a_graph_that_computes_otherwise_is_found(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    model = random_model()
    save(model, tmp_path / "tiny.safetensors")
    made = {tuple(graph.inputs): graph.build_module() for graph in model_graphs.build_model_graphs(model)}

    def answer(off: float, place: Path, names: Any, question: Any) -> list[Tensor]:
        return [
            one * (1 + off) if "unet" in str(place) else one for one in runtimes.run_module(made[(*names,)], question)
        ]

    for off, says, code in ((1e-5, "1.0e-05", 0), (1e-3, "1.0e-03", 1), (float("nan"), "inf", 1)):
        fake(monkeypatch, lambda *asked, off=off: answer(off, *asked))
        assert main(["convert", str(tmp_path / "tiny.safetensors"), str(tmp_path / says), "--to", "onnx"]) == code
        assert f"unet: relative difference {says}" in capsys.readouterr().err


def test_an_export_that_is_stopped_leaves_nothing(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    save(random_model(), tmp_path / "tiny.safetensors")

    def write(graph: Any, module: Any, place: Path, runtime: Any) -> None:
        place.mkdir()
        if graph.name == "vae_decoder":
            raise KeyboardInterrupt

    fake(monkeypatch, None, write)
    line = ["convert", str(tmp_path / "tiny.safetensors"), str(tmp_path / "out"), "--to", "onnx"]
    assert main(line) == 130
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.safetensors"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    capsys.readouterr()
    assert main(line) == 2 and "out: stands there already; give a new folder" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["kept"]


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None if name == "onnxscript" else object())
    for name in ("onnx", "openvino"):
        assert main(["convert", str(tmp_path / "out"), "--to", name]) == 2
        said = f"unspeckle: --to {name}: needs onnxscript; pip install 'unspeckle[{name}]'\n"
        assert capsys.readouterr().err == said
    assert not [*tmp_path.iterdir()]


def shaped(scale_shift: bool) -> unspeckle.Model:
    """A model of ours whose network is one of diffusers'."""
    model = random_model()
    config = UNetConfig(
        base_channels=32, blocks_per_level=1, head_width=8, text_width=32, feed_forward=True, transformer_projection="linear",
        self_attention=(True, True), scale_shift=scale_shift,
    )  # fmt: skip
    network = UNet(config)
    stable_diffusion_files.randomize_weights(network)
    model.denoiser = Denoiser(network, model.denoiser.schedule, "v")
    return model


@pytest.mark.parametrize("scale_shift", [False, True])
@torch.no_grad()
def test_a_network_of_ours_that_diffusers_has_too(scale_shift: bool, tmp_path: Path, capsys: Any) -> None:
    model = shaped(scale_shift)
    save(model, tmp_path / "tiny.safetensors")
    assert main(["convert", str(tmp_path / "tiny.safetensors"), str(tmp_path / "out")]) == 0
    assert "relative difference 0.0e+00" in capsys.readouterr().err
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet").eval()
    given = model.text_encoder(model.tokenizer.encode(["a frog", "two red frogs"]))
    x, t = graphs.random_feature_maps(3, 2, False), torch.tensor([0.6, 0.3])
    expected = theirs(x, 1000 * t, given.tokens, encoder_attention_mask=given.mask).sample
    assert apart(model.network(x, t, given), expected) <= 1e-5


def test_a_network_that_diffusers_lacks_is_told_by_its_traits(tmp_path: Path, capsys: Any) -> None:
    save(random_model(), tmp_path / "tiny.safetensors")
    assert main(["convert", str(tmp_path / "tiny.safetensors"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert (
        "tiny.safetensors: has patches of 2 pixels, attention without feed-forward layers, attention without "
        "projections around it, levels whose places do not see one another, for which diffusers has no network; write "
        "graphs of the whole model with --to onnx or --to openvino\n"
    ) in said and len(said.splitlines()) == 1
    save(shaped(False), tmp_path / "tiny.safetensors")
    assert main(["convert", str(tmp_path / "tiny.safetensors"), str(tmp_path / "b.safetensors")]) == 2
    assert "is no Stable Diffusion" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.safetensors"]
