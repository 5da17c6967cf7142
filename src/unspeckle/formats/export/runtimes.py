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
from unspeckle.formats.export.stable_diffusion_graphs import Graph, Tensors

OPSET = 20
EXTERNAL = 1 << 30  # bytes of weights from which they lie in a file of their own; one file of ONNX ends at 2 GiB
_WRITERS = ("onnx", "onnxscript")


@dataclass(frozen=True)
class Runtime:
    """write(path without its file's name, the ONNX file) and answer(file, inputs in the graph's order)."""

    name: str  # of the option and of the extra
    file: str
    needs: tuple[str, ...]
    write: Callable[[Path, Path], None]
    answer: Callable[[Path, Sequence[str], Tensors], list[Tensor]]

    def ready(self) -> "Runtime":
        """Itself. InputError, telling what to install, where a package that it needs is missing."""
        lacks = [name for name in self.needs if find_spec(name) is None]
        if lacks:
            raise InputError(f"--to {self.name}: needs {', '.join(lacks)}; pip install 'unspeckle[{self.name}]'")
        return self


def write(graph: Graph, module: nn.Module, place: Path, runtime: Runtime) -> None:
    """The graph into the folder `place`, as the runtime reads it."""
    place.mkdir(parents=True)
    _onnx(graph, module, place / "model.onnx")
    runtime.write(place, place / "model.onnx")


@torch.no_grad()
def answers(module: nn.Module, question: Tensors) -> list[Tensor]:
    """The module's own, to compare with."""
    told = module(*question)
    return list(told) if isinstance(told, tuple) else [told]


def _onnx(graph: Graph, module: nn.Module, file: Path) -> None:
    """One .onnx file; its weights beside it, in .onnx.data, where they are large."""
    named: dict[str, Any] = {}

    def free(name: str, unit: int) -> Any:
        dim = named.setdefault(name, torch.export.Dim(name))
        return dim if unit == 1 else unit * dim

    shapes = [{at: free(*side) for at, side in sides.items()} for sides in graph.inputs.values()]
    count = _named(module)
    more = [tuple(shapes[count:])] if shapes[count:] else []
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module, graph.example(False), dynamo=True, opset_version=OPSET, dynamic_shapes=(*shapes[:count], *more),
            input_names=list(graph.inputs), output_names=list(graph.outputs), verbose=False,
        )  # fmt: skip
    assert program is not None
    weights = sum(held.numel() * held.element_size() for held in module.state_dict().values())
    program.save(file, external_data=weights >= EXTERNAL)


def _named(module: nn.Module) -> int:
    """How many arguments the module's forward names; the exporter wants those behind, its *more, as one tuple."""
    return type(module).forward.__code__.co_argcount - 1


@contextmanager
def _quiet() -> Iterator[None]:
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


def _keep(place: Path, file: Path) -> None:
    """ONNX Runtime reads it as it is."""


def _by_onnxruntime(place: Path, names: Sequence[str], question: Tensors) -> list[Tensor]:
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.disable_prepacking", "1")  # asked once: no second copy of the weights
    session = onnxruntime.InferenceSession(place / "model.onnx", options, providers=["CPUExecutionProvider"])
    told = session.run(None, {name: one.numpy() for name, one in zip(names, question, strict=True)})
    return [torch.from_numpy(one) for one in told]


def _to_openvino(place: Path, file: Path) -> None:
    openvino: Any = import_module("openvino")
    model = openvino.Core().read_model(file)
    openvino.save_model(model, place / "openvino_model.xml", compress_to_fp16=False)
    del model
    for written in (file, file.with_name(f"{file.name}.data")):
        written.unlink(missing_ok=True)


def _by_openvino(place: Path, names: Sequence[str], question: Tensors) -> list[Tensor]:
    openvino: Any = import_module("openvino")
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    model = openvino.Core().compile_model(place / "openvino_model.xml", "CPU", exact)
    told = model({name: one.numpy() for name, one in zip(names, question, strict=True)})
    return [torch.from_numpy(told[output].copy()) for output in model.outputs]


RUNTIMES = {
    one.name: one
    for one in (
        Runtime("onnx", "model.onnx", (*_WRITERS, "onnxruntime"), _keep, _by_onnxruntime),
        Runtime("openvino", "openvino_model.xml", (*_WRITERS, "openvino"), _to_openvino, _by_openvino),
    )
}
