"""The dashboard of models: what callers get, and how model servers are."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import Board, Panel, quantiles

BOARD: Final = Board(
    name="models",
    title="model performance",
    variables=(("model", "label_values(weir_settled_requests_total, model)"),),
    rows=(
        (
            Panel(
                title="Time to the first token",
                about="Of streamed answers, as callers of the gateway have it.",
                unit="s",
                queries=quantiles("weir_gateway_ttft_seconds", "model", 'model=~"$model", path="direct"'),
            ),
            Panel(
                title="Time between tokens",
                about="Of streamed answers; a read of several tokens spreads its gap over them.",
                unit="s",
                queries=quantiles("weir_gateway_itl_seconds", "model", 'model=~"$model"'),
            ),
        ),
        (
            Panel(
                title="Output",
                about="Tokens a second that the model has made.",
                unit="cps",
                queries=(
                    (
                        'sum by (model) (rate(weir_settled_tokens_total{model=~"$model", kind="output"}[5m]))',
                        "{{model}}",
                    ),
                ),
            ),
            Panel(
                title="Requests",
                about="Requests a second, by how they ended.",
                unit="reqps",
                queries=(
                    (
                        'sum by (model, ending) (rate(weir_settled_requests_total{model=~"$model"}[5m]))',
                        "{{model}} {{ending}}",
                    ),
                ),
            ),
            Panel(
                title="Input found in a cache",
                about="Share of the input tokens.",
                unit="percentunit",
                most=1,
                queries=(
                    (
                        (
                            'sum by (model) (rate(weir_settled_tokens_total{model=~"$model", kind="cached"}[5m]))'
                            ' / sum by (model) (rate(weir_settled_tokens_total{model=~"$model", kind="input"}[5m]))'
                        ),
                        "{{model}}",
                    ),
                ),
            ),
            Panel(
                title="Charged by estimate",
                about="Share of requests whose endpoint did not say what they took.",
                unit="percentunit",
                most=1,
                queries=(
                    (
                        (
                            "sum by (model)"
                            ' (rate(weir_settled_requests_total{model=~"$model", source="estimated"}[5m]))'
                            ' / sum by (model) (rate(weir_settled_requests_total{model=~"$model"}[5m]))'
                        ),
                        "{{model}}",
                    ),
                ),
            ),
        ),
        (
            Panel(
                title="Endpoints: in flight",
                about="Requests at each endpoint.",
                queries=(("sum by (endpoint) (weir_gateway_endpoint_in_flight)", "{{endpoint}}"),),
            ),
            Panel(
                title="Model servers: batch",
                about="Sequences decoded in one step, of weir runtime.",
                queries=quantiles("weir_runtime_batch_sequences"),
            ),
            Panel(
                title="Model servers: step",
                about="Time of one step on the device, of weir runtime.",
                unit="s",
                queries=quantiles("weir_runtime_step_seconds"),
            ),
            Panel(
                title="Model servers: queue",
                about="Requests that wait, and that were admitted, of weir runtime.",
                queries=(
                    ("sum(weir_runtime_queue_requests)", "waiting"),
                    ("sum(weir_runtime_running_requests)", "admitted"),
                ),
            ),
        ),
        (
            Panel(
                title="Model servers: memory",
                about="By use, of weir runtime.",
                unit="bytes",
                queries=(("sum by (instance, kind) (weir_runtime_memory_bytes)", "{{instance}} {{kind}}"),),
            ),
            Panel(
                title="Model servers: tokens",
                about="Tokens a second of completed requests, of weir runtime.",
                unit="cps",
                queries=(
                    ("sum by (model, kind) (rate(weir_runtime_tokens_total[5m]))", "{{model}} {{kind}}"),
                ),
            ),
            Panel(
                title="Model servers: load taken away",
                about="0 nothing, 1 smaller batches, 2 shedding, 3 refusing.",
                most=3,
                queries=(("max by (instance) (weir_runtime_degraded_step)", "{{instance}}"),),
            ),
        ),
    ),
)
