"""Settings: where they come from and which source wins.

A file (TOML or YAML) is overruled by the environment (``WEIR_BENCH__WORKERS=2``), and that by the command
line. What results is one frozen object; a key that no part of Tokenweir declares is an error that names the
nearest known one. This is the only module that reads the environment.

Each slice declares its own table as a frozen :class:`SettingsModel`; ``app.py`` puts the tables together.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, NoReturn, Self, TypeVar, Union, cast, get_args, get_origin

import platformdirs
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from tokenweir.core.errors import ConfigError, InputError
from tokenweir.core.units import parse_duration

PREFIX = "WEIR_"
"""What the name of every environment variable that sets something begins with."""

FILE_VARIABLE = "WEIR_CONFIG"
"""The environment variable that names the settings file."""

HOME_VARIABLE = "WEIR_HOME"
"""The environment variable that names the directory of all data that is not put elsewhere."""

# What Kubernetes puts into the environment for a service whose name begins with "weir".
_KUBERNETES = re.compile(r"WEIR_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")

# What the examples and the containers read: a shell that has set them runs weir as well.
_OTHERS = re.compile(r"WEIR_(URL|KEY|MODEL|HTTPS|PROMETHEUS|GRAFANA|PORT_[A-Z]+)")

_FILE_NAMES = ("weir.toml", "weir.yaml", "weir.yml")
_YAML_SUFFIXES = (".yaml", ".yml")

_Path = tuple[str | int, ...]
_Origins = dict[_Path, str]


class SettingsModel(BaseModel):
    """Base of every table of settings: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ModelT = TypeVar("ModelT", bound=BaseModel)


class Secret:
    """Where a secret is to be found, never the secret itself.

    ``reference`` is ``env:NAME`` or ``file:PATH``. Nothing is read before :meth:`read`, and neither ``repr``
    nor an error message ever shows what was read.
    """

    __slots__ = ("reference",)

    def __init__(self, reference: str) -> None:
        self.reference = reference

    def __repr__(self) -> str:
        return f"Secret({self.reference!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reference == self.reference

    def __hash__(self) -> int:
        return hash(self.reference)

    def read(self) -> str:
        """Return the secret, without surrounding white space.

        Raises:
            ConfigError: the variable is not set, the file cannot be read, or what is there is empty.
        """
        scheme, _, place = self.reference.partition(":")
        if scheme == "env":
            value = os.environ.get(place, "").strip()
            if not value:
                raise ConfigError(
                    f"the environment variable {place!r} that holds a secret is not set",
                    mend=f"export {place}",
                )
            return value
        try:
            value = Path(place).expanduser().read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(
                f"the secret's file {place!r} cannot be read: {error.strerror}",
                mend="make it readable or mend the path",
            ) from error
        if not value:
            raise ConfigError(f"the secret's file {place!r} is empty", mend="write the secret into it")
        return value


def _to_secret(value: object) -> object:
    if isinstance(value, Secret):
        return value
    if isinstance(value, str) and re.fullmatch(r"(env|file):.+", value, flags=re.DOTALL):
        return Secret(value)
    reason = "a secret is named, not written down: use 'env:NAME' or 'file:PATH'"
    raise ValueError(reason)


SecretRef = Annotated[Secret, BeforeValidator(_to_secret)]
"""The type of a setting that names a secret."""


def _to_duration_ns(value: object) -> object:
    text = value if isinstance(value, str) else f"{value}"
    try:
        return parse_duration(text)
    except InputError as error:
        reason = str(error)
        raise ValueError(reason) from error


DurationNs = Annotated[int, BeforeValidator(_to_duration_ns)]
"""The type of a setting that is a duration: written with its unit (``"1.5s"``), held in nanoseconds."""


class LogSettings(SettingsModel):
    """``[log]``: what is reported while a command runs, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe line that is written."
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="How a line looks; auto: console on a terminal, else json."
    )


class TelemetrySettings(SettingsModel):
    """``[telemetry]``: traces of gateways and workers. What there is to count is at their ``/metrics``."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    traces: str | None = Field(
        default=None,
        description="Where spans are sent over OTLP/HTTP, without the path: http://127.0.0.1:4318. Without it nothing"
        " is traced.",
    )
    traces_header: SecretRef | None = Field(
        default=None, description="Where a header for it is found, written NAME: VALUE."
    )
    sample: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of traces that begin here; others are the caller's to decide.",
    )
    service: str | None = Field(
        default=None,
        description="service.name of spans; without one, that of the process: weir-gateway, weir-worker.",
    )

    @field_validator("traces")
    @classmethod
    def _has_scheme(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^/]", url):
            reason = "a URL begins with http:// or https:// and a host"
            raise ValueError(reason)
        return url


