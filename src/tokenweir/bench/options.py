"""What the user asked for: flags over a spec file, checked, and resolved into an experiment.

The values are kept as written and read by the properties, so that an error names the flag and the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal, cast
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field

from tokenweir.bench.arrivals import Arrival, Trace, parse_arrivals
from tokenweir.bench.corpora import Corpus
from tokenweir.config import SecretRef, SettingsModel, fill
from tokenweir.core.canonical import MAX_INTEGER
from tokenweir.core.errors import SpecError
from tokenweir.core.requests import Kind, Sampling
from tokenweir.core.scenario import Embedding, Scenario, parse_scenario
from tokenweir.core.slo import Slo, parse_slo
from tokenweir.core.spec import (
    CorpusRef,
    ExperimentSpec,
    MeasurementSpec,
    Repeat,
    Subject,
    Trim,
    WorkloadSpec,
    parse_trim,
)
from tokenweir.core.units import parse_duration
from tokenweir.ports.backend import Identity

DEFAULT_REQUESTS: Final = 100
"""Requests per load point when neither a number nor a duration is given."""

DEFAULT_CORPUS: Final = "weir-mix"
"""What is asked when neither a corpus nor a scenario is given."""

_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS: Final = frozenset(
    {"accept-encoding", "connection", "content-length", "expect", "transfer-encoding", "upgrade"}
)
"""What the engine itself says of connection, framing, and compression, which would hide when a token came."""

_EXACT_LENGTH: Final = frozenset({"sglang", "sglang_jax", "sim", "tokenweir"})


def _to_text(value: object) -> object:
    """Let a number of a TOML file reach the reader that says which unit it lacks, and a list be one text."""
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in cast("list[object]", value))
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _to_limits(value: object) -> object:
    if isinstance(value, Mapping):
        limits = cast("Mapping[str, object]", value)
        return ",".join(f"{tag}={limit}" for tag, limit in limits.items())
    return _to_text(value)


def _to_pairs(value: object) -> object:
    """Read ``["k=v", …]`` as a mapping."""
    if not isinstance(value, (list, tuple)):
        return value
    pairs: dict[str, str] = {}
    for item in cast("list[object]", value):
        name, equals, content = str(item).partition("=")
        if not equals or not name.strip():
            reason = f"{item!r} is no name=value"
            raise ValueError(reason)
        pairs[name.strip()] = content.strip()
    return pairs


Text = Annotated[str, BeforeValidator(_to_text)]
Pairs = Annotated[dict[str, str], BeforeValidator(_to_pairs)]


class BenchOptions(SettingsModel):
    """The keys of ``weir bench``, the same in a spec file and, with hyphens, as flags."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    url: str = Field(description="The endpoint: http:// or https://, host, port and any path before /v1.")
    model: str | None = Field(default=None, description="The model's name there; default: the one it serves.")
    backend: Literal["openai", "sglang", "sglang_jax", "sim", "tokenweir"] = Field(
        default="openai", description="The protocol it speaks."
    )
    corpus: str | None = Field(
        default=None,
        description="A file or a shipped corpus; default: weir-mix, or synthetic with a scenario.",
    )
    scenario: str | None = Field(
        default=None, description="Token lengths: D(in,out), N(mean,sd)/(mean,sd), U(lo,hi)/(lo,hi), E(n)."
    )
    arrival: Text = Field(default="concurrency=1", description="When requests are sent; a list is a sweep.")
    requests: int | None = Field(
        default=None, ge=1, description="Requests per load point; default: 100 when no duration is given."
    )
    duration: Text | None = Field(
        default=None, description="Time per load point; with requests, whichever comes first."
    )
    warmup: Text = Field(default="0s", description="What is left out at the start: a time, or requests.")
    cooldown: Text = Field(default="0s", description="What is left out at the end: a time, or requests.")
    timeout: Text = Field(default="60s", description="A request that takes longer has failed.")
    seed: int = Field(default=0, ge=0, le=MAX_INTEGER, description="Draws order, lengths and arrivals.")
    slo: Annotated[str, BeforeValidator(_to_limits)] = Field(
        default="", description="Limits a good request meets, such as ttft=200ms,tpot=25ms."
    )
    failures_as_infinite: bool = Field(default=False, description="Whether a failed request counts as +inf.")
    kind: Kind | None = Field(
        default=None, description="chat, completion or embedding; default: chat, or embedding with E(n)."
    )
    stream: bool = Field(default=True, description="Whether answers are streamed.")
    max_tokens: int | None = Field(default=None, ge=1, description="The most tokens of an answer.")
    ignore_eos: bool | None = Field(
        default=None,
        description="Whether answers run to full length; default: with a scenario, where the engine can.",
    )
    temperature: float | None = Field(default=None, ge=0, description="Sampling temperature.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Nucleus of this probability.")
    top_k: int | None = Field(default=None, description="Only the k likeliest tokens.")
    presence_penalty: float | None = Field(default=None, description="Penalty of tokens that have occurred.")
    frequency_penalty: float | None = Field(default=None, description="Penalty by how often they have.")
    stop: tuple[str, ...] = Field(default=(), description="Texts that end an answer.")
    shuffle: bool = Field(
        default=True, description="Whether each cycle through the corpus has its own order."
    )
    unique_prompts: bool = Field(
        default=False, description="Whether every prompt gets a beginning of its own, against prefix caches."
    )
    tokenizer: str | None = Field(default=None, description="A tokenizer.json, or a model folder with one.")
    header: Pairs = Field(default={}, description="HTTP headers to add.")
    key: SecretRef | None = Field(default=None, description="The API key: env:NAME or file:PATH.")
    commit: str | None = Field(default=None, description="The backend's commit, where it does not say.")
    revision: str | None = Field(default=None, description="The model's revision, where it does not say.")
    workers: int | None = Field(default=None, ge=0, description="Worker processes; overrides bench.workers.")
    chunks: Literal["auto", "always", "never"] | None = Field(
        default=None, description="Whether chunks.parquet is written; overrides bench.chunks."
    )
    out: Path | None = Field(
        default=None, description="The run directory; default: a new one in stores.runs."
    )
    label: Pairs = Field(default={}, description="Labels of the run.")

    @classmethod
    def load(cls, spec_path: Path | None, overrides: Mapping[str, object] | None = None) -> BenchOptions:
        """Return the options of a spec file (TOML or YAML), overruled by ``overrides`` that are not ``None``.

        Raises ConfigError for a file that cannot be read, an unknown key (naming the nearest) and a value of
        the wrong type; InputError and SpecError for units, notations and contradictions.
        """
        options = fill(cls, spec_path, overrides=overrides)
        options.check()
        return options

    def check(self) -> None:
        """Read every value and refuse what contradicts itself. Raises InputError."""
        if not _is_http(self.url):
            raise SpecError(f"the URL {self.url!r} is no http:// address", mend="write http://HOST:PORT")
        for value in (self.temperature, self.top_p, self.presence_penalty, self.frequency_penalty):
            if value is not None and not math.isfinite(value):
                raise SpecError(f"{value!r} is no number to sample with", mend="write a finite one")
        _ = self.slo_limits
        if self.timeout_ns == 0:
            raise SpecError("--timeout 0s lets no request finish", mend="write one such as 60s")
        if self.duration_ns == 0:
            raise SpecError("--duration 0s leaves no time to measure", mend="write one such as 60s")
        self._check_headers()
        self._check_lengths()
        self._check_trims()

    def _check_headers(self) -> None:
        for name in self.header:
            if _HEADER.fullmatch(name) is None:
                raise SpecError(f"--header {name!r} is no header's name", mend="write NAME=VALUE")
            if name.lower() in _OWN_HEADERS:
                raise SpecError(f"--header {name} is the client's own to set", mend="drop it")

    def _check_lengths(self) -> None:
        scenario, embeds = self.lengths, self.asked_kind == "embedding"
        if scenario is not None and isinstance(scenario, Embedding) != embeds:
            kind = self.asked_kind
            raise SpecError(
                f"--scenario {self.scenario} does not fit --kind {kind}", mend=_kind_mend(embeds=embeds)
            )
        if scenario is not None and self.max_tokens is not None:
            raise SpecError(
                f"--scenario {self.scenario} and --max-tokens {self.max_tokens} both set the output length",
                mend="drop one of them",
            )
        if any(isinstance(arrival, Trace) for arrival in self.arrivals) and scenario is not None:
            raise SpecError(
                "a trace brings its own lengths, and --scenario sets others", mend="drop one of them"
            )

    def _check_trims(self) -> None:
        warmup, cooldown = self.warmup_trim, self.cooldown_trim
        trimmed = warmup.requests + cooldown.requests
        if self.request_limit is not None and trimmed >= self.request_limit:
            raise SpecError(
                f"warm-up and cool-down of {trimmed} requests leave none of {self.request_limit}",
                mend=f"ask for more than {trimmed} --requests",
            )
        trimmed_ns = warmup.ns + cooldown.ns
        if self.duration_ns is not None and trimmed_ns >= self.duration_ns:
            raise SpecError(
                f"--warmup {warmup.text} and --cooldown {cooldown.text} leave none of {self.duration}",
                mend="measure for longer",
            )

    @cached_property
    def arrivals(self) -> tuple[Arrival, ...]:
        """The load points, in order."""
        return parse_arrivals(self.arrival)

    @cached_property
    def lengths(self) -> Scenario | None:
        """The scenario, read."""
        return None if self.scenario is None else parse_scenario(self.scenario)

    @cached_property
    def duration_ns(self) -> int | None:
        """How long each load point lasts at most."""
        return None if self.duration is None else parse_duration(self.duration, what="--duration")

    @cached_property
    def timeout_ns(self) -> int:
        """How long a request may take."""
        return parse_duration(self.timeout, what="--timeout")

    @cached_property
    def warmup_trim(self) -> Trim:
        """What is left out at the start of each load point."""
        return parse_trim(self.warmup, what="--warmup")

    @cached_property
    def cooldown_trim(self) -> Trim:
        """What is left out at the end of each load point."""
        return parse_trim(self.cooldown, what="--cooldown")

    @cached_property
    def slo_limits(self) -> Slo:
        """The limits of goodput."""
        return parse_slo(self.slo)

    @property
    def request_limit(self) -> int | None:
        """Requests per load point; ``None`` when only a duration, or a trace's end, bounds it."""
        if self.requests is not None:
            return self.requests
        bounded = self.duration is not None or any(isinstance(arrival, Trace) for arrival in self.arrivals)
        return None if bounded else DEFAULT_REQUESTS

    @property
    def asked_kind(self) -> Kind:
        """The interface that is asked."""
        if self.kind is not None:
            return self.kind
        return "embedding" if isinstance(self.lengths, Embedding) else "chat"

    @property
    def streams(self) -> bool:
        """Whether answers are streamed; embeddings never are."""
        return self.stream and self.asked_kind != "embedding"

    @property
    def full_length(self) -> bool:
        """Whether answers run to full length: as asked, else with a scenario where the engine can."""
        if self.ignore_eos is not None:
            return self.ignore_eos
        sized = self.lengths is not None and not isinstance(self.lengths, Embedding)
        return sized and self.backend in _EXACT_LENGTH

    @property
    def repeat(self) -> Repeat:
        """How samples are used again."""
        if self.unique_prompts:
            return "shuffled+unique" if self.shuffle else "ordered+unique"
        return "shuffled" if self.shuffle else "ordered"

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn, without the length of single samples."""
        return Sampling(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=self.stop,
            ignore_eos=self.full_length,
        )


def resolve(options: BenchOptions, *, corpus: Corpus, identity: Identity | None = None) -> ExperimentSpec:
    """Return the experiment: the options, the corpus as it was built and what the endpoint says.

    Raises SpecError when no model is known, and when a stated commit or revision is not the endpoint's own.
    """
    known = identity or Identity()
    model = options.model or known.model
    if model is None:
        raise SpecError("the endpoint does not say which model it serves", mend="give --model")
    return ExperimentSpec(
        subject=Subject(
            backend=options.backend,
            url=options.url,
            model=model,
            engine_flags=dict(known.flags),
            commit=_agreed("--commit", options.commit, known.commit),
            revision=_agreed("--revision", options.revision, known.revision),
        ),
        workload=WorkloadSpec(
            kind=options.asked_kind,
            stream=options.streams,
            corpus=CorpusRef(corpus.name, corpus.hash),
            scenario=None if options.lengths is None else options.lengths.text,
            loads=tuple(arrival.text for arrival in options.arrivals),
            requests=options.request_limit,
            duration_ns=options.duration_ns,
            sampling=options.sampling,
            seed=options.seed,
            ignore_eos=options.full_length,
            repeat=options.repeat,
        ),
        measurement=MeasurementSpec(
            warmup=options.warmup_trim.text,
            cooldown=options.cooldown_trim.text,
            timeout_ns=options.timeout_ns,
            slo=dict(options.slo_limits.limits_ns),
            failures_as_infinite=options.failures_as_infinite,
            tokens="server",
        ),
    )


def _agreed(flag: str, stated: str | None, said: str | None) -> str | None:
    """Return what the endpoint says, else what the user states; a short commit agrees with its long form."""
    if stated is None or said is None:
        return said if stated is None else stated
    if not (said.startswith(stated) or stated.startswith(said)):
        raise SpecError(
            f"{flag} {stated} is not what the endpoint says: {said}", mend=f"drop {flag} or mend it"
        )
    return said


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def _kind_mend(*, embeds: bool) -> str:
    return "embeddings take E(n)" if embeds else "E(n) is for --kind embedding"
