"""What the documents say of the code is so."""

import re
from pathlib import Path

import pytest

from unspeckle.samplers import SAMPLERS
from unspeckle.timesteps import TIMESTEP_SPACINGS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "unspeckle"
FILES = {file: " ".join(file.read_text("utf-8").split()) for file in SOURCE.rglob("*.py")}
TOLD = (ROOT / "docs" / "how-it-works.md").read_text("utf-8").split("## Try it")[0]
BLOCKS = [
    (section, " ".join(block.split()))
    for section in TOLD.split("\n## ")
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
]


@pytest.mark.parametrize(("section", "block"), BLOCKS, ids=[block[:30] for _, block in BLOCKS])
def test_every_piece_of_code_is_copied_from_a_file_that_its_section_names(section: str, block: str) -> None:
    assert any(block in held for file, held in FILES.items() if file.name in section)


def test_the_map_of_the_files_leaves_none_out() -> None:
    told = (ROOT / "README.md").read_text("utf-8").split("## The files")[1]
    named = {name for row in re.findall(r"^\| (.*?) \|", told, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)}
    there = {one.name + "/" * one.is_dir() for one in SOURCE.iterdir() if one.name != "__pycache__"}
    assert there - named == set() and named - there == {"recipes/", "benchmarks/"}


@pytest.mark.parametrize("name", [*SAMPLERS, *TIMESTEP_SPACINGS])
def test_every_sampler_and_grid_stands_in_a_table(name: str) -> None:
    rows = [line for line in TOLD.split("## 4. ")[1].split("\n## 5. ")[0].splitlines() if line.startswith("| `")]
    assert any(f"`{name}`" in row.split("|")[1] for row in rows)


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))])
def test_every_file_that_is_named_is_there(document: str) -> None:
    """Links to files, and commands that run one of the repository's."""
    said = (ROOT / document).read_text("utf-8")
    prose = re.sub(r"```.*?```", "", said, flags=re.DOTALL)
    links = {target for target in re.findall(r"\]\(([^)#]+)", prose) if "://" not in target}
    run = set(re.findall(r"(?:recipes|benchmarks|docs|tests)/[\w.-]+\.(?:py|sh|md)", said))
    assert not {target for target in links if not (ROOT / document).parent.joinpath(target).exists()}
    assert not {file for file in run if not (ROOT / file).exists()}
