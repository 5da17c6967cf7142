"""ONNX Runtime and OpenVINO: how a graph is written for them, and what they compute with it."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unspeckle.errors import InputError
from unspeckle.formats.export.graphs import ExportGraph, TensorTuple

OPSET = 20  # the version of ONNX's operators
EXTERNAL_DATA_BYTES = 1 << 30  # weights of this size get a file of their own, since an ONNX file ends at 2 GiB
_EXPORT_PACKAGES = ("onnx", "onnxscript")


@dataclass(frozen=True)
class Runtime:
    """A program that runs graphs."""

    # of the option --to and of the package's extra
    name: str
    # the name of the file that it reads in a graph's folder
    model_file: str
    # the packages that it needs
    packages: tuple[str, ...]
    # makes that file in the folder from the ONNX file
    convert: Callable[[Path, Path], None]
    # the outputs for a graph's folder, the names of its inputs, and these
    run_graph: Callable[[Path, Sequence[str], TensorTuple], list[Tensor]]

    def require_installed(self) -> "Runtime":
        """The runtime itself. InputError, saying what to install, where one of its packages is missing."""
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise InputError(f" {self.name}: needs {', '.join(missing)}; pip install 'unspeckle[{self.name}]'", "to")
        return self


def write_graph(graph: ExportGraph, module: nn.Module, folder: Path, runtime: Runtime) -> None:
    """Write the graph of the module into the new folder, as the runtime reads it."""
    folder.mkdir(parents=True)
    _export_onnx(graph, module, folder / "model.onnx")
    runtime.convert(folder, folder / "model.onnx")


@torch.no_grad()
def run_module(module: nn.Module, inputs: TensorTuple) -> list[Tensor]:
    """The outputs of the module itself, to compare with."""
    outputs = module(*inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def _export_onnx(graph: ExportGraph, module: nn.Module, file: Path) -> None:
    """Write one .onnx file, and its weights beside it, in .onnx.data, where they are large."""
    dims: dict[str, Any] = {}

    def dynamic_dim(name: str, multiple: int) -> Any:
        dim = dims.setdefault(name, torch.export.Dim(name))
        return dim if multiple == 1 else multiple * dim

    dynamic_shapes = [
        {axis: dynamic_dim(name, multiple) for axis, (name, multiple) in axes.items()} for axes in graph.inputs.values()
    ]
    named_count = _count_named_arguments(module)
    variadic_shapes = [tuple(dynamic_shapes[named_count:])] if dynamic_shapes[named_count:] else []
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            graph.example_inputs(False),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(*dynamic_shapes[:named_count], *variadic_shapes),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
    assert program is not None
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    program.save(file, external_data=weight_bytes >= EXTERNAL_DATA_BYTES)


def _count_named_arguments(module: nn.Module) -> int:
    """How many arguments of the module's forward have names; the exporter wants those of its *extras as one tuple."""
    return type(module).forward.__code__.co_argcount - 1


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's messages about itself and about packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _keep_onnx(folder: Path, onnx_file: Path) -> None:
    """Nothing: ONNX Runtime reads the ONNX file as it is."""


def _run_onnxruntime(folder: Path, names: Sequence[str], inputs: TensorTuple) -> list[Tensor]:
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # it runs once, so a second, packed copy of the weights would not pay
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    return [torch.from_numpy(array) for array in outputs]


def _convert_to_openvino(folder: Path, onnx_file: Path) -> None:
    openvino: Any = import_module("openvino")
    model = openvino.Core().read_model(onnx_file)
    openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    del model
    for old_file in (onnx_file, onnx_file.with_name(f"{onnx_file.name}.data")):
        old_file.unlink(missing_ok=True)


def _run_openvino(folder: Path, names: Sequence[str], inputs: TensorTuple) -> list[Tensor]:
    openvino: Any = import_module("openvino")
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    model = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", config)
    outputs = model({name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    return [torch.from_numpy(outputs[output].copy()) for output in model.outputs]


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("onnx", "model.onnx", (*_EXPORT_PACKAGES, "onnxruntime"), _keep_onnx, _run_onnxruntime),
        Runtime("openvino", "openvino_model.xml", (*_EXPORT_PACKAGES, "openvino"), _convert_to_openvino, _run_openvino),
    )
}
