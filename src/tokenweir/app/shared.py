"""Wires the processes that share stores: workers and collectors beside gateways."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from tokenweir.app import Settings
from tokenweir.app.gateway import endpoint_facts, open_stores, queued_policy, trust_of
from tokenweir.app.rpc_endpoints import rpcs_of
from tokenweir.app.tokenizers import tokenizers_of
from tokenweir.app.traces import open_tracer
from tokenweir.asgi.tls import listener
from tokenweir.backends.registry import backend
from tokenweir.core.clock import SystemClock
from tokenweir.core.errors import ConfigError
from tokenweir.gateway.endpoints.addresses import AddressRules
from tokenweir.gateway.endpoints.health import HealthWatch
from tokenweir.gateway.endpoints.pool import Endpoint, Pool
from tokenweir.gateway.endpoints.upstream import Origin, UpstreamClient
from tokenweir.gateway.metering.estimate import UsualOutput
from tokenweir.gateway.metering.prices import Price, PriceTable
from tokenweir.gateway.metering.settling import Settler
from tokenweir.gateway.queued.node import Metering, Workshop
from tokenweir.gateway.queued.processes import Bench, Opener, Side
from tokenweir.gateway.running import timeouts_of
from tokenweir.telemetry.refusals import Refusals


def need_shared(settings: Settings, what: str) -> None:
    """Raise ConfigError where the stores belong to one process."""
    if settings.stores.gateway.startswith("sqlite:"):
        raise ConfigError(
            f"weir {what} cannot work on {settings.stores.gateway!r}, which one process alone may write",
            mend=f"run weir up, which holds the {what}, or set stores that several processes share",
        )


def bench_opener(settings: Settings, what: str) -> Opener:
    """Return what opens the parts of a worker or collector. Raises ConfigError for settings that cannot be used."""
    need_shared(settings, what)
    if what == "worker" and not settings.endpoints:
        raise ConfigError("no endpoint is configured", mend="add an [[endpoints]] table")
    facts = [(endpoint_facts(endpoint), endpoint.url) for endpoint in settings.endpoints]
    controls = {kind: backend(kind) for kind in {endpoint.kind for endpoint in settings.endpoints}}
    policy, rules = queued_policy(settings), AddressRules.parse(settings.gateway.endpoint_networks)
    gateway = settings.gateway
    trust, rpcs = trust_of(settings.endpoints), rpcs_of(settings.endpoints, gateway)
    # A worker leaves counting to the collector.
    tokenizers = tokenizers_of(settings.endpoints) if what == "collector" else {}
    side = side_of(settings, what)
    prices = PriceTable(
        [
            Price(model=each.model, input=each.input, output=each.output, cached=each.cached)
            for each in gateway.prices
        ],
        currency=gateway.currency,
    )

    @contextlib.asynccontextmanager
    async def open_bench() -> AsyncGenerator[Bench]:
        async with (
            open_tracer(settings.telemetry, f"weir-{what}") as tracer,
            open_stores(settings) as stores,
            contextlib.AsyncExitStack() as closing,
        ):
            if stores.queued is None:
                raise ConfigError("these stores have no queue", mend="set stores that hold one")
            pool = Pool(
                [
                    Endpoint(
                        each,
                        UpstreamClient(
                            Origin.parse(url),
                            connections=gateway.endpoint_connections,
                            timeouts=timeouts_of(gateway),
                            tls=trust.get(each.name),
                            rules=rules,
                        ),
                        rpc=rpcs.get(each.name),
                    )
                    for each, url in facts
                ],
                tokenizers=tokenizers,
            )
            for rpc in rpcs.values():
                closing.push_async_callback(rpc.close)
            settler = Settler(stores.ledger, stores.quota)
            metering = Metering(
                settler=settler,
                usual=UsualOutput(default_tokens=gateway.default_output_tokens),
                prices=prices,
                quota=stores.quota,
            )
            shop = Workshop(stores.queued, pool, metering, policy=policy, clock=SystemClock())
            shop.asker.tracer = shop.ends.tracer = tracer
            health = HealthWatch(pool, controls, interval_ns=gateway.health_interval)
            yield Bench(shop, settler=settler, pool=pool, health=health, side=side)

    return open_bench


def side_of(settings: Settings, what: str) -> Side | None:
    """Return where a worker or collector tells how it is, if it does. Raises ConfigError."""
    told = settings.worker if what == "worker" else settings.collector
    if told.metrics_port is None:
        return None
    refused = Refusals(f"tokenweir.{what}")
    tls = listener(told.tls, refused, refused.renewed)
    return Side(host=told.metrics_host, port=told.metrics_port, tls=tls, refusals=refused)