def home() -> Path:
    """Return the directory of data: what ``WEIR_HOME`` names, else the user's data directory."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named).expanduser().absolute() if named else platformdirs.user_data_path("tokenweir")


def _default_records() -> str:
    return f"sqlite:///{home() / 'studio.db'}"


def _default_gateway() -> str:
    return f"sqlite:///{home() / 'gateway.db'}"


def _default_access() -> str:
    return f"sqlite:///{home() / 'access.db'}"


class StoreSettings(SettingsModel):
    """``[stores]``: where things are kept. A URL's scheme picks the adapter."""

    records: str = Field(
        default_factory=_default_records,
        description="The index of runs; by default SQLite in WEIR_HOME, or the user's data directory.",
    )
    gateway: str = Field(
        default_factory=_default_gateway,
        description="Requests, reservations, ledger, queue and events; one process writes to a SQLite file. "
        "postgresql://… is shared, and needs quota, queue and events.",
    )
    quota: str = Field(
        default="", description="Quota counters: redis://…; by default they are in gateway's SQLite file."
    )
    queue: str = Field(
        default="", description="Jobs: amqp://…; by default they are in gateway's SQLite file."
    )
    events: str = Field(
        default="", description="Events: kafka://…; by default they are in gateway's SQLite file."
    )
    access: str = Field(
        default_factory=_default_access,
        description="Users, teams, API keys (their digests alone), tiers, limits.",
    )
    runs: Path = Field(default=Path("runs"), description="The directory in which run directories are made.")


class _IdentitySettings(SettingsModel):
    """A certificate of ours."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    key_password: SecretRef | None = Field(
        default=None, description="Where the password of an encrypted key is found."
    )


class TlsSettings(_IdentitySettings):
    """A listener's ``tls`` table: TLS 1.2 and above, and nothing else at its port."""

    certificate: Path = Field(description="PEM file of the certificate, and of what leads to its authority.")
    key: Path = Field(description="PEM file of its private key.")
    client_ca: Path | None = Field(
        default=None,
        description="PEM file of the authority whose certificates clients must show; without one they need none.",
    )


class ClientTlsSettings(_IdentitySettings):
    """A client's ``tls`` table: whom it trusts, and what it shows."""

    ca: Path | None = Field(
        default=None, description="PEM file of the authority to trust, in the stead of the system's."
    )
    certificate: Path | None = Field(default=None, description="PEM file of the certificate to show.")
    key: Path | None = Field(default=None, description="PEM file of its private key.")

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            reason = "a certificate and its key belong together"
            raise ValueError(reason)
        return self


class EndpointSettings(SettingsModel):
    """``[[endpoints]]``: a served model, under a name."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str = Field(min_length=1, description="What commands call it; no two are alike.")
    kind: Literal["openai", "sglang", "sglang_jax", "sim", "tokenweir"] = Field(
        description="The protocol it speaks."
    )
    url: str = Field(
        description="Where it is: http:// or https://, host, port and any path before /v1; of kind tokenweir also "
        "grpc:// or grpcs://, host and port."
    )
    model: str | None = Field(default=None, description="The model's name there.")
    key: SecretRef | None = Field(
        default=None, description="Where its API key is found: env:NAME or file:PATH, never the key itself."
    )
    commit: str | None = Field(default=None, description="The engine's commit, which it may not say itself.")
    revision: str | None = Field(
        default=None, description="The model's revision, which it may not say itself."
    )
    weight: float = Field(default=1.0, gt=0, description="Its share where several endpoints share work.")
    order: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Its rank as a fallback: asked when all with a lower one are out.",
    )
    pool: str = Field(
        default="", description="The pool of tiers that it is kept for; without one it is for all."
    )
    tls: ClientTlsSettings | None = Field(
        default=None, description="Whom to trust at an https:// URL, and what to show there."
    )

    @field_validator("url")
    @classmethod
    def _has_scheme(cls, url: str) -> str:
        if not re.match(r"(https?|grpcs?)://[^/]", url):
            reason = "a URL begins with http://, https:// or grpc:// and a host"
            raise ValueError(reason)
        return url.rstrip("/")


def read_environment() -> Mapping[str, str]:
    """Return the process environment as it is now."""
    return os.environ


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a child process: ours, with ``extra`` laid over it."""
    return {**os.environ, **(extra or {})}


