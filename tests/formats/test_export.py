"""Models as graphs for other programs: each computes what our part does, whatever the sizes, and a folder of them is
written completely or not at all."""

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
from closeness import relative_error
from conftest import SDFolder
from tiny_models import random_model
from unspeckle.cli import main
from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.formats.export import graph_folder, model_graphs, runtimes
from unspeckle.formats.export.graphs import ExportGraph, random_feature_maps
from unspeckle.formats.export.runtimes import RUNTIMES, Runtime
from unspeckle.formats.export.stable_diffusion_graphs import build_stable_diffusion_graphs
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.diffusers_json import component_jsons
from unspeckle.model_io.loading import open_checkpoint
from unspeckle.model_io.model_file import save
from unspeckle.networks import Transformer, TransformerConfig, UNet, UNetConfig


@pytest.fixture
def onnx() -> Runtime:
    for package in RUNTIMES["onnx"].packages:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'unspeckle[onnx]'")
    return RUNTIMES["onnx"]


@pytest.fixture
def openvino() -> Runtime:
    for package in RUNTIMES["openvino"].packages:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'unspeckle[openvino]'")
    return RUNTIMES["openvino"]


def build_graphs(folder: Path) -> dict[str, ExportGraph]:
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, StableDiffusionCheckpoint)
    graphs = build_stable_diffusion_graphs(checkpoint, component_jsons(checkpoint))
    return {graph.name: graph for graph in graphs}


@pytest.mark.parametrize("family", stable_diffusion_files.PREDICTIONS)
@torch.no_grad()
def test_graphs_take_and_give_what_the_parts_of_diffusers_do(family: str, sd_folder: SDFolder) -> None:
    """By the names of their arguments and outputs, in their units."""
    folder = sd_folder(family)
    graphs, pipeline = build_graphs(folder), diffusers.DiffusionPipeline.from_pretrained(folder)
    graph = graphs["unet"]
    inputs = dict(zip(graph.inputs, graph.example_inputs(True), strict=True))
    added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
    expected = pipeline.unet(
        inputs["sample"],
        inputs["timestep"],
        inputs["encoder_hidden_states"],
        return_dict=False,
        timestep_cond=inputs.get("timestep_cond"),
        added_cond_kwargs=added or None,
    )[0]
    assert relative_error(graph.build_module()(*inputs.values()), expected) <= 1e-5
    (latents,) = graphs["vae_decoder"].example_inputs(True)
    decoded = graphs["vae_decoder"].build_module()(latents)
    assert relative_error(decoded, pipeline.vae.decode(latents).sample) <= 1e-5
    (images,) = graphs["vae_encoder"].example_inputs(True)
    moments = pipeline.vae.encode(images).latent_dist.parameters
    assert relative_error(graphs["vae_encoder"].build_module()(images), moments) <= 1e-5
    names = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipeline, name, None) is not None]
    assert [name for name in graphs if name.startswith("text_encoder")] == names
    for name in names:
        (ids,) = graphs[name].example_inputs(True)
        theirs = getattr(pipeline, name)(ids.long(), output_hidden_states=True)
        outputs = dict(zip(graphs[name].outputs, graphs[name].build_module()(ids), strict=True))
        for output, value in outputs.items():
            kind, _, layer = output.partition(".")
            assert relative_error(value, theirs[kind][int(layer)] if layer else theirs[kind]) <= 1e-5, output


