"""`unspeckle convert --to`: a model as graphs for ONNX Runtime or OpenVINO, and how far these are from it."""

import gc
import sys
from pathlib import Path

from torch import Tensor

from unspeckle.atomic import create_folder
from unspeckle.errors import InputError
from unspeckle.formats.export import model_graphs
from unspeckle.formats.export.runtimes import RUNTIMES, Runtime, run_module, write_graph
from unspeckle.formats.export.stable_diffusion_graphs import ExportGraph, build_stable_diffusion_graphs
from unspeckle.formats.stable_diffusion import writing
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.model import Model

TOLERANCE = 1e-4  # relative, of each part
DESCRIPTION = "unspeckle.json"


def find_runtime(name: str) -> Runtime:
    """The runtime of that name. InputError where there is none, or what it needs is not installed."""
    if name not in RUNTIMES:
        raise InputError(f"--to {name}: unknown; choose one of {', '.join(RUNTIMES)}")
    return RUNTIMES[name].require_installed()


def run(source: StableDiffusionCheckpoint | Model, target: Path, to: Runtime) -> float:
    """Write the new folder `target`, whole or not at all, then ask each graph another question than the one that it was
    traced with. Returns the largest relative difference from what the model answers; one line says each part's."""
    expected: dict[str, list[Tensor]] = {}
    with create_folder(target) as place:
        if isinstance(source, StableDiffusionCheckpoint):
            index, configs = writing.build_diffusers_configs(source)
            graphs = build_stable_diffusion_graphs(source, configs)
            writing.write_pipeline_files(source, place, onnx_pipeline_index(index) if to.name == "onnx" else index)
        else:
            graphs = model_graphs.build_model_graphs(source)
            (place / "tokenizer").mkdir()
            source.tokenizer.bpe.save(str(place / "tokenizer" / "tokenizer.json"))
            writing.write_json_file(place / DESCRIPTION, model_graphs.describe_for_runtime(source))
        for graph in graphs:
            module = graph.build_module()
            expected[graph.name] = run_module(module, graph.example_inputs(True))
            write_graph(graph, module, place / graph.name, to)
            if graph.config:
                writing.write_json_file(place / graph.name / "config.json", graph.config)
            del module
            gc.collect()  # exported programs hold on to weights in circles
    print(target.absolute())
    return max(report_difference(graph, expected[graph.name], target, to) for graph in graphs)


def onnx_pipeline_index(index: dict[str, object]) -> dict[str, object]:
    """The index, with parts that diffusers' own ONNX pipeline runs."""
    parts = [key for key in index if key.startswith(("text_encoder", "unet")) and index[key] != [None, None]]
    rest = {key: value for key, value in index.items() if key != "vae"}
    return rest | {key: ["diffusers", "OnnxRuntimeModel"] for key in (*parts, "vae_decoder", "vae_encoder")}


def report_difference(graph: ExportGraph, expected: list[Tensor], target: Path, to: Runtime) -> float:
    told = to.run_graph(target / graph.name, list(graph.inputs), graph.example_inputs(True))
    error = max(writing.relative_difference(one, other) for one, other in zip(told, expected, strict=True))
    print(f"{graph.name}: relative difference {error:.1e}", file=sys.stderr)
    return error
