"""Have requests queued, streamed and resumed with `tokenweir.client`; set WEIR_URL and WEIR_KEY."""

from __future__ import annotations

import os

from tokenweir.client import Client
from tokenweir.core.events import Token

URL = os.environ.get("WEIR_URL", "http://127.0.0.1:8080")
MODEL = os.environ.get("WEIR_MODEL", "good")


def ask(question: str, mode: str) -> dict[str, object]:
    """Return the body of a request."""
    return {
        "model": MODEL,
        "mode": mode,
        "max_tokens": 20,
        "messages": [{"role": "user", "content": question}],
    }


with Client(URL, os.environ["WEIR_KEY"]) as client:
    # It is on disk once this returns, and ends whatever crashes.
    request = client.submit(ask("What is 38 + 47?", "stream"))
    print(request.request_id)

    # Events come once each and in order, over as many connections as it takes.
    for event in client.stream(request):
        if isinstance(event, Token):
            print(event.text, end="", flush=True)
    print()

    # Another program, or this one after a crash, reads on from any event.
    print([type(event).__name__ for event in client.stream(request, after=1)][-1])

    # Many at once; run again with the same key it asks nothing twice.
    questions = [f"What is {number} + {number}?" for number in range(4)]
    for item in client.batch((ask(question, "single") for question in questions), key="weir-example"):
        print(questions[item.index], item.text if item.error is None else item.error)
