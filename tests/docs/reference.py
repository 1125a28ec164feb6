"""The generated parts of the documentation: ``make docs`` writes them, a test compares them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Literal, TypeGuard, Union, get_args, get_origin

import click
import msgspec
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tokenweir.app import Settings
from tokenweir.bench.records.model import Run
from tokenweir.cli.main import COMMANDS, weir
from tokenweir.core.units import format_duration

DOCS = Path(__file__).parents[2] / "docs"
_MARK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(page: str) -> str:
    """Return the page with its generated parts made anew."""
    parts = {"settings": _settings, "commands": _commands}
    return _MARK.sub(lambda match: f"{match[1]}\n{parts[match['name']]()}\n{match[3]}", page)


def pages() -> Iterator[Path]:
    """Yield the pages that have a generated part."""
    yield from (page for page in sorted(DOCS.rglob("*.md")) if _MARK.search(page.read_text(encoding="utf-8")))


def _settings() -> str:
    lines: list[str] = []
    for name, field in Settings.model_fields.items():
        lines += _settings_of(name, field)
    return "\n".join(lines)


def _settings_of(name: str, field: FieldInfo) -> list[str]:
    """Return the section of a table, then those of the lists of tables inside it."""
    table, many = _table(field.annotation)
    lines = [f"### `{f'[[{name}]]' if many else f'[{name}]'}`", ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [_row(key, inner) for key, inner in table.model_fields.items()]
    lines.append("")
    for key, inner in table.model_fields.items():
        if _holds_table(inner.annotation):
            lines += _settings_of(f"{name}.{key}", inner)
    return lines


def _is_table(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _holds_table(annotation: object) -> bool:
    return _is_table(annotation) or any(_is_table(one) for one in get_args(annotation))


def _table(annotation: object) -> tuple[type[BaseModel], bool]:
    if _is_table(annotation):
        return annotation, False
    inner = next(one for one in get_args(annotation) if _is_table(one))
    return inner, not _is_optional(annotation)


def _is_optional(annotation: object) -> bool:
    return get_origin(annotation) in {Union, UnionType}


def _row(key: str, field: FieldInfo) -> str:
    if not field.description:
        message = f"the setting {key!r} has no description"
        raise ValueError(message)
    return f"| `{key}` | {_type(field)} | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory:
        return "see there"
    if field.default is None or field.default == ():
        return "none"
    if _type(field) == "duration" and isinstance(field.default, int):
        return f"`{format_duration(field.default)}`"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _type(field: FieldInfo) -> str:
    if any("duration" in repr(one) for one in (*field.metadata, field.annotation)):
        return "duration"
    return _type_name(field.annotation)


def _type_name(annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(annotation))
    if _holds_table(annotation):
        return "table" if _is_optional(annotation) else "list of tables"
    inner = [one for one in get_args(annotation) if one not in {type(None), Ellipsis}]
    if inner and get_origin(annotation) is tuple:
        return f"list of {_type_name(inner[0])}"
    if get_origin(annotation) is dict:
        return "table"
    if inner:
        return " or ".join(_type_name(one) for one in inner if not repr(one).startswith("BeforeValidator"))
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "Path": "path"}
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, name.lower())


def _commands() -> str:
    lines: list[str] = []
    context = click.Context(weir, info_name="weir")
    lines += _command("weir", weir, context)
    for name in COMMANDS:
        command = weir.get_command(context, name)
        lines += _command(f"weir {name}", command, click.Context(command, parent=context, info_name=name))
    return "\n".join(lines)


def _command(path: str, command: click.Command, context: click.Context) -> list[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    paragraphs = (command.help or "").split("\f")[0].replace("\b", "").split("\n\n")
    said = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    lines = [f"## `{path}`", "", said, "", f"```\n{path} {usage}\n```", ""]
    rows = [_option(param, context) for param in command.params if isinstance(param, click.Option)]
    if rows:
        lines += ["| option | meaning |", "|---|---|", *rows, ""]
    if isinstance(command, click.Group) and command is not weir:
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                lines += _command(
                    f"{path} {name}", inner, click.Context(inner, parent=context, info_name=name)
                )
    return lines


def _option(option: click.Option, context: click.Context) -> str:
    names, meaning = option.get_help_record(context) or ("", "")
    if not option.help:
        message = f"the option {option.opts[-1]!r} of {context.command_path!r} has no help"
        raise ValueError(message)
    return f"| `{_cell(names)}` | {_cell(meaning)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write every page that has a generated part, and the schema of ``run.json``."""
    for page in pages():
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")
    schema = msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Run)), indent=2)
    (DOCS / "run.schema.json").write_bytes(schema + b"\n")


if __name__ == "__main__":
    main()