def test_the_onnx_pipeline_of_diffusers_draws_from_the_written_graphs(
    onnx: Runtime, sd_folder: SDFolder, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "graphs"
    assert main(["convert", str(sd_folder("1")), str(folder), "--to", "onnx"]) == 0
    printed = capsys.readouterr()
    graph_count = len(build_graphs(sd_folder("1")))
    assert printed.out.split() == [str(folder)] and printed.err.count("relative difference") == graph_count == 4
    options: Any = {"prompt": "a frog", "num_inference_steps": 3, "output_type": "np"}
    torch_pipeline = stable_diffusion_files.load_pipeline(sd_folder("1"))
    onnx_pipeline = diffusers.OnnxStableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    onnx_pipeline.set_progress_bar_config(disable=True)
    x = np.random.default_rng(0).standard_normal((1, 4, 12, 8), dtype=np.float32)
    # it takes the downsampling factor of every autoencoder for 8
    images = onnx_pipeline(**options, latents=x, height=96, width=64).images
    expected = torch_pipeline(**options, latents=torch.from_numpy(x), height=24, width=16).images
    assert images.shape == expected.shape and np.abs(images - expected).mean() <= 1e-4
    for part in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        assert (folder / part / "model.onnx").is_file() and (folder / part / "config.json").is_file()


def test_a_large_network_as_a_graph(
    onnx: Runtime, sd_folder: SDFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDXL's, its weights in a file of their own, as those of full size are."""
    monkeypatch.setattr(runtimes, "EXTERNAL_DATA_BYTES", 0)
    graph = build_graphs(sd_folder("xl"))["unet"]
    module = graph.build_module()
    runtimes.write_graph(graph, module, tmp_path / "unet", onnx)
    assert sorted(file.name for file in (tmp_path / "unet").iterdir()) == ["model.onnx", "model.onnx.data"]
    for inputs in (graph.example_inputs(True), graph.example_inputs(False)):
        (output,) = onnx.run_graph(tmp_path / "unet", list(graph.inputs), inputs)
        assert relative_error(output, runtimes.run_module(module, inputs)[0]) <= 1e-5


@pytest.fixture(scope="module")
def exported_files() -> dict[str, bytes]:
    """The ONNX files of one model, by the names of the graphs."""
    return {}


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_model_of_ours_draws_by_its_graphs(
    to: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    exported_files: dict[str, bytes],
) -> None:
    def export_once(graph: ExportGraph, module: nn.Module, file: Path, export: Any = runtimes._export_onnx) -> None:
        if graph.name not in exported_files:
            export(graph, module, file)
            exported_files[graph.name] = file.read_bytes()
        file.write_bytes(exported_files[graph.name])

    monkeypatch.setattr(runtimes, "_export_onnx", export_once)
    runtime, model = request.getfixturevalue(to), random_model()
    save(model, tmp_path / "tiny.safetensors")
    folder = tmp_path / "graphs"
    assert main(["convert", str(tmp_path / "tiny.safetensors"), str(folder), "--to", to]) == 0
    names = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == names
    assert all((folder / name / runtime.model_file).is_file() for name in names)
    levels = json.loads((folder / graph_folder.DESCRIPTION_FILE).read_text())["times"]
    ids = model.tokenizer.encode(["a frog on stilts"])
    tokens, _, mask = runtime.run_graph(folder / "text_encoder", ["input_ids"], (ids.int(),))
    (t, _, sigma), *rest = zip(levels["t"], levels["alpha"], levels["sigma"], strict=True)
    x = expected = sigma * torch.randn(1, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    inputs = ["sample", "timestep", "encoder_hidden_states", "encoder_attention_mask"]
    with torch.no_grad():
        conditioning = model.text_encoder(ids)
        for s, alpha_s, sigma_s in rest:  # DDIM, as docs/stable-diffusion.md describes it
            denoised = runtime.run_graph(folder / "unet", inputs, (x, torch.tensor([t]), tokens, mask.bool()))[0]
            x = alpha_s * denoised + sigma_s * (x - (1 - t) * denoised) / t
            denoised = model.denoiser(expected, torch.tensor([t]), conditioning)
            expected = alpha_s * denoised + sigma_s * (expected - (1 - t) * denoised) / t
            t = float(torch.tensor([s]))
        assert relative_error(x, expected) <= 1e-4
        (image,) = runtime.run_graph(folder / "vae_decoder", ["latent_sample"], (x,))
        assert relative_error(image, model.autoencoder.decode(expected)) <= 1e-4


@pytest.mark.parametrize("kind", ["coarse predictor", "concat", "transformer"])
def test_other_networks_of_ours_as_graphs(kind: str, onnx: Runtime, tmp_path: Path) -> None:
    model = random_model()
    if kind == "transformer":
        config = TransformerConfig(widths=(16, 32), depths=(1, 1), head_width=16, text_width=32, patch_size=2)
        network: nn.Module = Transformer(config)
    else:
        network = UNet(
            UNetConfig(
                patch_size=2,
                base_channels=16,
                channel_multipliers=(1,),
                blocks_per_level=1,
                transformer_depths=(1,),
                self_attention=(True,),
                head_width=16,
                text_width=32,
                vector_width=32,
                norm_groups=0,
                coarse_predictor_layers=int(kind == "coarse predictor"),
                concat_channels=4 * int(kind == "concat"),
            )
        )
    stable_diffusion_files.randomize_weights(network)
    model.denoiser = Denoiser(network, model.denoiser.schedule, "x")  # type: ignore[arg-type]
    graph = model_graphs.build_model_graphs(model)[1]
    assert graph.name == ("transformer" if kind == "transformer" else "unet")
    assert ("concat" in graph.inputs) == (kind == "concat")
    runtimes.write_graph(graph, graph.build_module(), tmp_path / graph.name, onnx)
    (output,) = onnx.run_graph(tmp_path / graph.name, list(graph.inputs), graph.example_inputs(True))
    x, t, tokens, mask, *rest = graph.example_inputs(True)
    with torch.no_grad():
        expected = model.denoiser(x, t, Conditioning(tokens, mask, *rest))
    assert relative_error(output, expected) <= 1e-5


def use_fake_runtime(monkeypatch: pytest.MonkeyPatch, run_graph: Any, write_graph: Any = lambda *_: None) -> None:
    """Replace ONNX Runtime by one that writes nothing, so that no package is needed."""
    runtime = Runtime("onnx", "model.onnx", (), lambda *_: None, run_graph)
    monkeypatch.setattr(graph_folder, "RUNTIMES", {"onnx": runtime})
    monkeypatch.setattr(graph_folder, "write_graph", write_graph)


def test_a_graph_that_computes_something_else_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    model = random_model()
    save(model, tmp_path / "tiny.safetensors")
    modules = {tuple(graph.inputs): graph.build_module() for graph in model_graphs.build_model_graphs(model)}

    def run_graph(error: float, folder: Path, names: Any, inputs: Any) -> list[Tensor]:
        outputs = runtimes.run_module(modules[(*names,)], inputs)
        return [output * (1 + error) if "unet" in str(folder) else output for output in outputs]

    for error, shown, exit_code in ((1e-5, "1.0e-05", 0), (1e-3, "1.0e-03", 1), (float("nan"), "inf", 1)):
        use_fake_runtime(monkeypatch, lambda *arguments, error=error: run_graph(error, *arguments))
        line = ["convert", str(tmp_path / "tiny.safetensors"), str(tmp_path / shown), "--to", "onnx"]
        assert main(line) == exit_code
        assert f"unet: relative difference {shown}" in capsys.readouterr().err


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    save(random_model(), tmp_path / "tiny.safetensors")

    def write_graph(graph: Any, module: Any, folder: Path, runtime: Any) -> None:
        folder.mkdir()
        if graph.name == "vae_decoder":
            raise KeyboardInterrupt

    use_fake_runtime(monkeypatch, None, write_graph)
    line = ["convert", str(tmp_path / "tiny.safetensors"), str(tmp_path / "out"), "--to", "onnx"]
    assert main(line) == 130
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.safetensors"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    capsys.readouterr()
    assert main(line) == 2 and "out: already exists; give a new folder" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["precious"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None if name == "onnxscript" else object())
    for name in ("onnx", "openvino"):
        assert main(["convert", str(tmp_path / "out"), "--to", name]) == 2
        message = f"unspeckle: --to {name}: needs onnxscript; pip install 'unspeckle[{name}]'\n"
        assert capsys.readouterr().err == message
    assert not [*tmp_path.iterdir()]


def model_of_diffusers_kind(scale_shift: bool) -> unspeckle.Model:
    """A model of ours whose network diffusers has too."""
    model = random_model()
    config = UNetConfig(
        base_channels=32,
        blocks_per_level=1,
        head_width=8,
        text_width=32,
        feed_forward=True,
        transformer_projection="linear",
        self_attention=(True, True),
        scale_shift=scale_shift,
    )
    network = UNet(config)
    stable_diffusion_files.randomize_weights(network)
    model.denoiser = Denoiser(network, model.denoiser.schedule, "v")
    return model


@pytest.mark.parametrize("scale_shift", [False, True])
@torch.no_grad()
def test_a_network_of_ours_that_diffusers_has_too(scale_shift: bool, tmp_path: Path, capsys: Any) -> None:
    model = model_of_diffusers_kind(scale_shift)
    save(model, tmp_path / "tiny.safetensors")
    assert main(["convert", str(tmp_path / "tiny.safetensors"), str(tmp_path / "out")]) == 0
    assert "relative difference 0.0e+00" in capsys.readouterr().err
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet").eval()
    conditioning = model.text_encoder(model.tokenizer.encode(["a frog", "two red frogs"]))
    x, t = random_feature_maps(3, 2, False), torch.tensor([0.6, 0.3])
    expected = unet(x, 1000 * t, conditioning.tokens, encoder_attention_mask=conditioning.mask).sample
    assert relative_error(model.network(x, t, conditioning), expected) <= 1e-5


def test_all_that_diffusers_lacks_is_named(tmp_path: Path, capsys: Any) -> None:
    save(random_model(), tmp_path / "tiny.safetensors")
    assert main(["convert", str(tmp_path / "tiny.safetensors"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert (
        "tiny.safetensors: has patches of 2 pixels, attention without feed-forward layers, attention without "
        "projections around it, levels without self-attention, which no network of diffusers has; write "
        "graphs of the whole model with --to onnx or --to openvino\n"
    ) in error and len(error.splitlines()) == 1
    save(model_of_diffusers_kind(False), tmp_path / "tiny.safetensors")
    assert main(["convert", str(tmp_path / "tiny.safetensors"), str(tmp_path / "b.safetensors")]) == 2
    assert "is no Stable Diffusion" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.safetensors"]
