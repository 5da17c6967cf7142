"""Imports point one way, and nothing heavy is loaded before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import unspeckle

ROOT = Path(unspeckle.__file__).parent
MATHEMATICS = ("schedule", "denoiser", "objective", "guidance", "samplers", "seeds")
GRIDS = "grids"  # the times on which they walk
PLAIN = ("errors", "version", "atomic", "quantities", "configuration", "kernels")  # know nothing of diffusion
ABOVE = {  # a file may import what stands in its own row or in a lower one, and what is named beside it
    "networks": 2, "presets": 2, "text": 2, "corpus": 2, "picture": 2, "terminal": 2, "prompts": 2, "storage": 2,
    "tensors": 2, "model": 3, "precision": 3, "formats": 3, "student": 4, "conditioning": 4, "sizes": 4, "order": 4,
    "border": 4, "start": 4, "inpaint": 4, "draw": 4, "film": 5, "training": 5, "scoring": 6, "commands": 7,
    "studio": 7, "cli": 8, "__main__": 9, "__init__": 9,
}  # fmt: skip
ROW = {**dict.fromkeys(PLAIN, 0), **dict.fromkeys((*MATHEMATICS, GRIDS), 1), **ABOVE}
APART = {  # rooms of one row that must not know each other
    ("corpus", "networks"), ("corpus", "text"), ("networks", "corpus"), ("networks", "text"), ("text", "corpus"),
    ("picture", "networks"), ("terminal", "picture"), ("film", "training"), ("training", "film"),
}  # fmt: skip


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(file: Path) -> set[str]:
    """Every module of ours that the file imports, anywhere in it."""
    module = ["unspeckle", *file.relative_to(ROOT).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = [] if node.level == 0 else module[: len(module) - node.level]
            name = ".".join([*start, *([node.module] if node.module else [])])
            found |= {f"{name}.{alias.name}" for alias in node.names} if name == "unspeckle" else {name}
    return {name for name in found if name.split(".")[0] == "unspeckle"}


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    here = file.relative_to(ROOT).parts[0].removesuffix(".py")
    assert here in ROW, f"{here} has no place yet among the rooms: give it a row above"
    if here == "__init__":
        return  # its names are looked up when they are touched: see the test of lightness
    for name in imports(file):
        there = room(name)
        assert ROW[there] <= ROW[here], f"{file.relative_to(ROOT)} imports {name}, which stands above it"
        assert (here, there) not in APART, f"{file.relative_to(ROOT)} imports {name}"


def test_training_gives_its_classes_names_of_their_own() -> None:
    """None that it takes from another room too: a reader could not tell one Batch from the other."""
    trees = [ast.parse(file.read_text("utf-8")) for file in (ROOT / "training").glob("*.py")]
    own = {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    nodes = [node for tree in trees for node in tree.body if isinstance(node, ast.ImportFrom)]
    foreign = [node for node in nodes if not str(node.module).startswith("unspeckle.training")]
    assert own & {alias.name for node in foreign for alias in node.names} == set()


def test_the_mathematics_is_small() -> None:
    lines = {name: len((ROOT / f"{name}.py").read_text().splitlines()) for name in (*MATHEMATICS, GRIDS)}
    assert sum(lines[name] for name in MATHEMATICS) <= 700
    assert lines[GRIDS] <= 60


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_light() -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'rich', 'tokenizers', 'safetensors'} & {m.split('.')[0] for m in sys.modules}"
    assert run(f"import sys, unspeckle; print({heavy})") == "set()\n"
    code = (
        "import sys, io, contextlib\nfrom unspeckle.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    for words in ([], ['draw'], ['train'], ['score'], ['make-corpus', 'emoji']):\n"
        "        assert main([*words, '--help']) == 0\n"
        "    assert main(['--version']) == 0\n"
        "print('torch' in sys.modules)"
    )
    assert run(code) == "False\n"


def test_draw_is_the_function_in_every_order() -> None:
    orders = (
        "import unspeckle",
        "import unspeckle.generation.pipeline",
        "import unspeckle.output.film_strip",
        "from unspeckle import draw",
        "from unspeckle.generation.pipeline import steps",
        "import unspeckle; unspeckle.generation.pipeline; import unspeckle.generation.pipeline",
        "import importlib; importlib.import_module('unspeckle.generation.pipeline')",
    )
    tests = "".join(
        f"for name in [m for m in sys.modules if m.startswith('unspeckle')]: del sys.modules[name]\n{order}\n"
        "import unspeckle\n"
        "assert callable(unspeckle.generation.pipeline) and unspeckle.generation.pipeline.__name__ == 'draw', unspeckle.generation.pipeline\n"
        "assert unspeckle.steps is sys.modules['unspeckle.generation.pipeline'].steps and unspeckle.Ask(seed=3).seed == 3\n"
        "from unspeckle import draw as function\nassert function is unspeckle.generation.pipeline\n"
        for order in orders
    )
    run(f"import sys\n{tests}")


def test_names() -> None:
    assert set(unspeckle.__all__) <= set(dir(unspeckle))
    assert all(hasattr(unspeckle, name) for name in unspeckle.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = unspeckle.nonsense  # type: ignore[attr-defined]
