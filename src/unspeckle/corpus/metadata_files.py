"""Captions from metadata.jsonl and metadata.csv, in the imagefolder convention: `file_name` and `text`.

The convention is that of Hugging Face's `datasets` ("imagefolder").
"""

import csv
import io
import json
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path

from unspeckle.errors import InputError

CAPTION_COLUMNS = ("text", "texts", "caption", "captions")

Row = Mapping[str, object]


def decode_text(raw: bytes) -> str:
    """Text from bytes in UTF-8, or in UTF-16 with a byte-order mark. Raises UnicodeDecodeError."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16")
    return raw.decode("utf-8-sig")


def read_metadata(folder: Path, path: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (image path relative to `folder`, its captions as written) for each row of the file `folder / path`.

    Captions are in `text` or `caption` (a string or a list) and in `texts` or `captions`. Several rows may name one
    image. A row without captions yields an empty list. Raises InputError with the file and the line if a row cannot
    be read or names a file outside the folder.
    """
    try:
        text = decode_text((folder / path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions or remove it") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    read_rows = _read_csv_rows if path.lower().endswith(".csv") else _read_json_rows
    for line, row in read_rows(text, path):
        yield _image_path(row, path, line), _row_captions(row, path, line)


def _read_json_rows(text: str, path: str) -> Iterator[tuple[int, Row]]:
    """(line number, row) of each line that is not empty."""
    for line, text_line in enumerate(text.split("\n"), start=1):
        if not text_line.strip():
            continue
        try:
            row = json.loads(text_line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "unreadable"
            raise InputError(f"{path} line {line}: not JSON ({reason}); correct or delete the line") from error
        if not isinstance(row, dict):
            raise InputError(f'{path} line {line}: not an object like {{"file_name": "a.jpg", "text": "a frog"}}')
        yield line, row


def _read_csv_rows(text: str, path: str) -> Iterator[tuple[int, Row]]:
    """(line number, row) of each line below the header; the delimiter is a comma, a semicolon or a tab."""
    first_line = text.split("\n", 1)[0]
    delimiter = next((candidate for candidate in (",", ";", "\t") if candidate in first_line), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for row in reader:
            row_line, line = line, reader.line_num + 1
            if not row:
                continue
            if header is None:
                header = [name.strip() for name in row]
                continue
            if len(row) > len(header):
                hint = "put captions that contain a comma in double quotes"
                raise InputError(f"{path} line {row_line}: {len(row)} fields for {len(header)} columns; {hint}")
            yield row_line, dict(zip(header, row, strict=False))
    except csv.Error as error:
        raise InputError(f"{path} line {line}: {error}; check the quotes there") from error


def _image_path(row: Row, path: str, line: int) -> str:
    """The image's path relative to the corpus folder; in the row it is relative to the metadata file."""
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{path} line {line}: no file_name; give the image's path relative to {path}")
    name = name.replace("\\", "/")
    image_path = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
    if name.startswith("/") or name[1:3] == ":/" or image_path.split("/")[0] == "..":
        raise InputError(f"{path} line {line}: file_name {name!r} is outside the folder; give a path inside it")
    return image_path


def _row_captions(row: Row, path: str, line: int) -> list[str]:
    captions: list[str] = []
    for column in CAPTION_COLUMNS:
        value = row.get(column)
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, str):
                captions.append(entry)
            elif entry is not None:
                raise InputError(f"{path} line {line}: {column} is not text; give a string or a list of strings")
    return captions
