"""Record fixtures from a real server: ``python tests/contract/backends/record.py URL PLAN DIRECTORY``.

PLAN is a JSON file: ``{"engine", "version", "note", "requests": [{"name", "method", "path", "body"}]}``. Each
answer's body goes to its own file, so that line ends and bytes survive; ``manifest.json`` holds the rest.
"""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SUFFIXES = {"text/event-stream": ".sse", "application/json": ".json"}


def record(url: str, plan: Path, directory: Path) -> None:
    """Send every request of the plan and write what comes back."""
    told: dict[str, Any] = json.loads(plan.read_text())
    entries: list[dict[str, Any]] = []
    directory.mkdir(parents=True, exist_ok=True)
    for asked in told["requests"]:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        body = asked.get("body")
        text = body if isinstance(body, str) or body is None else json.dumps(body)
        connection.request(asked["method"], asked["path"], text, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        kind = (answer.getheader("content-type") or "").partition(";")[0]
        file = asked["name"] + SUFFIXES.get(kind, ".txt")
        (directory / file).write_bytes(content)
        entries.append({**asked, "status": answer.status, "content_type": kind, "file": file})
    manifest = {**told, "entries": entries}
    del manifest["requests"]
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    record(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
