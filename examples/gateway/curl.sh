#!/bin/sh
# Ask a gateway with curl: at once, streamed, and queued.   WEIR_URL=http://127.0.0.1:8080 WEIR_KEY=weir_… sh curl.sh
set -eu
: "${WEIR_URL:=http://127.0.0.1:8080}" "${WEIR_KEY:?give the key that weir up printed}" "${WEIR_MODEL:=good}"

ask() { # ask PATH BODY [OPTION…]
    path=$1 body=$2
    shift 2
    curl --silent --show-error --fail-with-body "$WEIR_URL$path" \
        --header "authorization: Bearer $WEIR_KEY" --header "content-type: application/json" --data "$body" "$@"
    echo
}
question='[{"role": "user", "content": "What is 38 + 47?"}]'

echo "== at once"
ask /v1/chat/completions "{\"model\": \"$WEIR_MODEL\", \"messages\": $question, \"max_tokens\": 20}"

echo "== streamed"
ask /v1/chat/completions "{\"model\": \"$WEIR_MODEL\", \"messages\": $question, \"max_tokens\": 20, \"stream\": true}" --no-buffer

echo "== queued: accepted first, answered later; the idempotency key makes it safe to send twice"
taken=$(ask /v1/requests "{\"model\": \"$WEIR_MODEL\", \"messages\": $question, \"max_tokens\": 20, \"mode\": \"stream\"}" \
    --header "idempotency-key: curl-$$")
request=$(printf %s "$taken" | sed 's/.*"request_id":"\([^"]*\)".*/\1/')
echo "$request"

echo "== its events, from the third on"
curl --silent --show-error --fail-with-body --no-buffer "$WEIR_URL/v1/requests/$request/events" \
    --header "authorization: Bearer $WEIR_KEY" --header "last-event-id: 1"

echo "== and how it stands"
curl --silent --show-error --fail-with-body "$WEIR_URL/v1/requests/$request" --header "authorization: Bearer $WEIR_KEY"
echo
