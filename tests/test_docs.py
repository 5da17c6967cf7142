"""What the documents say of the code is so."""

import re
from pathlib import Path

import pytest

from unspeckle.grids import GRIDS
from unspeckle.samplers import SAMPLERS

ROOT = Path(__file__).parent.parent
FILES = {str(file): " ".join(file.read_text("utf-8").split()) for file in (ROOT / "src").rglob("*.py")}
TOLD = (ROOT / "docs" / "how-it-works.md").read_text("utf-8").split("## Try it")[0]
BLOCKS = [" ".join(block.split()) for block in re.findall(r"```python\n(.*?)```", TOLD, re.DOTALL)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[:30])
def test_every_piece_of_code_is_copied_from_a_file(block: str) -> None:
    assert any(block in held for held in FILES.values())


@pytest.mark.parametrize("name", [*SAMPLERS, *GRIDS])
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
