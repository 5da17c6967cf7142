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
from unspeckle.formats.export.stable_diffusion_graphs import ExportGraph, TensorTuple

OPSET = 20
EXTERNAL_DATA_BYTES = (
    1 << 30
)  # bytes of weights from which they lie in a file of their own; one file of ONNX ends at 2 GiB
_EXPORT_PACKAGES = ("onnx", "onnxscript")


@dataclass(frozen=True)
class Runtime:
    """write(path without its file's name, the ONNX file) and answer(file, inputs in the graph's order)."""

    name: str  # of the option and of the extra
    model_file: str
    packages: tuple[str, ...]
    convert: Callable[[Path, Path], None]
    run_graph: Callable[[Path, Sequence[str], TensorTuple], list[Tensor]]

    def require_installed(self) -> "Runtime":
        """Itself. InputError, telling what to install, where a package that it needs is missing."""
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise InputError(f"--to {self.name}: needs {', '.join(missing)}; pip install 'unspeckle[{self.name}]'")
        return self


def write_graph(graph: ExportGraph, module: nn.Module, folder: Path, runtime: Runtime) -> None:
    """The graph into the folder `place`, as the runtime reads it."""
    folder.mkdir(parents=True)
    _export_onnx(graph, module, folder / "model.onnx")
    runtime.convert(folder, folder / "model.onnx")


@torch.no_grad()
def run_module(module: nn.Module, inputs: TensorTuple) -> list[Tensor]:
    """The module's own, to compare with."""
    outputs = module(*inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def _export_onnx(graph: ExportGraph, module: nn.Module, file: Path) -> None:
    """One .onnx file; its weights beside it, in .onnx.data, where they are large."""
    dims: dict[str, Any] = {}

    def dynamic_dim(name: str, multiple: int) -> Any:
        dim = dims.setdefault(name, torch.export.Dim(name))
        return dim if multiple == 1 else multiple * dim

    dynamic_shapes = [
        {axis: dynamic_dim(*name_and_multiple) for axis, name_and_multiple in axes.items()}
        for axes in graph.inputs.values()
    ]
    named_count = _count_named_arguments(module)
    variadic_shapes = [tuple(dynamic_shapes[named_count:])] if dynamic_shapes[named_count:] else []
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module, graph.example_inputs(False), dynamo=True, opset_version=OPSET, dynamic_shapes=(*dynamic_shapes[:named_count], *variadic_shapes),
            input_names=list(graph.inputs), output_names=list(graph.outputs), verbose=False,
        )  # fmt: skip
    assert program is not None
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    program.save(file, external_data=weight_bytes >= EXTERNAL_DATA_BYTES)


def _count_named_arguments(module: nn.Module) -> int:
    """How many arguments the module's forward names; the exporter wants those behind, its *more, as one tuple."""
    return type(module).forward.__code__.co_argcount - 1


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's words about packages that are not here and about itself."""
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
    """ONNX Runtime reads it as it is."""


def _run_onnxruntime(folder: Path, names: Sequence[str], inputs: TensorTuple) -> list[Tensor]:
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.disable_prepacking", "1")  # asked once: no second copy of the weights
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