def find_file(path: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the settings file: ``path``, else ``WEIR_CONFIG``, else ``./weir.toml``, else the user's own.

    Raises:
        ConfigError: the file that was asked for by ``path`` or ``WEIR_CONFIG`` does not exist.
    """
    named = (environ if environ is not None else os.environ).get(FILE_VARIABLE)
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


def load(
    model: type[ModelT],
    path: Path | None = None,
    *,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> ModelT:
    """Return ``model`` filled from file, environment and ``overrides``, the later source winning.

    ``overrides`` are dotted keys (``bench.workers``); one whose value is ``None`` is left out, so that flags
    that were not given can be passed as they are.

    Raises:
        ConfigError: a source cannot be read, a key is unknown, or a value has the wrong type or unit.
    """
    environ = os.environ if environ is None else environ
    return fill(model, find_file(path, environ=environ), overrides=overrides, environ=environ)


def fill(
    model: type[ModelT],
    file: Path | None,
    *,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> ModelT:
    """Return ``model`` filled from exactly ``file``, ``environ`` and ``overrides``, where they are given.

    Raises:
        ConfigError: as :func:`load`.
    """
    tree: dict[str, object] = {}
    origins: _Origins = {}
    if file is not None:
        tree = _read_file(file)
        origins[()] = str(file)
    tables = tuple(model.model_fields)
    variables = environ or {}
    secrets = frozenset(_secrets((tree, overrides or {})))
    for variable, keys in _variables(variables, tables, secrets):
        _put(tree, keys, _decode(variables[variable], variable), variable)
        origins[keys] = variable
    for key, value in (overrides or {}).items():
        if value is not None:
            keys = _split(key)
            _put(tree, keys, value, "command line")
            origins[keys] = "command line"
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        _refuse(error, model, origins)


def table(model: type[ModelT], values: Mapping[str, object], *, where: str) -> ModelT:
    """Return a table whose schema is known only once others are read; ``where`` names it.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or unit.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        _refuse(error, model, {(): where})


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


def _read_file(file: Path) -> dict[str, object]:
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


def _secrets(value: object) -> Iterator[str]:
    """Yield the variables that ``env:NAME`` names anywhere in ``value``."""
    if isinstance(value, str):
        if value.startswith("env:"):
            yield value.removeprefix("env:")
    elif isinstance(value, Mapping):
        yield from _secrets(tuple(cast("Mapping[str, object]", value).values()))
    elif isinstance(value, list | tuple):
        for item in cast("list[object] | tuple[object, ...]", value):
            yield from _secrets(item)


def _variables(
    environ: Mapping[str, str], tables: tuple[str, ...], secrets: frozenset[str]
) -> Iterator[tuple[str, _Path]]:
    """Yield the variables that set something, sorted, each with its key."""
    left_alone = secrets | {FILE_VARIABLE, HOME_VARIABLE}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in left_alone:
            continue
        rest = variable.removeprefix(PREFIX)
        if "__" in rest:
            yield variable, _split(rest.lower().replace("__", "."))
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


def _split(key: str) -> _Path:
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def _decode(text: str, variable: str) -> object:
    """Return a list or table written as JSON, else the text: the model turns it into what the key needs."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return cast("object", json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{variable}: is not JSON: {error}", mend='write a list as ["a", "b"]') from error


def _put(tree: dict[str, object], keys: _Path, value: object, source: str) -> None:
    """Set ``keys`` in the tree, making tables on the way; a number picks an item of a list or appends one."""
    at: object = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        blank: object = value if last else [] if isinstance(keys[depth + 1], int) else {}
        if isinstance(key, int) and isinstance(at, list):
            items = cast("list[object]", at)
            if key > len(items):
                where = _dotted(keys)
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
                f"{source}: {_dotted(keys[:depth])} has no key {key!r}", mend="name a key of a table"
            )


def _refuse(error: ValidationError, model: type[BaseModel], origins: _Origins) -> NoReturn:
    """Raise the first finding as one line: source, key, what is wrong, what to do."""
    findings = error.errors(include_url=False)
    # A misspelt key also leaves its true name missing: say what was written, not what follows from it.
    first = next((one for one in findings if one["type"] == "extra_forbidden"), findings[0])
    keys: _Path = first["loc"]
    source = _origin(keys, origins)
    where = f"{source}: {_dotted(keys)}" if source else _dotted(keys)
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


def _origin(keys: _Path, origins: _Origins) -> str:
    """Return the source that set ``keys``, or something inside, or the table around it."""
    inside = next((name for key, name in origins.items() if key and key[: len(keys)] == keys), "")
    around = [
        name for key, name in sorted(origins.items(), key=lambda one: len(one[0])) if keys[: len(key)] == key
    ]
    return inside or (around[-1] if around else "")


def _nearest(keys: _Path, model: type[BaseModel]) -> str:
    """Return what the key was probably meant to be: a sibling, else a like-named key of another table."""
    name = str(keys[-1])
    siblings = _table_at(keys[:-1], model)
    near = difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)
    if near:
        return f"did you mean {_dotted((*keys[:-1], near[0]))!r}?"
    elsewhere = {key.rpartition(".")[2]: key for key in known_keys(model)}
    near = difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.75)
    if near:
        return f"did you mean {elsewhere[near[0]]!r}?"
    return f"known here: {', '.join(siblings)}"


def _table_at(keys: _Path, model: type[BaseModel]) -> tuple[str, ...]:
    for key in keys:
        if isinstance(key, int):
            continue
        inner = _inner_model(model.model_fields[key].annotation)[0] if key in model.model_fields else None
        if inner is None:
            break
        model = inner
    return tuple(model.model_fields)


def _dotted(keys: _Path) -> str:
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


def _type_name(value: object) -> str:
    return "a list" if isinstance(value, list) else type(value).__name__
