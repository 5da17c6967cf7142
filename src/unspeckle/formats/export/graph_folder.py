"""A model as a folder of graphs for ONNX Runtime or OpenVINO, and how far these are from the model."""

import gc
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from unspeckle.atomic import create_folder
from unspeckle.errors import InputError
from unspeckle.formats.export import model_graphs
from unspeckle.formats.export.graphs import ExportGraph
from unspeckle.formats.export.runtimes import RUNTIMES, Runtime, run_module, write_graph
from unspeckle.formats.export.stable_diffusion_graphs import build_stable_diffusion_graphs
from unspeckle.formats.stable_diffusion import writing
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.diffusers_json import component_jsons, model_index_json
from unspeckle.model import Model
from unspeckle.text.tokenizer import Tokenizer

# Describes a model of ours to the program that runs its graphs
DESCRIPTION_FILE = "unspeckle.json"


def find_runtime(name: str) -> Runtime:
    """The runtime of that name. InputError where there is none, or what it needs is not installed."""
    if name not in RUNTIMES:
        raise InputError(f" {name}: unknown; choose one of {', '.join(RUNTIMES)}", "to")
    return RUNTIMES[name].require_installed()


def write_graph_folder(
    source: StableDiffusionCheckpoint | Model, target: Path, runtime: Runtime
) -> Iterator[tuple[str, float]]:
    """Write the new folder `target`, completely or not at all. The iterator then runs each graph on inputs other than
    those that it was traced with, and gives its name and its relative difference from the model."""
    expected: dict[str, list[Tensor]] = {}
    with create_folder(target) as folder:
        graphs = _write_descriptions(source, folder, runtime)
        for graph in graphs:
            module = graph.build_module()
            expected[graph.name] = run_module(module, graph.example_inputs(True))
            write_graph(graph, module, folder / graph.name, runtime)
            if graph.config:
                writing.write_json_file(folder / graph.name / "config.json", graph.config)
            del module
            # Exported programs hold on to their weights in reference cycles.
            gc.collect()
    return ((graph.name, _graph_difference(graph, expected[graph.name], target, runtime)) for graph in graphs)


def _write_descriptions(source: StableDiffusionCheckpoint | Model, folder: Path, runtime: Runtime) -> list[ExportGraph]:
    """Write the files beside the graphs (configuration, tokenizers), and return the graphs to write."""
    if isinstance(source, StableDiffusionCheckpoint):
        index, graphs = model_index_json(source), build_stable_diffusion_graphs(source, component_jsons(source))
        writing.write_pipeline_files(source, folder, onnx_pipeline_index(index) if runtime.name == "onnx" else index)
        return graphs
    graphs = model_graphs.build_model_graphs(source)
    assert isinstance(source.tokenizer, Tokenizer)
    (folder / "tokenizer").mkdir()
    source.tokenizer.bpe.save(str(folder / "tokenizer" / "tokenizer.json"))
    writing.write_json_file(folder / DESCRIPTION_FILE, model_graphs.describe_for_runtime(source))
    return graphs


def onnx_pipeline_index(index: dict[str, object]) -> dict[str, object]:
    """The content of model_index.json with the parts that diffusers' ONNX pipeline runs."""
    parts = [key for key in index if key.startswith(("text_encoder", "unet")) and index[key] != [None, None]]
    rest = {key: value for key, value in index.items() if key != "vae"}
    return rest | {key: ["diffusers", "OnnxRuntimeModel"] for key in (*parts, "vae_decoder", "vae_encoder")}


def _graph_difference(graph: ExportGraph, expected: list[Tensor], target: Path, runtime: Runtime) -> float:
    """The largest relative difference of a graph's outputs, as the other program computes them, from the model's."""
    outputs = runtime.run_graph(target / graph.name, list(graph.inputs), graph.example_inputs(True))
    return max(writing.relative_difference(one, other) for one, other in zip(outputs, expected, strict=True))
