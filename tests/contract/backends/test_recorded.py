from __future__ import annotations

import re

import msgspec
import pytest
from tests.contract.backends.wire import (
    ALL,
    ANSWERS,
    ENGINES,
    ERRORS,
    KINDS,
    STREAMS,
    Entry,
    drive,
    entries,
    entry_id,
)

from tokenweir.backends.openai import models
from tokenweir.backends.registry import backend
from tokenweir.backends.sglang import SglangBackend
from tokenweir.core.errors import RefusedError, UpstreamError
from tokenweir.core.events import Completed, Started, Token, Usage, text
from tokenweir.ports.backend import HttpResponse
from tokenweir.ports.timing import rows

TEXTS = {
    "sglang-generate_stream": " os os os",
    "sglang-generate_whole_logprobs": " os os",
    "sglang-generate_whole": " os os os os os",
    "sglang-completion_stream": " os os os",
    "sglang-chat_stream": "\n\n\n",
    "sglang_jax-generate_stream": " os os os os",
    "sglang_jax-generate_whole_logprobs": " os os",
    "sglang_jax-completion_stream": " os os os os",
    "sglang_jax-chat_stream": "\n\n\n\n",
    "mlx_lm-completion_stream": "B`)��\x07;an\r",
    "mlx_lm-completion_whole": "B`)��\x07;an\r",
    "mlx_lm-chat_whole": "=`)��\fBken\x0e",
}
DOORS = {"flush": "/flush_cache", "start_profile": "/start_profile", "stop_profile": "/stop_profile"}


def find(engine: str, name: str) -> Entry:
    return next(entry for entry in entries(engine) if entry.name == name)


def probe(engine: str, path: str) -> HttpResponse:
    recorded = [entry for entry in entries(engine) if entry.path == path]
    return recorded[0].response if recorded else HttpResponse(status=404, body=b'{"detail":"Not Found"}')


@pytest.mark.parametrize("entry", ANSWERS, ids=entry_id)
def test_every_recorded_answer_decodes_to_a_whole_one(entry: Entry) -> None:
    events = [event for _, event in drive(entry.decoder(), [entry.content])]
    assert isinstance(events[0], Started)
    assert events[0].upstream_id
    assert isinstance(events[-1], Completed)
    assert events[-1].finish_reason == "length"
    assert [event.seq for event in events] == list(range(len(events)))
    if entry_id(entry) in TEXTS:
        assert text(events) == TEXTS[entry_id(entry)]
    usages = [event for event in events if isinstance(event, Usage)]
    tokens = [event for event in events if isinstance(event, Token)]
    assert tokens
    if entry.name == "chat_stream_no_usage":
        assert not usages
        return
    (usage,) = usages
    assert isinstance(entry.body, dict)
    sampling = entry.body.get("sampling_params")
    asked = sampling if isinstance(sampling, dict) else entry.body
    assert usage.output_tokens == asked.get("max_tokens", asked.get("max_new_tokens"))
    assert usage.source == "server"
    if entry.path == "/generate":
        assert sum(token.count or 0 for token in tokens) == usage.output_tokens
        assert "e2el" in usage.timings_ns


@pytest.mark.parametrize("entry", STREAMS, ids=entry_id)
def test_a_chunk_without_text_is_no_token(entry: Entry) -> None:
    events = drive(entry.decoder(), [entry.content])
    assert all(event.text for _, event in events if isinstance(event, Token))


@pytest.mark.parametrize("entry", ANSWERS, ids=entry_id)
def test_the_shortcut_agrees_with_the_events(entry: Entry) -> None:
    assert entry.decoder().timing(entry.content) == rows(drive(entry.decoder(), [entry.content]))


def test_sglang_generate_tells_counts_and_timings() -> None:
    entry = find("sglang", "generate_stream")
    events = drive(entry.decoder(), [entry.content])
    assert [event.count for _, event in events if isinstance(event, Token)] == [1, 1, 1]
    (usage,) = [event for _, event in events if isinstance(event, Usage)]
    assert (usage.input_tokens, usage.cached_tokens, usage.recompiles) == (2, 0, None)
    assert usage.timings_ns == {"queue_time": 291555, "ttft": 119315222, "e2el": 126418096}


def test_sglang_jax_generate_tells_recompiles() -> None:
    streamed = find("sglang_jax", "generate_stream")
    whole = find("sglang_jax", "generate_whole_logprobs")
    found = [
        next(event for _, event in drive(entry.decoder(), [entry.content]) if isinstance(event, Usage))
        for entry in (streamed, whole)
    ]
    assert [usage.recompiles for usage in found] == [0, 2]
    assert found[1].timings_ns == {"e2el": 4883780479}


@pytest.mark.parametrize("entry", ERRORS, ids=entry_id)
def test_every_recorded_error_keeps_the_engine_s_words(entry: Entry) -> None:
    error = backend(ENGINES[entry.engine]).error(entry.response)
    assert isinstance(error, RefusedError if entry.status in {401, 403, 404} else UpstreamError)
    assert error.status == entry.status
    assert "\n" not in str(error)
    told = entry.content.decode()
    if told.startswith("{"):
        body = msgspec.json.decode(told, type=dict[str, msgspec.Raw])
        assert "{" not in str(error).partition(":")[0]
        assert set(body) & {"error", "message", "detail"}
    words = str(error).partition(": ")[2].partition(";")[0].split()
    assert words
    assert words[0] in told


