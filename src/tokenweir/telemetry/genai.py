"""OpenTelemetry's names, in one place: of spans, and of fields in logs.

Source: OpenTelemetry semantic conventions 1.37, ``gen_ai.*`` (experimental) and ``http.*``.
"""

from __future__ import annotations

from typing import Final

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
METHOD: Final = "http.request.method"
ROUTE: Final = "http.route"
STATUS: Final = "http.response.status_code"
ERROR: Final = "error.type"

# What the conventions have no name for.
ENDPOINT: Final = "weir.endpoint"
REQUEST_ID: Final = "weir.request_id"
ATTEMPT: Final = "weir.attempt"
FIRST_TOKEN: Final = "weir.time_to_first_token"  # noqa: S105 - seconds, no secret

OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""The operation's name by the endpoint's route."""
