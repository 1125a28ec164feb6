from __future__ import annotations

import pytest

from tokenweir.app.gateway import endpoint_facts
from tokenweir.config import EndpointSettings
from tokenweir.core.errors import OverloadedError
from tokenweir.gateway.endpoints.pool import Endpoint, Pool
from tokenweir.gateway.endpoints.upstream import Origin, UpstreamClient


def pool_of(*settings: dict[str, object]) -> Pool:
    made = [
        EndpointSettings.model_validate({"kind": "sim", "model": "m", "url": "http://127.0.0.1:1", **each})
        for each in settings
    ]
    return Pool([Endpoint(endpoint_facts(one), UpstreamClient(Origin.parse(one.url))) for one in made])


def chosen(pool: Pool, times: int, tier_pool: str = "") -> set[str]:
    return {pool.choose("m", 0, pool=tier_pool).facts.name for _ in range(times)}


def test_a_tiers_pool_is_its_own_and_a_fallback_is_asked_last() -> None:
    pool = pool_of({"name": "all"}, {"name": "kept", "pool": "fast"}, {"name": "last", "order": 1})
    assert chosen(pool, 9) == {"all"}
    assert chosen(pool, 30, "fast") == {"all", "kept"}
    only = pool_of({"name": "kept", "pool": "fast"})
    with pytest.raises(OverloadedError):
        chosen(only, 1)
    assert chosen(only, 1, "fast") == {"kept"}
    for endpoint in pool.endpoints[:2]:
        for _ in range(5):
            endpoint.breaker.failed(0)
    assert chosen(pool, 2) == {"last"}
