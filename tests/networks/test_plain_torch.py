"""Networks are plain PyTorch: they know nothing of kernels, quantization or compilation, which are swapped in from
outside."""

import ast
from pathlib import Path

import pytest

import unspeckle.networks

FILES = sorted(Path(unspeckle.networks.__file__).parent.glob("*.py"))
# How a module could ask at run time what it is made of, and compute something else.
HOOKS = {"getattr", "hasattr", "register_forward_hook", "register_forward_pre_hook"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_networks_import_no_kernels(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    rooms = {name.split(".")[1] for name in modules if name and name.startswith("unspeckle.")}
    assert rooms <= {"networks", "denoiser", "errors"}
    assert "ctypes" not in modules


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_networks_have_no_hooks(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & HOOKS
    assert not {name for name in names if "compile" in name or "kernel" in name.lower()}
