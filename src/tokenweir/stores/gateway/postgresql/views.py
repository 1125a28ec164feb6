"""The views that billing tools read: ``users``, ``quotas``, ``requests``. ``docs/stores.md`` is their contract.

``requests`` is made of the gateway's own tables. ``users`` and ``quotas`` also need those of access, and are made where
both lie in one database.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from tokenweir.stores.records import reading, writing

_TIME: Final = "to_timestamp({} / 1000000000.0)"

REQUESTS_VIEW: Final = f"""
CREATE OR REPLACE VIEW requests AS
SELECT
    encode(coalesce(l.request, q.request), 'hex') AS request_id,
    encode(coalesce(l.key_id, q.key_id), 'hex') AS key_id,
    encode(coalesce(l.user_id, q.user_id), 'hex') AS user_id,
    encode(coalesce(l.team_id, q.team_id), 'hex') AS team_id,
    coalesce(l.model, q.model) AS model,
    coalesce(l.endpoint, '') AS endpoint,
    coalesce(q.mode, 'direct') AS mode,
    coalesce(l.ending, 'open') AS status,
    {_TIME.format("coalesce(l.at, q.at)")} AS accepted_at,
    {_TIME.format("l.settled_at")} AS settled_at,
    l.input_tokens, l.output_tokens, l.cached_tokens,
    l.cost AS cost_millionths, l.currency, l.source AS counted_by
FROM gateway_ledger l FULL JOIN gateway_requests q ON q.request = l.request
"""  # noqa: S608 - own words

USERS_VIEW: Final = f"""
CREATE OR REPLACE VIEW users AS
SELECT
    encode(u.id, 'hex') AS user_id, u.name AS name, t.name AS team,
    coalesce(nullif(u.tier, ''), t.tier, '') AS tier,
    {_TIME.format("u.created_at")} AS created_at, {_TIME.format("u.disabled_at")} AS disabled_at
FROM access_users u LEFT JOIN access_teams t ON t.id = u.team
"""  # noqa: S608 - own words

QUOTAS_VIEW: Final = f"""
CREATE OR REPLACE VIEW quotas AS
SELECT
    l.scope, CASE l.scope WHEN 'tier' THEN convert_from(l.subject, 'UTF8') ELSE encode(l.subject, 'hex') END AS subject,
    coalesce(k.name, u.name, t.name) AS name, l.model, l.unit, l."window", l.amount,
    {_TIME.format("w.start_at")} AS window_start,
    CASE WHEN l.scope <> 'tier' THEN (
        SELECT coalesce(sum(CASE l.unit WHEN 'requests' THEN 1 WHEN 'tokens' THEN g.input_tokens + g.output_tokens
                            ELSE g.cost END), 0)::bigint
        FROM gateway_ledger g
        WHERE g.at >= w.start_at AND (l.model = '' OR g.model = l.model)
          AND CASE l.scope WHEN 'key' THEN g.key_id WHEN 'user' THEN g.user_id ELSE g.team_id END = l.subject
    ) END AS settled
FROM access_limits l
CROSS JOIN LATERAL (
    SELECT (extract(epoch FROM date_trunc(l."window", now(), 'UTC')) * 1000000000)::bigint AS start_at
) w
LEFT JOIN access_keys k ON l.scope = 'key' AND k.id = l.subject
LEFT JOIN access_users u ON l.scope = 'user' AND u.id = l.subject
LEFT JOIN access_teams t ON l.scope = 'team' AND t.id = l.subject
"""  # noqa: S608 - own words

_ACCESS: Final = {"access_users", "access_teams", "access_keys", "access_limits"}


def make_views(engine: sa.Engine) -> None:
    """Make or renew the views whose tables are there. Raises RecordError where a table has a view's name."""
    with reading(engine) as connection:
        tables = set(sa.inspect(connection).get_table_names())
    views = [REQUESTS_VIEW, *((USERS_VIEW, QUOTAS_VIEW) if tables >= _ACCESS else ())]
    with writing(engine) as connection:
        for view in views:
            connection.exec_driver_sql(view)
