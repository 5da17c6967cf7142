"""Model files taken apart and put together again, to test what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import MODEL_METADATA_KEY


def read_model_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and the tensors of a model file."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()[MODEL_METADATA_KEY]), tensors


def write_model_file(path: Path, metadata: object, tensors: dict[str, Tensor]) -> Path:
    """Write a model file of these metadata (JSON text, or what becomes JSON) and tensors; returns the path."""
    save_file(tensors, path, {MODEL_METADATA_KEY: metadata if isinstance(metadata, str) else json.dumps(metadata)})
    return path


def load_error(path: Path) -> str:
    """The one line with which loading the file is refused; it names the file."""
    with pytest.raises(InputError) as caught:
        load(path)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line
    return line