@pytest.mark.parametrize("entry", ERRORS, ids=entry_id)
def test_an_error_body_inside_an_answer_fails_it(entry: Entry) -> None:
    if entry.path not in KINDS:
        return
    for decoder in (entry.decoder(), backend("openai").decoder(entry.request)):
        ((_, event),) = drive(decoder, [entry.content])
        assert event.seq == 0
        assert not isinstance(event, Completed)


def test_sglang_s_identity() -> None:
    known = backend("sglang")
    identity = known.identity([probe("sglang", request.path) for request in known.identity_probes()])
    assert identity.model == "models/qhd128"
    assert identity.model_path == "models/qhd128"
    assert identity.max_model_tokens == 1024
    assert identity.revision is None
    assert identity.commit is None
    assert identity.flags["mem_fraction_static"] == 0.2
    assert "version" in identity.missing  # The recording of the server information is cut before it.
    assert {"commit", "revision"} <= identity.missing.keys()


def test_sglang_jax_s_identity_by_the_old_paths() -> None:
    known = backend("sglang_jax")
    identity = known.identity([probe("sglang_jax", request.path) for request in known.identity_probes()])
    assert identity.model == "models/qhd128"
    assert identity.flags["page_size"] == 1
    assert identity.max_model_tokens == 1024
    assert "'models/qhd128'" in identity.missing["revision"]


def test_mlx_lm_s_identity() -> None:
    known = backend("openai")
    identity = known.identity([probe("mlx_lm", request.path) for request in known.identity_probes()])
    assert identity.model == "/tmp/models/tiny-llama"  # noqa: S108
    assert identity.missing.keys() == {"version", "commit", "revision"}


@pytest.mark.parametrize("kind", ["openai", "tokenweir"])
def test_our_runtime_s_identity_leaves_nothing_out(kind: str) -> None:
    known = backend(kind)
    identity = known.identity([probe("tokenweir", request.path) for request in known.identity_probes()])
    assert (identity.version, identity.model, identity.max_model_tokens) == ("0.1.0", "tiny-llama", 2048)
    assert re.fullmatch(r"[0-9a-f]{40}", identity.commit or "")
    assert re.fullmatch(r"[0-9a-f]{64}", identity.revision or "")
    assert identity.missing == {}
    if kind == "tokenweir":
        assert identity.flags == {
            "engine": "mlx",
            "engine_version": "0.32.2",
            "weight_bits": None,
            "draft": None,
            "context_tokens": 2048,
        }


def test_our_runtime_s_identity_without_answers_is_unknown() -> None:
    nothing = HttpResponse(status=0)
    identity = backend("tokenweir").identity([nothing, nothing, nothing])
    assert identity.flags == {}
    assert identity.missing.keys() == {"version", "commit", "revision", "model"}


@pytest.mark.parametrize("engine", ENGINES)
def test_health_asks_a_recorded_path(engine: str) -> None:
    request = backend(ENGINES[engine]).health()
    assert (request.method, request.path, 200) in {
        (entry.method, entry.path, entry.status) for entry in entries(engine)
    }


@pytest.mark.parametrize("engine", ["sglang", "sglang_jax"])
@pytest.mark.parametrize("action", DOORS)
def test_side_doors_are_the_recorded_ones(engine: str, action: str) -> None:
    known = backend(engine)
    assert isinstance(known, SglangBackend)
    request = known.action(action, {})
    assert request is not None
    (entry,) = [entry for entry in entries(engine) if entry.path == request.path]
    assert request.method == entry.method
    assert entry.status == 200 or known.forgives(action, entry.status)


@pytest.mark.parametrize("engine", ENGINES)
def test_models_are_listed(engine: str) -> None:
    (card,) = models(find(engine, "models").response)
    assert card.id.startswith(("models/", "/tmp/models/", "tiny-llama"))  # noqa: S108


@pytest.mark.parametrize(
    "entry", [entry for entry in ANSWERS if entry.path != "/v1/embeddings"], ids=entry_id
)
def test_requests_go_to_the_recorded_paths(entry: Entry) -> None:
    request = backend(ENGINES[entry.engine]).encode(entry.request)
    assert (request.method, request.path) == (entry.method, entry.path)
    ours = msgspec.json.decode(request.body, type=dict[str, msgspec.Raw])
    assert isinstance(entry.body, dict)
    assert ours.keys() <= {*entry.body.keys(), "stream", "sampling_params", "stream_options", "model"}


def test_nothing_recorded_is_left_out() -> None:
    side = {
        *DOORS.values(),
        "/abort_request",
        "/profile_status",
        "/metrics",
        "/metrics/",
        "/ready",
        "/v1/loads",
        "/v1/responses",
    }
    side |= {"/health", "/health_generate", "/v1/models", "/version", "/get_load"}
    side |= {request.path for engine in ENGINES.values() for request in backend(engine).identity_probes()}
    assert {entry.path for entry in ALL} <= KINDS.keys() | side
