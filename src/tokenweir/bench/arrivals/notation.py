"""Reading ``--arrival``: a name, its values and a list of loads.

::

    concurrency=1,8,64            three loads
    concurrency=64@20/s           with a rate cap
    constant=20/s                 poisson=20/s
    gamma=20/s:cv=2               gamma(cv=2)=20/s      gamma(20/s,2)
    normal=50ms:sd=5ms            normal(50ms,5ms)
    uniform=10ms..90ms            uniform(10ms,90ms)
    ramp=5/s..50/s:over=30s       ramp(5/s,50/s,30s)
    trace=FILE:speed=2

Commas outside parentheses separate loads; a load without a name takes that of the load before it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Final, NoReturn

from tokenweir.bench.arrivals.closed import Concurrency
from tokenweir.bench.arrivals.gaps import Constant, Gamma, Normal, Poisson, Uniform
from tokenweir.bench.arrivals.ramp import Ramp
from tokenweir.bench.arrivals.schedule import Arrival
from tokenweir.bench.arrivals.trace import Trace
from tokenweir.bench.corpora.traces import load_trace
from tokenweir.core.errors import InputError
from tokenweir.core.units import parse_count, parse_duration, parse_rate

_EXAMPLES: Final = {
    "concurrency": "concurrency=64 or concurrency=64@20/s",
    "constant": "constant=20/s",
    "poisson": "poisson=20/s",
    "gamma": "gamma=20/s:cv=2",
    "normal": "normal=50ms:sd=5ms",
    "uniform": "uniform=10ms..90ms",
    "ramp": "ramp=5/s..50/s:over=30s",
    "trace": "trace=FILE or trace=FILE:speed=2",
}
_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "concurrency": ("slots", "cap"),
    "constant": ("rate",),
    "poisson": ("rate",),
    "gamma": ("rate", "cv"),
    "normal": ("mean", "sd"),
    "uniform": ("lo", "hi"),
    "ramp": ("lo", "hi", "over"),
    "trace": ("file", "speed"),
}
_SEPARATOR: Final = {"concurrency": "@", "uniform": "..", "ramp": ".."}
_NAMED: Final = re.compile(
    r"\s*(?P<name>[A-Za-z_]+)\s*(?:\((?P<args>[^()]*)\)\s*)?(?:=(?P<value>.*))?", re.DOTALL
)
_COMMA: Final = re.compile(r",(?![^()]*\))")
_TRACE: Final = re.compile(r"\s*trace\s*=\s*(?P<file>.+?)\s*(?::speed=(?P<speed>[^:]*))?", re.DOTALL)


def parse_arrivals(text: str) -> tuple[Arrival, ...]:
    """Return the load points that ``text`` asks for, in order.

    Raises InputError for an unknown process, a missing or superfluous value, a wrong unit and a value out of
    bounds; CorpusError for a trace that cannot be read.
    """
    trace = _TRACE.fullmatch(text)
    if trace is not None:
        # A file name may hold commas and colons, so a trace is the only load of its run.
        return (_trace({key: value for key, value in trace.groupdict().items() if value is not None}),)
    loads: list[Arrival] = []
    name = ""
    for item in _COMMA.split(text):
        name, fields = _read(item.strip(), name)
        loads.append(_BUILDERS[name](fields))
    return tuple(loads)


def _read(item: str, before: str) -> tuple[str, dict[str, str]]:
    match = _NAMED.fullmatch(item)
    if match is not None and (match["args"] is not None or match["value"] is not None):
        name = _known(match["name"])
        fields = (
            {}
            if match["args"] is None
            else _arguments(name, match["args"], given_rate=match["value"] is not None)
        )
        if match["value"] is not None:
            fields |= _infix(name, match["value"])
        return name, fields
    if before and item:
        return before, _infix(before, item)
    if match is not None and match["name"] in _EXAMPLES:
        _fail(match["name"], f"--arrival {item} lacks its value")
    raise InputError(
        f"--arrival {item!r} names no arrival process",
        mend=f"write one such as {_EXAMPLES['concurrency']}, {_EXAMPLES['poisson']}",
    )


def _known(name: str) -> str:
    if name in _EXAMPLES:
        return name
    near = get_close_matches(name, _EXAMPLES, n=1)
    mend = f"did you mean {near[0]}?" if near else f"the processes are {', '.join(_EXAMPLES)}"
    raise InputError(f"--arrival has no process {name!r}", mend=mend)


def _arguments(name: str, text: str, *, given_rate: bool) -> dict[str, str]:
    """Read ``(a,b)`` or ``(key=a)``; a value behind an equals sign is the first field."""
    keys = _FIELDS[name][1:] if given_rate else _FIELDS[name]
    values = [value.strip() for value in text.split(",")]
    if len(values) > len(keys):
        _fail(name, f"--arrival {name}({text}) has too many values")
    fields: dict[str, str] = {}
    for key, value in zip(keys, values, strict=False):
        left, equals, right = value.partition("=")
        _put(name, fields, left.strip() if equals else key, right.strip() if equals else value)
    return fields


def _infix(name: str, text: str) -> dict[str, str]:
    """Read ``main:key=value:…``, where the main value of some processes is a pair."""
    main, *options = text.split(":")
    fields: dict[str, str] = {}
    separator = _SEPARATOR.get(name)
    parts = [main] if separator is None else main.split(separator, 1)
    for key, value in zip(_FIELDS[name], parts, strict=False):
        _put(name, fields, key, value.strip())
    for option in options:
        key, _, value = option.partition("=")
        _put(name, fields, key.strip(), value.strip())
    return fields


def _put(name: str, fields: dict[str, str], key: str, value: str) -> None:
    if key not in _FIELDS[name]:
        _fail(name, f"--arrival {name} has no value {key!r}")
    if key in fields:
        _fail(name, f"--arrival {name} has two values {key!r}")
    fields[key] = value


def _fail(name: str, message: str) -> NoReturn:
    raise InputError(message, mend=f"write {_EXAMPLES[name]}")


def _need(name: str, fields: Mapping[str, str], keys: Sequence[str]) -> list[str]:
    missing = [key for key in keys if not fields.get(key)]
    if missing:
        _fail(name, f"--arrival {name} lacks {' and '.join(missing)}")
    return [fields[key] for key in keys]


def _rate(name: str, text: str, *, zero: bool = False) -> float:
    rate = parse_rate(text, what=f"--arrival {name}")
    if rate == 0 and not zero:
        _fail(name, f"--arrival {name} has the rate 0")
    return rate


def _positive(name: str, key: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        _fail(name, f"--arrival {name} has {key}={text!r}, which is no number above 0")
    return number


def _concurrency(fields: Mapping[str, str]) -> Concurrency:
    (slots,) = _need("concurrency", fields, ["slots"])
    count = parse_count(slots, what="--arrival concurrency")
    if count < 1:
        _fail("concurrency", "--arrival concurrency needs at least 1 request in flight")
    cap = fields.get("cap")
    return Concurrency(count, None if cap is None else _rate("concurrency", cap))


def _constant(fields: Mapping[str, str]) -> Constant:
    (rate,) = _need("constant", fields, ["rate"])
    return Constant(_rate("constant", rate))


def _poisson(fields: Mapping[str, str]) -> Poisson:
    (rate,) = _need("poisson", fields, ["rate"])
    return Poisson(_rate("poisson", rate))


def _gamma(fields: Mapping[str, str]) -> Gamma:
    rate, cv = _need("gamma", fields, ["rate", "cv"])
    return Gamma(_rate("gamma", rate), _positive("gamma", "cv", cv))


def _normal(fields: Mapping[str, str]) -> Normal:
    mean, sd = _need("normal", fields, ["mean", "sd"])
    mean_ns = parse_duration(mean, what="--arrival normal")
    if mean_ns == 0:
        _fail("normal", "--arrival normal has the mean gap 0")
    return Normal(mean_ns, parse_duration(sd, what="--arrival normal:sd"))


def _uniform(fields: Mapping[str, str]) -> Uniform:
    lo, hi = (
        parse_duration(text, what="--arrival uniform") for text in _need("uniform", fields, ["lo", "hi"])
    )
    if hi == 0 or hi < lo:
        _fail(
            "uniform",
            f"--arrival uniform={fields['lo']}..{fields['hi']} has no gap above 0 between its bounds",
        )
    return Uniform(lo, hi)


def _ramp(fields: Mapping[str, str]) -> Ramp:
    lo, hi, over = _need("ramp", fields, ["lo", "hi", "over"])
    over_ns = parse_duration(over, what="--arrival ramp:over")
    if over_ns == 0:
        _fail("ramp", "--arrival ramp has no time to go over")
    return Ramp(_rate("ramp", lo, zero=True), _rate("ramp", hi), over_ns)


def _trace(fields: Mapping[str, str]) -> Trace:
    (file,) = _need("trace", fields, ["file"])
    speed = fields.get("speed")
    number = 1.0 if speed is None else _positive("trace", "speed", speed)
    return Trace(file, load_trace(file).digest, number)


_BUILDERS: Final[Mapping[str, Callable[[Mapping[str, str]], Arrival]]] = {
    "concurrency": _concurrency,
    "constant": _constant,
    "poisson": _poisson,
    "gamma": _gamma,
    "normal": _normal,
    "uniform": _uniform,
    "ramp": _ramp,
    "trace": _trace,
}
