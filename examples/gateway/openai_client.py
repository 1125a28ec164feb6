"""Ask a gateway with the official client: `pip install openai`, then set WEIR_URL and WEIR_KEY."""

from __future__ import annotations

import os

from openai import OpenAI, RateLimitError

client = OpenAI(
    base_url=os.environ.get("WEIR_URL", "http://127.0.0.1:8080") + "/v1", api_key=os.environ["WEIR_KEY"]
)
model = os.environ.get("WEIR_MODEL", "good")

print("models:", ", ".join(each.id for each in client.models.list()))

answer = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "What is 38 + 47?"}], max_tokens=20
)
print("answer:", answer.choices[0].message.content)

print("stream: ", end="")
with client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "What is 12 + 30?"}], max_tokens=20, stream=True
) as stream:
    for chunk in stream:
        print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
print()

try:
    # The same key and body give the same answer: nothing is asked or charged twice.
    told = [
        client.completions.create(
            model=model, prompt="One, two,", max_tokens=5, extra_headers={"idempotency-key": "openai-example"}
        )
        for _ in range(2)
    ]
    print("told twice:", told[0].id == told[1].id)
except RateLimitError as error:
    print("limited:", error.message)
