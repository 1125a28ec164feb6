"""What an answer's text must match, from OpenAI's, vLLM's, ``mlx-engine``'s and LM Studio's ways of saying it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json
from tokenweir.ports.inference import Guidance, GuidanceKind
from tokenweir.runtime.normalise.values import Values

_ANY_OBJECT: Final = Guidance(kind="json_schema", value='{"type":"object"}')
_MOST_CHOICES: Final = 1024
_OPENAI: Final = frozenset({"type", "json_schema"})
_SCHEMA: Final = frozenset({"name", "description", "schema", "strict"})
_STRUCTURED_OUTPUTS: Final = ("json", "regex", "choice", "grammar", "json_object")
_LM_STUDIO: Final = frozenset({"type", "jsonSchema", "json_schema", "gbnfGrammar", "gbnf_grammar"})


def guidance(values: Values) -> Guidance | None:
    """Return what the answer must match, or ``None``.

    Raises:
        ParameterError: a way of saying it is malformed, or two of them say different things.
    """
    readers: Mapping[str, Callable[[str, Json], Guidance | None]] = {
        "response_format": response_format,
        "guided_json": _schema,
        "guided_regex": _regex,
        "guided_choice": _choice,
        "guided_grammar": _grammar,
        "structured_outputs": _structured_outputs,
        "structured": _lm_studio,
    }
    said = [
        (values.spelling(name), read(values.spelling(name), values.raw(name)))
        for name, read in readers.items()
        if name in values
    ]
    found = [(name, one) for name, one in said if one is not None]
    for name, one in found[1:]:
        if one != found[0][1]:
            raise ParameterError(
                f"{found[0][0]!r} and {name!r} both say what the answer must match, and differ",
                param=name,
                reason="contradictory_parameters",
                mend="send one of them",
            )
    return found[0][1] if found else None


def response_format(param: str, value: Json) -> Guidance | None:
    """Return what OpenAI's ``response_format`` asks for; ``None`` for plain text."""
    table = _table(param, value, _OPENAI)
    match table.get("type"):
        case "text":
            return None
        case "json_object":
            return _ANY_OBJECT
        case "json_schema":
            inner = _table(f"{param}.json_schema", table.get("json_schema"), _SCHEMA)
            if "schema" not in inner:
                raise _bad(f"{param}.json_schema", "it has no 'schema'", "give the JSON schema there")
            return _schema(f"{param}.json_schema.schema", inner["schema"])
        case other:
            raise _bad(
                f"{param}.type", f"{other!r} is no format", "use 'text', 'json_object' or 'json_schema'"
            )


def _schema(param: str, value: Json) -> Guidance:
    """Read a JSON schema: an object, ``true``, or the text of one."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError) as error:
            raise _bad(param, f"its text is no JSON: {error}", "send the schema as an object") from error
    if not isinstance(value, dict | bool):
        raise _bad(param, "a JSON schema is an object", "send the schema as an object")
    return Guidance(kind="json_schema", value=msgspec.json.encode(value).decode())


def _text(kind: GuidanceKind, param: str, value: Json) -> Guidance:
    if not isinstance(value, str) or not value:
        raise _bad(param, f"it is {value!r}", "it must be text that is not empty")
    return Guidance(kind=kind, value=value)


def _regex(param: str, value: Json) -> Guidance:
    return _text("regex", param, value)


def _grammar(param: str, value: Json) -> Guidance:
    return _text("grammar", param, value)


def _choice(param: str, value: Json) -> Guidance:
    texts = value if isinstance(value, list) else []
    if not texts or len(texts) > _MOST_CHOICES or not all(isinstance(one, str) and one for one in texts):
        raise _bad(param, "it is no list of texts", f"give 1 to {_MOST_CHOICES} texts, none of them empty")
    return Guidance(kind="choice", value=msgspec.json.encode(texts).decode())


def _structured_outputs(param: str, value: Json) -> Guidance | None:
    """Read vLLM's ``structured_outputs``: an object with one of its keys set."""
    table = _table(param, value, frozenset(_STRUCTURED_OUTPUTS))
    given = [key for key in _STRUCTURED_OUTPUTS if table.get(key) is not None and table.get(key) is not False]
    if len(given) != 1:
        raise _bad(param, f"it sets {len(given)} constraints", f"set one of {', '.join(_STRUCTURED_OUTPUTS)}")
    (key,) = given
    where = f"{param}.{key}"
    match key:
        case "json":
            return _schema(where, table[key])
        case "regex":
            return _regex(where, table[key])
        case "choice":
            return _choice(where, table[key])
        case "grammar":
            return _grammar(where, table[key])
        case _:
            return _ANY_OBJECT


def _lm_studio(param: str, value: Json) -> Guidance | None:
    """Read LM Studio's ``structured``."""
    table = _table(param, value, _LM_STUDIO)
    match table.get("type"):
        case "none":
            return None
        case "json":
            schema = table.get("jsonSchema", table.get("json_schema"))
            return _ANY_OBJECT if schema is None else _schema(f"{param}.jsonSchema", schema)
        case other:
            raise _bad(
                f"{param}.type",
                f"{other!r} is not supported",
                "use 'json'; send a grammar as guided_grammar, in Lark's notation",
            )


def _table(param: str, value: Json, keys: frozenset[str]) -> Mapping[str, Json]:
    if not isinstance(value, dict):
        raise _bad(param, f"it is {value!r}", "it must be an object")
    foreign = sorted(value.keys() - keys)
    if foreign:
        raise ParameterError(
            f"unknown parameter '{param}.{foreign[0]}'",
            param=f"{param}.{foreign[0]}",
            reason="unknown_parameter",
            mend=f"it takes {', '.join(sorted(keys))}",
        )
    return value


def _bad(param: str, what: str, mend: str) -> ParameterError:
    return ParameterError(f"{param!r} cannot be used: {what}", param=param, mend=mend)
