"""Wires endpoints that are asked over gRPC; its library is imported where there are any."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Final, Protocol, cast

from tokenweir.config import EndpointSettings
from tokenweir.core.errors import ConfigError, MissingExtraError
from tokenweir.gateway.endpoints.addresses import AddressRules
from tokenweir.gateway.endpoints.pool import Rpc
from tokenweir.gateway.endpoints.upstream import Timeouts
from tokenweir.gateway.running import timeouts_of
from tokenweir.gateway.settings import Settings

_SCHEMES: Final = ("grpc://", "grpcs://")


class _Module(Protocol):
    """What the client's module offers."""

    def client(self, endpoint: EndpointSettings, timeouts: Timeouts, rules: AddressRules) -> Rpc: ...


def rpcs_of(endpoints: Sequence[EndpointSettings], settings: Settings) -> dict[str, Rpc]:
    """Return the clients of those endpoints whose URL is one of gRPC, by their names.

    Raises:
        ConfigError: an endpoint of another kind has such a URL, or it cannot be used.
        MissingExtraError: gRPC is not installed.
    """
    chosen = [endpoint for endpoint in endpoints if endpoint.url.startswith(_SCHEMES)]
    for endpoint in chosen:
        if endpoint.kind != "tokenweir":
            raise ConfigError(
                f"the endpoint {endpoint.name!r} of kind {endpoint.kind!r} has the URL {endpoint.url!r}",
                mend="only weir runtime (kind tokenweir) speaks tokenweir.v1 over gRPC; use http://",
            )
    if not chosen:
        return {}
    try:
        module = cast("_Module", importlib.import_module("tokenweir.gateway.endpoints.rpc"))
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"endpoints over gRPC need the package {error.name!r}, which is not installed",
            mend="pip install 'tokenweir[runtime]'",
        ) from error
    timeouts, rules = timeouts_of(settings), AddressRules.parse(settings.endpoint_networks)
    return {endpoint.name: module.client(endpoint, timeouts, rules) for endpoint in chosen}
