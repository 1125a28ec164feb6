"""Many requests over one WebSocket: `pip install websockets`, then set WEIR_URL and WEIR_KEY."""

from __future__ import annotations

import json
import os

from websockets.sync.client import connect

url = os.environ.get("WEIR_URL", "http://127.0.0.1:8080").replace("http", "ws", 1)
model = os.environ.get("WEIR_MODEL", "good")
headers = {"authorization": f"Bearer {os.environ['WEIR_KEY']}"}

with connect(f"{url}/v1/ws", additional_headers=headers) as socket:
    for number in range(3):
        question = {"role": "user", "content": f"What is {number} + {number}?"}
        body = {"model": model, "mode": "stream", "max_tokens": 10, "messages": [question]}
        socket.send(json.dumps({"type": "submit", "ref": str(number), "body": body}))

    answers: dict[str, str] = {}
    open_requests = 3
    while open_requests:
        message = json.loads(socket.recv())
        match message["type"]:
            case "submitted":
                answers[message["request_id"]] = ""
            case "event":
                answers[message["request_id"]] += message["event"].get("text", "")
            case "end":
                open_requests -= 1
                print(message["request_id"], repr(answers[message["request_id"]]))
            case "error":
                raise SystemExit(message["error"]["message"])
            case _:
                pass  # ready, heartbeat
