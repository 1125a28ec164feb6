"""An experiment: what is measured (subject), what it is asked (workload), how it is judged (measurement).

Two runs may be compared when their workload and measurement hashes are equal; subjects are what is compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from tokenweir.core.canonical import MAX_INTEGER, canonical_hash, canonical_json
from tokenweir.core.errors import InputError
from tokenweir.core.requests import Json, Kind, Sampling
from tokenweir.core.units import format_duration, parse_count, parse_duration

Repeat = Literal["shuffled", "ordered", "shuffled+unique", "ordered+unique"]
"""Whether each cycle through the corpus has its own order, and every prompt a unique beginning."""

_SECRET_NAME: Final = re.compile(
    r"(^|[_.-])((api|access|private|secret|admin|auth|account)[_-]?)?key$"
    r"|(^|[_.-])(sig|signature|secret|password|passwd|pwd|credentials?|token|authorization)$",
    re.IGNORECASE,
)
# Engines have flags such as tokenizer_path and stop_token, so a flag needs a plainer name to count as secret.
_SECRET_FLAG: Final = re.compile(
    r"(api|access|private|secret|admin)[_-]?key$"
    r"|password|passwd|secret$|credentials?$|authorization$"
    r"|(^|_)(hf|auth|access|api|bearer)[_-]token$",
    re.IGNORECASE,
)


class Trim(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a load's beginning or end is left out: a time in ns, or a number of requests; not both."""

    ns: int = 0
    requests: int = 0

    @property
    def text(self) -> str:
        """The notation that :func:`parse_trim` reads back: ``5s`` or ``32req``."""
        return f"{self.requests}req" if self.requests else format_duration(self.ns)


def parse_trim(text: str, *, what: str = "warmup") -> Trim:
    """Read a duration (``5s``) or a number of requests (``32`` or ``32req``). Raises InputError."""
    plain = text.strip()
    if re.fullmatch(r"\d[\d_]*\s*(?:reqs?|requests?)?", plain, re.ASCII):
        return Trim(requests=parse_count(plain, what=what))
    try:
        return Trim(ns=parse_duration(plain, what=what))
    except InputError as error:
        raise InputError(error.message, mend=f"{error.mend}, or a number of requests such as 32") from error


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured. ``commit`` is the backend's, ``revision`` the model's; ``None`` is unknown."""

    backend: str
    url: str
    model: str
    engine_flags: dict[str, Json] = {}
    commit: str | None = None
    revision: str | None = None


class CorpusRef(msgspec.Struct, frozen=True):
    """A corpus by name, and by the hash of its content."""

    name: str
    hash: str


class WorkloadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. ``loads`` are arrivals as written; ``requests`` and ``duration_ns`` bound each."""

    kind: Kind
    stream: bool
    corpus: CorpusRef
    scenario: str | None
    loads: tuple[str, ...]
    requests: int | None
    duration_ns: int | None
    sampling: Sampling
    seed: int
    ignore_eos: bool
    repeat: Repeat = "shuffled"


class MeasurementSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How it is judged. ``slo`` maps tags to limits in ns; ``tokens`` says whose count is preferred."""

    warmup: str
    cooldown: str
    timeout_ns: int
    slo: dict[str, int]
    failures_as_infinite: bool
    tokens: Literal["server", "tokenizer"] = "server"


class ExperimentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment, immutable once launched."""

    subject: Subject
    workload: WorkloadSpec
    measurement: MeasurementSpec

    def to_json(self) -> dict[str, Json]:
        """Return the spec as JSON values, without secrets and without sampling choices left to the engine."""
        content = cast("dict[str, dict[str, Json]]", msgspec.json.decode(msgspec.json.encode(self)))
        content["subject"]["url"] = public_url(self.subject.url)
        content["subject"]["engine_flags"] = public_flags(self.subject.engine_flags)
        # ignore_eos is stated once, beside sampling; a sampling field added later moves no old hash.
        sampling = cast("dict[str, Json]", content["workload"]["sampling"])
        unset = cast("dict[str, Json]", msgspec.json.decode(msgspec.json.encode(Sampling())))
        content["workload"]["sampling"] = {
            name: value for name, value in sampling.items() if name != "ignore_eos" and value != unset[name]
        }
        return cast("dict[str, Json]", content)

    def canonical(self) -> bytes:
        """Return the RFC 8785 JSON of :meth:`to_json`."""
        return canonical_json(self.to_json())

    @property
    def config_hash(self) -> str:
        """SHA-256 of :meth:`canonical`, lower-case hex."""
        return canonical_hash(self.to_json())

    @property
    def workload_hash(self) -> str:
        """SHA-256 of the workload part alone."""
        return canonical_hash(self.to_json()["workload"])

    @property
    def measurement_hash(self) -> str:
        """SHA-256 of the measurement part alone."""
        return canonical_hash(self.to_json()["measurement"])


def public_url(url: str) -> str:
    """Return ``url`` without user, password, fragment and query values whose names say they are secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = [
        pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not _SECRET_NAME.search(pair[0])
    ]
    return urlunsplit((parts.scheme, host, parts.path, urlencode(query), ""))


def public_flags(flags: Mapping[str, Json]) -> dict[str, Json]:
    """Return the flags without those whose names say that they are secret, at any depth.

    Numbers that JSON readers may round or refuse become text, since an engine may report any.
    """
    return {name: _public(value) for name, value in flags.items() if not _SECRET_FLAG.search(name)}


def _public(value: Json) -> Json:
    if isinstance(value, dict):
        return public_flags(value)
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, (int, float)) and not -MAX_INTEGER <= value <= MAX_INTEGER:
        return str(value)
    return value


class Difference(NamedTuple):
    """One place where two specs differ, and what each has there; ``None`` also where it has nothing."""

    path: str
    left: Json
    right: Json


def differences(
    a: ExperimentSpec | Mapping[str, Json], b: ExperimentSpec | Mapping[str, Json]
) -> tuple[str, ...]:
    """Return the sorted JSON paths at which two specs differ, such as ``workload.loads[1]``."""
    return tuple(difference.path for difference in difference_table(a, b))


def difference_table(
    a: ExperimentSpec | Mapping[str, Json], b: ExperimentSpec | Mapping[str, Json]
) -> tuple[Difference, ...]:
    """Return every place at which two specs differ, sorted by path; 1 and 1.0 are equal."""
    return tuple(sorted(_compare("", _json(a), _json(b)), key=lambda difference: difference.path))


def _json(spec: ExperimentSpec | Mapping[str, Json]) -> dict[str, Json]:
    return spec.to_json() if isinstance(spec, ExperimentSpec) else dict(spec)


def _compare(path: str, a: Json, b: Json) -> Iterator[Difference]:
    if isinstance(a, dict) and isinstance(b, dict):
        for name in a.keys() | b.keys():
            inner = f"{path}.{name}" if path else name
            if (name in a) != (name in b):
                yield Difference(inner, a.get(name), b.get(name))
            else:
                yield from _compare(inner, a[name], b[name])
    elif isinstance(a, list) and isinstance(b, list):
        for index in range(max(len(a), len(b))):
            inner = f"{path}[{index}]"
            if index < min(len(a), len(b)):
                yield from _compare(inner, a[index], b[index])
            else:
                yield Difference(inner, *(items[index] if index < len(items) else None for items in (a, b)))
    elif canonical_json(a) != canonical_json(b):
        yield Difference(path, a, b)
