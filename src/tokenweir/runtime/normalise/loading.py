"""The body that loads a model, into what is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, cast

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json
from tokenweir.runtime.normalise.values import Values
from tokenweir.runtime.normalise.vocabulary import LOADING

_MOST_TOKENS: Final = 1 << 24


class LoadAsk(msgspec.Struct, frozen=True, kw_only=True):
    """A model to load: its directory, its name (the directory's, when ``None``), and how it is loaded."""

    path: str
    name: str | None = None
    weight_bits: Literal[4, 8] | None = None
    context_tokens: int | None = None
    draft: str | None = None


def loading(body: Mapping[str, Json]) -> LoadAsk:
    """Return the model that a body asks to load.

    Raises:
        ParameterError: as :func:`tokenweir.runtime.normalise.requests.normalise`; two drafts are an error too.
    """
    values = Values(LOADING.sort_out("load", body))
    path = values.text("path")
    if not path:
        raise ParameterError(
            "there is no path",
            param="path",
            reason="missing_required_parameter",
            mend="send the model's directory",
        )
    bits = values.raw("weight_bits")
    if bits is not None and not (isinstance(bits, int) and bits in {4, 8}):
        raise values.wrong("weight_bits", "4 or 8")
    drafts = values.raw("draft")
    if isinstance(drafts, list) and len(drafts) > 1:
        raise values.wrong("draft", "one directory: a model has one draft")
    return LoadAsk(
        path=path,
        name=values.text("name") or None,
        weight_bits=cast("Literal[4, 8] | None", bits),
        context_tokens=values.integer("context_tokens", 2, _MOST_TOKENS),
        draft=values.text("draft") or None,
    )
