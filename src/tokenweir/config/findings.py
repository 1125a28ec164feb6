"""Which keys there are, and what is told of settings that cannot be used: one line that names source, key and mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from types import UnionType
from typing import NoReturn, TypeAlias, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

from tokenweir.core.errors import ConfigError

KeyPath: TypeAlias = tuple[str | int, ...]
Origins: TypeAlias = dict[KeyPath, str]
"""Which source set a key, or a table."""


def known_keys(model: type[BaseModel]) -> tuple[str, ...]:
    """Return every dotted key ``model`` knows, as declared; those of a list's items are ``list[].key``."""
    return tuple(_keys(model, ""))


def _keys(model: type[BaseModel], before: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner, many = _inner_model(field.annotation)
        if inner is None:
            yield before + name
        else:
            yield from _keys(inner, f"{before}{name}{'[]' if many else ''}.")


def _inner_model(annotation: object) -> tuple[type[BaseModel] | None, bool]:
    """Return the table that a field's type holds, if any, and whether it holds many."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    optional = get_origin(annotation) in {Union, UnionType}
    for part in cast("tuple[object, ...]", get_args(annotation)):
        inner, many = _inner_model(part)
        if inner is not None:
            return inner, many or not optional
    return None, False


def refuse(error: ValidationError, model: type[BaseModel], origins: Origins) -> NoReturn:
    """Raise the first finding as one line: source, key, what is wrong, what to do."""
    findings = error.errors(include_url=False)
    # A misspelt key also leaves its true name missing: say what was written, not what follows from it.
    first = next((one for one in findings if one["type"] == "extra_forbidden"), findings[0])
    keys: KeyPath = first["loc"]
    source = _origin(keys, origins)
    where = f"{source}: {dotted(keys)}" if source else dotted(keys)
    kind = first["type"]
    if kind == "extra_forbidden":
        raise ConfigError(f"{where}: unknown key", mend=_nearest(keys, model)) from None
    if kind == "missing":
        raise ConfigError(f"{where}: is missing", mend="add it") from None
    if kind == "value_error":
        raise ConfigError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
    value = _shown(cast("object", first["input"]))
    if kind in {"model_type", "model_attributes_type"}:
        raise ConfigError(f"{where}: should be a table, not {value}") from None
    if kind == "path_type":
        raise ConfigError(f"{where}: should be a path, not {value}") from None
    reason = first["msg"].removeprefix("Input ")
    raise ConfigError(f"{where}: {reason[:1].lower()}{reason[1:]}, not {value}") from None


def _origin(keys: KeyPath, origins: Origins) -> str:
    """Return the source that set ``keys``, or something inside, or the table around it."""
    inside = next((name for key, name in origins.items() if key and key[: len(keys)] == keys), "")
    around = [
        name for key, name in sorted(origins.items(), key=lambda one: len(one[0])) if keys[: len(key)] == key
    ]
    return inside or (around[-1] if around else "")


def _nearest(keys: KeyPath, model: type[BaseModel]) -> str:
    """Return what the key was probably meant to be: a sibling, else a like-named key of another table."""
    name = str(keys[-1])
    siblings = _table_at(keys[:-1], model)
    near = difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)
    if near:
        return f"did you mean {dotted((*keys[:-1], near[0]))!r}?"
    elsewhere = {key.rpartition(".")[2]: key for key in known_keys(model)}
    near = difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.75)
    if near:
        return f"did you mean {elsewhere[near[0]]!r}?"
    return f"known here: {', '.join(siblings)}"


def _table_at(keys: KeyPath, model: type[BaseModel]) -> tuple[str, ...]:
    for key in keys:
        if isinstance(key, int):
            continue
        inner = _inner_model(model.model_fields[key].annotation)[0] if key in model.model_fields else None
        if inner is None:
            break
        model = inner
    return tuple(model.model_fields)


def dotted(keys: KeyPath) -> str:
    """Return a key as it is written: ``endpoints[0].url``."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text or "the settings"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    return repr(value)
