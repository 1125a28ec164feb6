"""The dashboard of the parts: what fails where, endpoints, processes."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import Board, Panel

BOARD: Final = Board(
    name="components",
    title="component health",
    variables=(("job", 'label_values(up{job=~"weir-.+"}, job)'),),
    rows=(
        (
            Panel(
                title="Up",
                about="1: it answers Prometheus.",
                kind="bargauge",
                most=1,
                queries=(('up{job=~"$job"}', "{{job}} {{instance}}"),),
            ),
            Panel(
                title="Errors by component",
                about="Errors a second in the log, by the part of the program that wrote them.",
                unit="cps",
                queries=(
                    (
                        'sum by (component) (rate(weir_log_lines_total{job=~"$job", level="error"}[5m]))',
                        "{{component}}",
                    ),
                ),
            ),
            Panel(
                title="Warnings by component",
                about="Warnings a second in the log: stores that are away, endpoints that are down.",
                unit="cps",
                queries=(
                    (
                        'sum by (component) (rate(weir_log_lines_total{job=~"$job", level="warning"}[5m]))',
                        "{{component}}",
                    ),
                ),
            ),
        ),
        (
            Panel(
                title="Errors by code",
                about="Requests a second that ended in an error, by its code.",
                unit="reqps",
                queries=(('sum by (code) (rate(weir_gateway_errors_total{job=~"$job"}[5m]))', "{{code}}"),),
            ),
            Panel(
                title="Endpoints: failures",
                about="Share of the requests at an endpoint that failed.",
                unit="percentunit",
                queries=(
                    (
                        (
                            'sum by (endpoint) (rate(weir_gateway_endpoint_requests_total{outcome="failed"}[5m]))'
                            " / sum by (endpoint) (rate(weir_gateway_endpoint_requests_total[5m]))"
                        ),
                        "{{endpoint}}",
                    ),
                ),
            ),
            Panel(
                title="Endpoints: breakers",
                about="0 closed, 1 half open, 2 open: left alone.",
                most=2,
                queries=(("max by (endpoint) (weir_gateway_endpoint_breaker)", "{{endpoint}}"),),
            ),
            Panel(
                title="Endpoints: health",
                about="1: the last health check succeeded, in every process that asks it.",
                most=1,
                queries=(("min by (endpoint) (weir_gateway_endpoint_up)", "{{endpoint}}"),),
            ),
        ),
        (
            Panel(
                title="Workers",
                about="Requests in work, leases that are renewed, and jobs given up since the start.",
                queries=(
                    ("sum by (job) (weir_worker_in_flight)", "{{job}} in work"),
                    ("sum by (job) (weir_worker_leases)", "{{job}} leases"),
                    ("sum by (job) (weir_worker_buried)", "{{job}} given up"),
                ),
            ),
            Panel(
                title="Collectors",
                about="Ends that wait to be settled, and how long the last one took.",
                queries=(
                    ("sum by (job) (weir_collector_waiting)", "{{job}} waiting"),
                    ("max by (job) (weir_collector_settle_lag_seconds)", "{{job}} lag in seconds"),
                ),
            ),
            Panel(
                title="Refused by TLS",
                about="Clients a second that a listener refused, by reason.",
                unit="cps",
                queries=(("sum by (job, reason) (rate(weir_tls_refused_total[5m]))", "{{job}} {{reason}}"),),
            ),
        ),
        (
            Panel(
                title="CPU",
                about="Cores that a process uses.",
                queries=(('rate(process_cpu_seconds_total{job=~"$job"}[5m])', "{{job}} {{instance}}"),),
            ),
            Panel(
                title="Memory",
                about="Resident memory.",
                unit="bytes",
                queries=(('process_resident_memory_bytes{job=~"$job"}', "{{job}} {{instance}}"),),
            ),
            Panel(
                title="Descriptors",
                about="Share of those that a process may have.",
                unit="percentunit",
                most=1,
                queries=(
                    (
                        'process_open_fds{job=~"$job"} / process_max_fds{job=~"$job"}',
                        "{{job}} {{instance}}",
                    ),
                ),
            ),
            Panel(
                title="Restarts",
                about="How often it has begun anew in an hour.",
                queries=(('changes(process_start_time_seconds{job=~"$job"}[1h])', "{{job}} {{instance}}"),),
            ),
        ),
    ),
)
