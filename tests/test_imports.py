"""Imports point one way, there is no circle among them, and nothing heavy is loaded before it is needed."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import unspeckle

ROOT = Path(unspeckle.__file__).parent
MOST_ROOMS = 31  # files and folders on the top floor of the package

# A module may import modules of its own row and of the rows above it. A room has the row of its longest prefix here.
ROWS = (
    # plain helpers that know nothing of diffusion
    ("errors", "version", "atomic", "configuration", "quantities", "old_names"),
    # the ideas of the field
    ("schedule", "denoiser", "objective", "guidance", "samplers", "timesteps", "rng"),
    ("networks", "prompts", "corpus", "kernels.compiling"),
    ("text", "presets"),
    ("model", "unclip", "upsampler"),
    # what makes CPUs fast, swapped in from outside
    ("kernels", "quantization"),
    # files: their tensors and the layouts of other programs, then any path to a model
    ("formats",),
    ("model_io",),
    ("generation",),
    ("output",),
    ("training",),
    ("scoring",),
    ("cli",),
    ("__main__", "__init__"),
)
APART = (  # rooms that must not know each other, whatever their rows
    ("networks", "corpus"), ("networks", "text"), ("networks", "kernels"), ("networks", "quantization"),
    ("networks", "prompts"), ("corpus", "networks"), ("corpus", "text"), ("corpus", "prompts"), ("text", "corpus"),
    ("prompts", "networks"), ("output", "training"),
)  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below it; packages by that of their __init__."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = file
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Every module of the package that this one imports, anywhere in it: function-level imports count."""
    file, known = modules()[module], modules()
    package = ["unspeckle", *file.relative_to(ROOT).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    below = {name.removeprefix("unspeckle.") for name in names if name.startswith("unspeckle.")}
    whole = {name for name in below if name in known}
    # a package is imported for a name of its own only where the name is no module below it
    return frozenset(name for name in whole if name != module and not any(n.startswith(f"{name}.") for n in whole))


def row(module: str) -> int:
    rows = {name: number for number, names in enumerate(ROWS) for name in names}
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in rows:
            return rows[name]
    raise AssertionError(f"{module} has no place yet among the rooms: give it a row above")


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_one_way(module: str) -> None:
    if module == "__init__":
        return  # its names are looked up when they are first used: see the test of lightness
    for other in imports(module):
        assert row(other) <= row(module), f"{module} imports {other}, which stands above it"
        rooms = (module.split(".")[0], other.split(".")[0])
        assert rooms not in APART, f"{module} imports {other}"


def test_no_two_rooms_import_each_other() -> None:
    pairs = {(a.split(".")[0], b.split(".")[0]) for a in modules() if a != "__init__" for b in imports(a)}
    assert {(a, b) for a, b in pairs if a < b and (b, a) in pairs} == set()


def test_there_is_no_circle_of_imports() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in done:
            for other in imports(module):
                visit(other, (*path, module))
            done.add(module)

    for module in modules():
        if module != "__init__":
            visit(module, ())


def test_a_newcomer_finds_few_rooms_on_the_top_floor() -> None:
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    rooms |= {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert len(rooms - {"__init__", "__main__"}) <= MOST_ROOMS


def test_classes_have_names_of_their_own() -> None:
    """A reader must not have to look up which of two classes of one name is meant."""
    places: dict[str, list[str]] = {}
    for module, file in modules().items():
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_functions_fit_on_a_screen() -> None:
    """At most 60 lines; the options of a command are a table, not counted."""
    long = []
    for module, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[0].lineno if module.startswith("cli") else node.lineno
                if (node.end_lineno or 0) - body >= 60:
                    long.append(f"{module}.{node.name}")
    assert long == []


def test_calls_name_what_they_give() -> None:
    """At most six positional arguments, but for tables (rows of a literal) and calls of C functions and torch ops."""
    long = []
    for module, file in modules().items():
        tree = ast.parse(file.read_text("utf-8"))
        tables = [node.elts for node in ast.walk(tree) if isinstance(node, ast.Tuple | ast.List)]
        rows = {element for elements in tables for element in elements}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and len(node.args) > 6 and node not in rows:
                callee = ast.unparse(node.func)
                if not callee.startswith(("kernel.", "torch.ops.", "kernel(")) and callee != "kernel":
                    long.append(f"{module}:{node.lineno} {callee}")
    assert long == []


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_and_its_help_is_light() -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'rich', 'tokenizers', 'safetensors'} & {m.split('.')[0] for m in sys.modules}"
    assert run(f"import sys, unspeckle; print({heavy})") == "set()\n"
    commands = (
        ["draw"],
        ["replay"],
        ["convert"],
        ["check"],
        ["train"],
        ["distil"],
        ["score"],
        ["make-corpus", "emoji"],
    )
    code = (
        "import sys, io, contextlib\nfrom unspeckle.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    for words in ([], *{commands!r}):\n"
        "        assert main([*words, '--help']) == 0\n"
        "    assert main(['--version']) == 0\n"
        "print('torch' in sys.modules)"
    )
    assert run(code) == "False\n"
