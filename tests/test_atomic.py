"""Folders are filled completely or not at all, wherever they are."""

from pathlib import Path

import pytest

from unspeckle.atomic import create_folder
from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion import writing


def fill(folder: Path) -> None:
    with create_folder(folder) as place:
        (place / "part").mkdir()
        (place / "part" / "weights").write_text("all")


@pytest.mark.parametrize("there", ["nothing", "folder", "link", "here"])
def test_a_folder_is_filled_whatever_it_is(there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link stays one, and the folder in which somebody stands is still the same."""
    empty, target = tmp_path / "empty", tmp_path / "new" / "target"
    empty.mkdir()
    if there != "nothing":
        monkeypatch.chdir(empty)
        target = empty
    if there == "link":
        target = tmp_path / "link"
        target.symlink_to(empty)
    fill(Path() if there == "here" else target)
    read = target if there == "nothing" else empty
    assert (read / "part" / "weights").read_text() == "all" and len(list(read.iterdir())) == 1
    assert there == "nothing" or Path("part").is_dir()
    assert there != "link" or target.is_symlink()


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_fails_has_nothing_in_it(there: bool, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if there:
        target.mkdir()
    with pytest.raises(KeyboardInterrupt), create_folder(target) as place:
        (place / "part").mkdir()
        raise KeyboardInterrupt
    assert list(tmp_path.rglob("*")) == ([target] if there else [])


def test_a_link_to_nothing_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="link: already exists"):
        writing.require_empty_folder(tmp_path / "link")
