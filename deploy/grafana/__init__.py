"""The Grafana dashboards, written down once: ``python -m deploy.grafana`` makes their JSON from this."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from deploy.grafana import components, models, quotas, system
from deploy.grafana.panels import Board, Panel

BOARDS: Final = (system.BOARD, components.BOARD, quotas.BOARD, models.BOARD)
FOLDER: Final = Path(__file__).parent / "dashboards"
_SOURCE: Final = {"type": "prometheus", "uid": "weir-prometheus"}
_WIDE: Final = 24
_HIGH: Final = 8


class Placed(msgspec.Struct, frozen=True):
    """Where a panel lies, in Grafana's grid."""

    x: int
    y: int
    width: int


def render(board: Board) -> str:
    """Return a dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    for row, line in enumerate(board.rows):
        width = _WIDE // len(line)
        for column, panel in enumerate(line):
            panels.append(_panel(panel, len(panels) + 1, Placed(column * width, row * _HIGH, width)))
    made = {
        "uid": f"weir-{board.name}",
        "title": f"Tokenweir: {board.title}",
        "tags": ["tokenweir"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [{"type": "dashboards", "tags": ["tokenweir"], "asDropdown": True, "title": "Tokenweir"}],
        "templating": {"list": [_variable(name, query) for name, query in board.variables]},
        "panels": panels,
    }
    return json.dumps(made, indent=1) + "\n"


def _panel(panel: Panel, number: int, at: Placed) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": {"x": at.x, "y": at.y, "w": at.width, "h": _HIGH},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": _SOURCE,
                "expr": query,
                "legendFormat": legend,
                "instant": panel.kind != "timeseries",
                "range": panel.kind == "timeseries",
                "format": "table" if panel.kind == "table" else "time_series",
            }
            for position, (query, legend) in enumerate(panel.queries)
        ],
    }


def _options(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case "timeseries":
            return {
                "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "table":
            return {"showHeader": True}
        case _:
            return {
                "reduceOptions": {"calcs": ["lastNotNull"]},
                "displayMode": "lcd",
                "orientation": "horizontal",
            }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
    }


def queries(boards: Sequence[Board] = BOARDS) -> list[str]:
    """Return every expression of every panel."""
    return [query for board in boards for line in board.rows for panel in line for query, _ in panel.queries]


def write(folder: Path = FOLDER) -> list[Path]:
    """Write every dashboard, and return the files."""
    made: list[Path] = []
    for board in BOARDS:
        path = folder / f"{board.name}.json"
        path.write_text(render(board), encoding="utf-8")
        made.append(path)
    return made
