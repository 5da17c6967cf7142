"""keywords.json in a folder of images: words that its captions do not use, with known words of nearly their meaning.

A model that is trained on the folder answers a prompt's unknown "toad" with the known "frog".
"""

import json
from collections.abc import Mapping
from pathlib import Path

from unspeckle.errors import InputError

KEYWORDS_FILE = "keywords.json"


def read_keywords(folder: Path) -> dict[str, str]:
    """By an unknown word, the known one; empty if the folder has no such file. InputError if it holds something else
    than an object of single words, {"toad": "frog"}."""
    path = folder / KEYWORDS_FILE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{path}: cannot be read ({' '.join(str(e).split())[:100]}); mend or remove it") from e
    is_map = isinstance(values, dict) and all(isinstance(known, str) for known in values.values())
    if not is_map or any(len(word.split()) != 1 for word in values):
        raise InputError(f'{path}: must be an object of single words, such as {{"toad": "frog"}}; mend or remove it')
    return {word.lower(): known for word, known in values.items()}


def write_keywords(folder: Path, keywords: Mapping[str, str]) -> None:
    """Write keywords.json into a folder."""
    text = json.dumps(dict(keywords), ensure_ascii=False, indent=1) + "\n"
    (folder / KEYWORDS_FILE).write_text(text, encoding="utf-8")
