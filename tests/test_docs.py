"""What the documents say about the code is true: quotes, files, commands, options and Python examples."""

import ast
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main

import unspeckle
from tiny_models import random_model
from unspeckle import old_names
from unspeckle.cli.app import app
from unspeckle.samplers import SAMPLERS
from unspeckle.timesteps import TIMESTEP_SPACINGS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "unspeckle"
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
}
# What history and the changelog name was true once; all other documents speak of the present.
PRESENT = {name: text for name, text in DOCUMENTS.items() if "history/" not in name and name != "CHANGELOG.md"}
HOW_IT_WORKS = PRESENT["docs/how-it-works.md"].split("## Try it")[0]
SCRIPTS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in ROOT.glob("benchmarks/*.py")} | {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in ROOT.glob("recipes/*")
}
CLI: Any = typer.main.get_command(app)  # a group of click's, which typer may bring along under a name of its own


# Quotes of code


def normalize_whitespace(text: str) -> str:
    return " ".join(text.split())


FILES = {path: normalize_whitespace(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")}
QUOTES = [
    (section, normalize_whitespace(block))
    for section in HOW_IT_WORKS.split("\n## ")
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
]


@pytest.mark.parametrize(("section", "quote"), QUOTES, ids=[quote[:30] for _, quote in QUOTES])
def test_every_quote_is_copied_from_a_file_that_its_section_names(section: str, quote: str) -> None:
    assert any(quote in text for path, text in FILES.items() if path.name in section)


@pytest.mark.parametrize("name", [*SAMPLERS, *TIMESTEP_SPACINGS])
def test_every_sampler_and_timestep_spacing_stands_in_a_table(name: str) -> None:
    section = HOW_IT_WORKS.split("## 4. ")[1].split("\n## 5. ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert any(f"`{name}`" in row.split("|")[1] for row in rows)


# Files


def test_the_map_of_the_rooms_is_complete() -> None:
    section = DOCUMENTS["README.md"].split("## The rooms")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (.*?) \|", section, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    there = {path.name + "/" * path.is_dir() for path in SOURCE.iterdir() if not path.name.startswith("__")}
    assert named == there


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_to_a_file(document: str) -> None:
    prose = re.sub(r"```.*?```", "", DOCUMENTS[document], flags=re.DOTALL)
    links = {target for target in re.findall(r"\]\(([^)#]+)", prose) if "://" not in target}
    assert not {target for target in links if not (ROOT / document).parent.joinpath(target).exists()}


@pytest.mark.parametrize("document", PRESENT)
def test_every_file_that_is_named_exists(document: str) -> None:
    """Paths from the root or within the package, such as `benchmarks/composition.py` and `networks/unet.py`."""
    code = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PRESENT[document], flags=re.DOTALL))
    paths = {word for span in code for word in span.split() if re.fullmatch(r"[\w./-]+/[\w-]+\.(?:py|sh|md|cpp)", word)}
    paths |= set(re.findall(r"(?:recipes|benchmarks|docs|tests)/[\w./-]+\.(?:py|sh|md)", PRESENT[document]))
    assert not {path for path in paths if not (ROOT / path).exists() and not (SOURCE / path).exists()}


@pytest.mark.parametrize("document", PRESENT)
def test_every_name_in_the_code_exists(document: str) -> None:
    """Names with an underscore or with capitals inside, such as `ddim_step` and `FlowSchedule`."""
    words = set(re.findall(r"\w+", " ".join([*FILES.values(), *SCRIPTS.values()])))
    names = [name for span in spans_of(PRESENT[document]) for name in span.split(".")]
    code = {name for name in names if re.fullmatch(r"[a-z]+(_[a-z]+)+|([A-Z]+[a-z]+){2,}", name)}
    assert code <= words


# Commands


def blocks_of(text: str) -> Iterator[str]:
    """The lines of fenced and of indented blocks of code."""
    fenced = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    yield from (line.strip() for line in "\n".join(fenced).splitlines())
    yield from re.findall(r"^ {4,}(\S.*)$", prose, re.MULTILINE)


def spans_of(text: str) -> Iterator[str]:
    """The spans of code within the prose."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))


def code_of(text: str) -> list[str]:
    return [*blocks_of(text), *spans_of(text)]


def commands_of_recipe(script: str) -> list[str]:
    """The command lines of a shell script, with its settings at their defaults."""
    script = script.replace("\\\n", " ")
    defaults = dict(re.findall(r"(\w+)=\$\{\1:-([^}]*)\}", script))
    lines = re.findall(r"(?:unspeckle|\brun_part) ((?:train|distil|draw|make-corpus|score)\b[^\n;]*)", script)
    return ["unspeckle " + re.sub(r"\$(\w+)", lambda name: defaults.get(name[1], name[1]), line) for line in lines]


def named_commands(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line.startswith("unspeckle ") and "unspeckle: " not in line]


def find_command(arguments: list[str]) -> tuple[Any, str, list[str], Any]:
    """The command that the arguments begin with, its name, the arguments that are left, and its parent's context."""
    command, name, context = CLI, "unspeckle", None
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        context = command.context_class(command, info_name=name, parent=context)
        name, command, arguments = command.resolve_command(context, arguments)
    return command, name, list(arguments), context


COMMANDS = [(name, line) for name, text in PRESENT.items() for line in named_commands(blocks_of(text))] + [
    (name, line) for name, text in SCRIPTS.items() if name.endswith(".sh") for line in commands_of_recipe(text)
]
SPANS = [(document, span) for document, text in PRESENT.items() for span in named_commands(spans_of(text))]


@pytest.mark.parametrize(("document", "line"), COMMANDS)
def test_every_command_parses(document: str, line: str) -> None:
    """As the command line parses it; nothing is run."""
    command, name, arguments, context = find_command(shlex.split(line, comments=True)[1:])
    parameters = command.make_context(name, arguments, parent=context).params
    assert parameters.get("sampler") in (None, *SAMPLERS)
    assert parameters.get("timestep_spacing") in (None, *TIMESTEP_SPACINGS)


@pytest.mark.parametrize(("document", "span"), SPANS)
def test_every_command_within_a_sentence_has_its_options(document: str, span: str) -> None:
    command, _, arguments, _ = find_command(span.split()[1:])
    named = {argument for argument in arguments if argument.startswith("-")}
    assert named <= {*options_of(command), "--help"}


def options_of(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for subcommand in getattr(command, "commands", {}).values():
        yield from options_of(subcommand)


SCRIPT_OPTIONS = {option for text in SCRIPTS.values() for option in re.findall(r'"(--[\w-]+)"', text)}


@pytest.mark.parametrize("document", PRESENT)
def test_every_option_that_is_named_exists(document: str) -> None:
    named = {option for line in code_of(PRESENT[document]) for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", line)}
    assert named <= {*options_of(CLI), *SCRIPT_OPTIONS, "--help"}


@pytest.mark.parametrize("document", PRESENT)
def test_every_script_is_called_with_options_that_it_has(document: str) -> None:
    for line in code_of(PRESENT[document]):
        if script := re.search(r"\bpython3? ((?:benchmarks|recipes)/\w+\.py)(.*)", line):
            assert set(re.findall(r" (--[\w-]+)", script[2])) <= set(re.findall(r'"(--[\w-]+)"', SCRIPTS[script[1]]))


@pytest.mark.parametrize("document", PRESENT)
def test_every_make_target_exists(document: str) -> None:
    called = {line.split()[1] for line in code_of(PRESENT[document]) if re.match(r"make \w", line)}
    assert called <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def changelog_rows(title: str) -> list[list[list[str]]]:
    """The rows of the table below that title: for each cell, its spans of code."""
    section = DOCUMENTS["CHANGELOG.md"].split(f"### Changed: {title}\n")[1].split("\n###")[0]
    rows = [row.split("|") for row in re.findall(r"^\| (.*) \|$", section, re.MULTILINE)[1:]]
    return [[re.findall(r"`([^`]+)`", cell) or [cell.strip()] for cell in row] for row in rows if "`" in row[-1]]


def test_the_changelog_names_the_present_options() -> None:
    for commands, old, new in changelog_rows("options of the command line"):
        for command in commands:
            options = set(options_of(CLI.commands[command.split()[0]]))
            assert set(new) <= options and not set(old) & options, command


def test_the_changelog_names_the_present_functions() -> None:
    for _, (new, *_) in changelog_rows("Python"):
        module, _, name = new.split("(")[0].rpartition(".")
        if module.startswith("unspeckle"):
            assert hasattr(import_module(module), name), new


@pytest.mark.parametrize(
    ("place", "names"),
    [("metadata of an image", old_names.IMAGE_METADATA), ("card of a model", old_names.CARD)],
)
def test_the_changelog_lists_the_renamed_keys(place: str, names: dict[str, str]) -> None:
    rows = [(where, old, new) for (where,), (old,), (new,) in changelog_rows("JSON keys")]
    assert {old: new for where, old, new in rows if where == place} == names


# Python examples

EXAMPLES = [
    (document, block)
    for document, text in PRESENT.items()
    for block in re.findall(r"```python\n(.*?)```", text.replace(HOW_IT_WORKS, ""), re.DOTALL)
]
REQUEST_FIELDS = {field.name for field in fields(unspeckle.Request)}


@pytest.mark.parametrize(("document", "block"), EXAMPLES)
def test_every_python_example_names_what_there_is(document: str, block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unspeckle"):
            assert all(hasattr(import_module(node.module or ""), name.name) for name in node.names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "unspeckle":
            assert node.attr in unspeckle.__all__
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            f"unspeckle.{n}" for n in ("draw", "steps", "Request")
        ):
            assert {keyword.arg for keyword in node.keywords} <= REQUEST_FIELDS


def test_the_first_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python lines of the README, with a tiny model in place of the file that they load."""
    block = next(block for document, block in EXAMPLES if document == "README.md")
    previews: list[Any] = []
    monkeypatch.setattr(unspeckle, "load", lambda path: random_model())
    names: dict[str, Any] = {"preview": previews.append}
    exec(compile(block, "README.md", "exec"), names)
    assert [image.mode for image in names["images"]] == ["RGB"] * 4 and len(previews) == 21
