"""The dashboard of limits: who has used how much."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import Board, Panel

BOARD: Final = Board(
    name="quotas",
    title="user quota utilisation",
    variables=(
        ("scope", "label_values(weir_quota_used_ratio, scope)"),
        ("window", "label_values(weir_quota_used_ratio, window)"),
    ),
    rows=(
        (
            Panel(
                title="Most used limits",
                about="How much of a limit is used or set aside; 1 is all. Of those asked for in windows that last.",
                unit="percentunit",
                kind="bargauge",
                most=1,
                queries=(
                    (
                        (
                            "topk(20, max by (scope, subject, unit, window, model)"
                            ' (weir_quota_used_ratio{scope=~"$scope", window=~"$window"}))'
                        ),
                        "{{scope}} {{subject}} {{unit}}/{{window}} {{model}}",
                    ),
                ),
            ),
            Panel(
                title="Users above 80 %",
                about="How many subjects have used more than four fifths of a limit, by unit and window.",
                queries=(
                    (
                        (
                            "count by (scope, unit, window) (max by (scope, subject, unit, window, model)"
                            ' (weir_quota_used_ratio{scope=~"$scope", window=~"$window"}) > 0.8)'
                        ),
                        "{{scope}} {{unit}}/{{window}}",
                    ),
                ),
            ),
        ),
        (
            Panel(
                title="Use over time",
                about="The ten most used limits.",
                unit="percentunit",
                most=1,
                queries=(
                    (
                        (
                            "topk(10, max by (scope, subject, unit, window, model)"
                            ' (weir_quota_used_ratio{scope=~"$scope", window=~"$window"}))'
                        ),
                        "{{scope}} {{subject}} {{unit}}/{{window}} {{model}}",
                    ),
                ),
            ),
            Panel(
                title="Refused for quota",
                about="Requests a second that did not fit into a limit.",
                unit="reqps",
                queries=(
                    ('sum(rate(weir_gateway_errors_total{code="rate_limit_exceeded"}[5m]))', "refused"),
                ),
            ),
        ),
        (
            Panel(
                title="All limits",
                about="Every limit that was asked for in a window that lasts.",
                unit="percentunit",
                kind="table",
                queries=(
                    (
                        (
                            "sort_desc(max by (scope, subject, unit, window, model)"
                            ' (weir_quota_used_ratio{scope=~"$scope", window=~"$window"}))'
                        ),
                        "",
                    ),
                ),
            ),
            Panel(
                title="Charged",
                about="Tokens a second, by model.",
                unit="cps",
                queries=(
                    (
                        'sum by (model) (rate(weir_settled_tokens_total{kind=~"input|output"}[5m]))',
                        "{{model}}",
                    ),
                ),
            ),
        ),
    ),
)
