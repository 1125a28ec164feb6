"""The dashboard of all of it: what comes in, how long it takes, what waits."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import Board, Panel, quantiles

_ASKED: Final = 'route=~"/v1/chat/completions|/v1/completions|/v1/embeddings|/v1/responses"'

BOARD: Final = Board(
    name="system",
    title="system overview",
    rows=(
        (
            Panel(
                title="Requests",
                about="Answers a second, by route.",
                unit="reqps",
                queries=(("sum by (route) (rate(weir_gateway_requests_total[5m]))", "{{route}}"),),
            ),
            Panel(
                title="Failures",
                about="Share of answers that failed on our side (5xx), and that were refused (4xx).",
                unit="percentunit",
                queries=(
                    (
                        (
                            '(sum(rate(weir_gateway_requests_total{status=~"5.."}[5m])) or vector(0))'
                            " / sum(rate(weir_gateway_requests_total[5m]))"
                        ),
                        "failed",
                    ),
                    (
                        (
                            '(sum(rate(weir_gateway_requests_total{status=~"4.."}[5m])) or vector(0))'
                            " / sum(rate(weir_gateway_requests_total[5m]))"
                        ),
                        "refused",
                    ),
                ),
            ),
            Panel(
                title="Tokens",
                about="Tokens a second that were charged, by kind.",
                unit="cps",
                queries=(("sum by (kind) (rate(weir_settled_tokens_total[5m]))", "{{kind}}"),),
            ),
        ),
        (
            Panel(
                title="Time to the first token",
                about="Of streamed answers, from the request's body; queued: from asking the endpoint.",
                unit="s",
                queries=quantiles("weir_gateway_ttft_seconds", "path"),
            ),
            Panel(
                title="Duration",
                about="From a request's head to its answer's end.",
                unit="s",
                queries=quantiles("weir_gateway_request_duration_seconds", where=_ASKED),
            ),
            Panel(
                title="Open",
                about="Direct requests, event streams and WebSockets that are open.",
                queries=(
                    ("sum(weir_gateway_in_flight)", "direct"),
                    ("sum(weir_gateway_event_streams)", "event streams"),
                    ("sum(weir_gateway_websockets)", "WebSockets"),
                    ("sum(weir_worker_in_flight)", "queued, in work"),
                ),
            ),
        ),
        (
            Panel(
                title="Queue",
                about="Jobs that wait, that workers have, and that were given up.",
                queries=(
                    ("max(weir_queue_length)", "waiting"),
                    ("max(weir_queue_unacknowledged)", "in work"),
                    ("max(weir_queue_dead_letters)", "dead"),
                ),
            ),
            Panel(
                title="Age of the queue",
                about="How long the oldest job has waited.",
                unit="s",
                queries=(("max(weir_queue_oldest_seconds)", "oldest"),),
            ),
            Panel(
                title="Settlement",
                about="From a request's end to its row in the ledger.",
                unit="s",
                queries=quantiles("weir_settle_lag_seconds"),
            ),
            Panel(
                title="Reservations",
                about="Reservations that are open, and ended requests that are not in the ledger yet.",
                queries=(
                    ("max(weir_gateway_reservations_open)", "open"),
                    ("sum(weir_gateway_unsettled)", "unsettled"),
                ),
            ),
        ),
        (
            Panel(
                title="Batches",
                about="Batches that have not ended, and those that some gateway works on, by status.",
                queries=(
                    ("max(weir_batches_open)", "open"),
                    ("sum by (status) (weir_batches)", "{{status}}"),
                ),
            ),
            Panel(
                title="Lines of batches",
                about="Lines a second that ended, by outcome.",
                unit="cps",
                queries=(("sum by (outcome) (rate(weir_batch_lines_total[5m]))", "{{outcome}}"),),
            ),
            Panel(
                title="Batches that ended",
                about="Batches of the last hour, by the status in which they ended.",
                queries=(("sum by (status) (increase(weir_batches_ended_total[1h]))", "{{status}}"),),
            ),
        ),
        (
            Panel(
                title="Brown-out",
                about="Rungs of the ladder that hold, and the worst wait as a multiple of its objective.",
                queries=(
                    ("max(weir_gateway_brownout_rung)", "rung"),
                    ("max(weir_gateway_brownout_pressure)", "pressure"),
                ),
            ),
            Panel(
                title="Degraded",
                about="Requests of which less was made, by what was done.",
                unit="reqps",
                queries=(("sum by (does) (rate(weir_gateway_degraded_total[5m]))", "{{does}}"),),
            ),
            Panel(
                title="Processes",
                about="How many of each answer.",
                queries=(('sum by (job) (up{job=~"weir-.+"})', "{{job}}"),),
            ),
        ),
    ),
)
