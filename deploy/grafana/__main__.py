"""``python -m deploy.grafana``: write the dashboards."""

from __future__ import annotations

import sys

from deploy.grafana import write

if __name__ == "__main__":
    for path in write():
        sys.stdout.write(f"{path}\n")
