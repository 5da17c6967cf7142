"""Frozen dataclasses as JSON and back, strictly: every field is checked before anything is built from it. And named
values as a table for notebooks."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from html import escape
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from unspeckle.errors import InputError

Config = TypeVar("Config")


def to_json(config: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON values; tuples become lists."""
    return {field.name: to_plain(getattr(config, field.name)) for field in fields(config)}


def from_json(kind: type[Config], values: Any, where: str) -> Config:
    """The dataclass `kind` from JSON values. InputError, naming `where`, for a missing field, an unknown field, or a
    value of the wrong type."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: must be an object, not {type(values).__name__}")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise InputError(f"{where}: unknown field {name!r}; it may come from a newer unspeckle")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{where}: the field {name!r} is missing")
    hints = get_type_hints(kind)
    return kind(**{name: to_typed(value, hints[name], f"{where}: field {name!r}") for name, value in values.items()})


def kind_to_json(kinds: Mapping[str, type[Any]], config: Any) -> dict[str, Any]:
    """A dataclass of one of the kinds as JSON values: the name of its kind as "kind", and its fields."""
    return {"kind": next(name for name, kind in kinds.items() if type(config) is kind), **to_json(config)}


def kind_from_json(kinds: Mapping[str, type[Any]], values: dict[str, Any], where: str) -> Any:
    """The dataclass that `kind_to_json` turned into JSON. InputError, naming `where`, for an unknown kind, and as
    `from_json` does."""
    field_values = dict(values)
    name = field_values.pop("kind", None)
    if not isinstance(name, str) or name not in kinds:
        raise InputError(f"{where} kind {name!r} is unknown; choose one of {', '.join(kinds)}")
    return from_json(kinds[name], field_values, f"{where} {name}")


def to_plain(value: Any) -> Any:
    """The value as JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    return value


def to_typed(value: Any, hint: Any, where: str) -> Any:
    """The value in the type of `hint`, with lists turned into tuples. InputError where it does not fit."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        configs = [choice for choice in inner if isinstance(choice, type) and is_dataclass(choice)]
        if configs and isinstance(value, dict):
            # The dataclass is meant that has most of the fields.
            nearest = max(configs, key=lambda config: len({f.name for f in fields(config)} & set(value)))
            return from_json(nearest, value, where)
        for choice in inner:
            try:
                return to_typed(value, choice, where)
            except InputError:
                continue
    elif hint is type(None):
        if value is None:
            return None
    elif origin is tuple and isinstance(value, list | tuple):
        hints = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(hints) == len(value):
            return tuple(to_typed(item, one, where) for item, one in zip(value, hints, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {str(key): to_typed(item, inner[1], where) for key, item in value.items()}
    elif isinstance(hint, type) and is_dataclass(hint):
        return from_json(hint, value, where)
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif type(value) is hint:
        return value
    expected = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise InputError(f"{where}: must be {expected}, not {str(value)[:40]!r}")


def to_html(title: str, rows: Mapping[str, object]) -> str:
    """A table of names and values below a title, for notebooks; values that are None or empty are left out."""
    shown = {name: value for name, value in rows.items() if value not in (None, "", ())}
    left = 'style="text-align: left"'
    lines = "".join(
        f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(str(value))}</td></tr>" for name, value in shown.items()
    )
    return f"<div><b>{escape(title)}</b></div><table>{lines}</table>"
