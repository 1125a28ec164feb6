"""What a settings file, the environment and a flag say, as one tree of plain values."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import cast

import platformdirs
import yaml

from tokenweir.config.environment import FILE_VARIABLE, HOME_VARIABLE, PREFIX, read_environment
from tokenweir.config.findings import KeyPath, dotted
from tokenweir.core.errors import ConfigError

# What Kubernetes puts into the environment for a service whose name begins with "weir".
_KUBERNETES = re.compile(r"WEIR_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")

# What the examples and the containers read: a shell that has set them runs weir as well.
_OTHERS = re.compile(r"WEIR_(URL|KEY|MODEL|HTTPS|PROMETHEUS|GRAFANA|PORT_[A-Z]+)")

_FILE_NAMES = ("weir.toml", "weir.yaml", "weir.yml")
_YAML_SUFFIXES = (".yaml", ".yml")


def find_file(path: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the settings file: ``path``, else ``WEIR_CONFIG``, else ``./weir.toml``, else the user's own.

    Raises:
        ConfigError: the file that was asked for by ``path`` or ``WEIR_CONFIG`` does not exist.
    """
    named = (environ if environ is not None else read_environment()).get(FILE_VARIABLE)
    if path is not None or named:
        wanted = path if path is not None else Path(named or "").expanduser()
        if not wanted.is_file():
            by = "" if path is not None else f" (named by {FILE_VARIABLE})"
            raise ConfigError(f"no settings file at '{wanted}'{by}", mend="mend the path or create the file")
        return wanted
    places = [
        *map(Path, _FILE_NAMES),
        *(platformdirs.user_config_path("tokenweir") / name for name in _FILE_NAMES),
    ]
    return next((place for place in places if place.is_file()), None)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML in which a key that occurs twice in a mapping is an error, as it is in TOML."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:  # noqa: FBT001, FBT002 - the signature is the base class's
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = cast("object", self.construct_object(key_node, deep=True))  # pyright: ignore[reportUnknownMemberType]
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} occurs twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return cast("dict[Hashable, object]", super().construct_mapping(node, deep))


def read_file(file: Path) -> dict[str, object]:
    """Return the tables of a TOML or YAML file. Raises ConfigError, with the line where there is one."""
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix.lower() in _YAML_SUFFIXES:
            read: object = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a subclass of SafeLoader
        else:
            read = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}", mend="make it readable") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 at byte {error.start}", mend="save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: is not TOML: {error}", mend="mend that line") from error
    except yaml.MarkedYAMLError as error:
        at = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ConfigError(f"{file}: is not YAML: {error.problem}{at}", mend="mend that line") from error
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"{file}: is not YAML: {first}", mend="mend the file") from error
    if read is None:
        return {}
    if not isinstance(read, dict):
        raise ConfigError(
            f"{file}: holds {_type_name(read)} instead of tables", mend="write tables such as 'bench:'"
        )
    return cast("dict[str, object]", read)


def secrets_named(value: object) -> Iterator[str]:
    """Yield the variables that ``env:NAME`` names anywhere in ``value``."""
    if isinstance(value, str):
        if value.startswith("env:"):
            yield value.removeprefix("env:")
    elif isinstance(value, Mapping):
        yield from secrets_named(tuple(cast("Mapping[str, object]", value).values()))
    elif isinstance(value, list | tuple):
        for item in cast("list[object] | tuple[object, ...]", value):
            yield from secrets_named(item)


def variables_set(
    environ: Mapping[str, str], tables: tuple[str, ...], secrets: frozenset[str]
) -> Iterator[tuple[str, KeyPath]]:
    """Yield the variables that set something, sorted, each with its key."""
    left_alone = secrets | {FILE_VARIABLE, HOME_VARIABLE}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in left_alone:
            continue
        rest = variable.removeprefix(PREFIX)
        if "__" in rest:
            yield variable, split_key(rest.lower().replace("__", "."))
        elif rest.lower() in tables:
            yield variable, (rest.lower(),)
        elif not (_KUBERNETES.fullmatch(variable) or _OTHERS.fullmatch(variable)):
            first, _, second = rest.partition("_")
            mend = (
                f"did you mean '{PREFIX}{first}__{second}'?"
                if second and first.lower() in tables
                else f"a setting is '{PREFIX}TABLE__KEY'; let no other name begin with {PREFIX}"
            )
            raise ConfigError(f"unknown environment variable {variable!r}", mend=mend)


def split_key(key: str) -> KeyPath:
    """Return the parts of a dotted key; a number is a place in a list."""
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def decode(text: str, variable: str) -> object:
    """Return a list or table written as JSON, else the text: the model turns it into what the key needs."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return cast("object", json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{variable}: is not JSON: {error}", mend='write a list as ["a", "b"]') from error


def put(tree: dict[str, object], keys: KeyPath, value: object, source: str) -> None:
    """Set ``keys`` in the tree, making tables on the way; a number picks an item of a list or appends one."""
    at: object = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        blank: object = value if last else [] if isinstance(keys[depth + 1], int) else {}
        if isinstance(key, int) and isinstance(at, list):
            items = cast("list[object]", at)
            if key > len(items):
                where = dotted(keys)
                raise ConfigError(
                    f"{source}: {where}: there are only {len(items)} items", mend=f"use {len(items)}"
                )
            items[key : key + 1] = [blank] if last or key == len(items) else [items[key]]
            at = items[key]
        elif isinstance(key, str) and isinstance(at, dict):
            table = cast("MutableMapping[str, object]", at)
            if last:
                table[key] = value
            at = table.setdefault(key, blank)
        else:
            raise ConfigError(
                f"{source}: {dotted(keys[:depth])} has no key {key!r}", mend="name a key of a table"
            )


def _type_name(value: object) -> str:
    return "a list" if isinstance(value, list) else type(value).__name__
