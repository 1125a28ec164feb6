from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tokenweir.bench.arrivals import Concurrency
from tokenweir.bench.corpora import Corpus
from tokenweir.bench.options import DEFAULT_REQUESTS, BenchOptions, resolve
from tokenweir.config import Secret, known_keys
from tokenweir.core.corpus import Sample
from tokenweir.core.errors import ConfigError, InputError, SpecError
from tokenweir.core.scenario import Fixed
from tokenweir.core.spec import Trim
from tokenweir.ports.backend import Identity

BASE: dict[str, object] = {"url": "http://127.0.0.1:8000", "model": "m"}
CORPUS = Corpus("c", (Sample(id="a", prompt="x"),))


def _load(**overrides: object) -> BenchOptions:
    return BenchOptions.load(None, BASE | overrides)


def test_defaults() -> None:
    options = _load()
    assert options.arrivals == (Concurrency(1),)
    assert options.request_limit == DEFAULT_REQUESTS == 100
    assert options.duration_ns is None
    assert (options.warmup_trim, options.cooldown_trim) == (Trim(), Trim())
    assert options.timeout_ns == 60_000_000_000
    assert (options.asked_kind, options.streams, options.full_length, options.repeat) == (
        "chat",
        True,
        False,
        "shuffled",
    )


def test_flags_overrule_the_spec_file_and_those_not_given_do_not(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text('url = "http://h:1"\nmodel = "m"\nseed = 3\nrequests = 5\n')
    options = BenchOptions.load(path, {"seed": 4, "requests": None, "model": None})
    assert (options.seed, options.requests, options.model) == (4, 5, "m")


def test_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    toml, yaml = tmp_path / "s.toml", tmp_path / "s.yaml"
    toml.write_text(
        'url = "http://h:1"\narrival = ["concurrency=1", "concurrency=8"]\nwarmup = 32\nduration = "1m"\n'
        'slo = {ttft = "200ms"}\nlabel = {a = "b"}\nheader = ["x-a=1"]\nscenario = "D(8,4)"\nkey = "env:K"\n'
    )
    yaml.write_text(
        "url: http://h:1\narrival: concurrency=1,8\nwarmup: '32'\nduration: 60s\nslo: ttft=200ms\n"
        "label: [a=b]\nheader: {x-a: '1'}\nscenario: D(8, 4)\nkey: env:K\n"
    )
    first, second = BenchOptions.load(toml), BenchOptions.load(yaml)
    identity = Identity(model="m")
    assert resolve(first, corpus=CORPUS, identity=identity) == resolve(
        second, corpus=CORPUS, identity=identity
    )
    assert first.lengths == Fixed(8, 4)
    assert first.label == second.label == {"a": "b"}
    assert first.header == second.header == {"x-a": "1"}
    assert first.key == Secret("env:K")
    assert first.request_limit is None


def test_options_come_from_nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weir.toml").write_text("seed = 99\n")
    monkeypatch.setenv("WEIR_SEED", "98")
    assert _load().seed == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"duration": 5}, "--duration 5 has no unit; write 5s, 5ms or 5m"),
        ({"duration": "0s"}, "leaves no time"),
        ({"timeout": "60"}, "--timeout 60 has no unit; write 60s, 60ms or 60m"),
        ({"timeout": "0s"}, "lets no request finish"),
        ({"warmup": "5x"}, "--warmup 5x has the unknown unit 'x'"),
        ({"requezts": 5}, "did you mean 'requests'?"),
        ({"failures-as-infinite": True}, "did you mean 'failures_as_infinite'?"),
        ({"requests": 0}, "requests"),
        ({"requests": "many"}, "requests"),
        ({"url": "127.0.0.1:8000"}, "write http://HOST:PORT"),
        ({"url": "http://"}, "write http://HOST:PORT"),
        ({"url": "http://[::1"}, "write http://HOST:PORT"),
        ({"backend": "vllm"}, "backend"),
        ({"arrival": "concurrenzy=1"}, "did you mean concurrency?"),
        ({"scenario": "D(5)"}, "is no scenario"),
        ({"scenario": "I(1,2,3)"}, "not supported yet"),
        ({"scenario": "D(8,4)", "kind": "embedding"}, "embeddings take E(n)"),
        ({"scenario": "E(8)", "kind": "chat"}, "E(n) is for --kind embedding"),
        ({"scenario": "D(8,4)", "max_tokens": 9}, "both set the output length"),
        ({"requests": 30, "warmup": "20", "cooldown": "10"}, "leave none of 30"),
        ({"warmup": "100req"}, "leave none of 100"),
        ({"duration": "5s", "warmup": "3s", "cooldown": "2s"}, "measure for longer"),
        ({"slo": "tfft=1s"}, "did you mean ttft?"),
        ({"key": "sk-123"}, "env:NAME"),
        ({"label": ["x"]}, "'x' is no name=value"),
        ({"seed": 2**53}, "seed"),
        ({"seed": -1}, "seed"),
        ({"top_p": 0}, "top_p"),
        ({"temperature": "nan"}, "temperature"),
        ({"frequency_penalty": "inf"}, "no number to sample with"),
    ],
)
def test_bad_options_say_what_is_wrong(overrides: Mapping[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        _load(**overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_secret_is_never_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        _load(key="sk-123")
    assert "sk-123" not in str(caught.value)


def test_a_trace_sets_the_lengths_and_the_number(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 1, "input_length": 5}')
    assert _load(arrival=f"trace={path}").request_limit is None
    with pytest.raises(SpecError, match="brings its own lengths"):
        _load(arrival=f"trace={path}", scenario="D(8,4)")


@pytest.mark.parametrize(
    ("overrides", "full"),
    [
        ({"scenario": "D(8,4)", "backend": "sglang"}, True),
        ({"scenario": "D(8,4)", "backend": "openai"}, False),
        ({"scenario": "D(8,4)", "backend": "sim", "ignore_eos": False}, False),
        ({"scenario": "E(8)", "backend": "sim"}, False),
        ({"ignore_eos": True}, True),
    ],
)
def test_answers_run_to_full_length_where_it_makes_sense(overrides: Mapping[str, object], full: bool) -> None:  # noqa: FBT001
    options = _load(**overrides)
    assert options.full_length is full
    assert options.sampling.ignore_eos is full


def test_embedding_scenario_asks_embeddings_unstreamed() -> None:
    options = _load(scenario="E(8)")
    assert (options.asked_kind, options.streams) == ("embedding", False)


def test_resolved_spec_holds_everything_that_counts() -> None:
    options = _load(
        url="http://u:p@h:1",
        arrival="poisson=600/min,20/s",
        duration="90s",
        warmup="5s",
        slo="ttft=200ms",
        temperature=0.5,
        unique_prompts=True,
        shuffle=False,
        label={"a": "b"},
        header={"x": "y"},
        out="/somewhere",
    )
    identity = Identity(model="served", commit="abcdef123", flags={"tp": 2, "api_key": "k"})
    spec = resolve(options, corpus=CORPUS, identity=identity)
    assert spec.to_json() == {
        "subject": {
            "backend": "openai",
            "url": "http://h:1",
            "model": "m",
            "engine_flags": {"tp": 2},
            "commit": "abcdef123",
            "revision": None,
        },
        "workload": {
            "kind": "chat",
            "stream": True,
            "corpus": {"name": "c", "hash": CORPUS.hash},
            "scenario": None,
            "loads": ["poisson=10/s", "poisson=20/s"],
            "requests": None,
            "duration_ns": 90_000_000_000,
            "sampling": {"temperature": 0.5},
            "seed": 0,
            "ignore_eos": False,
            "repeat": "ordered+unique",
        },
        "measurement": {
            "warmup": "5s",
            "cooldown": "0s",
            "timeout_ns": 60_000_000_000,
            "slo": {"ttft": 200_000_000},
            "failures_as_infinite": False,
            "tokens": "server",
        },
    }


def test_labels_headers_keys_and_paths_move_no_hash() -> None:
    plain = resolve(_load(), corpus=CORPUS)
    dressed = resolve(
        _load(label={"a": "b"}, header={"x": "y"}, key="env:K", out="/x", workers=3, chunks="never"),
        corpus=CORPUS,
    )
    assert plain.config_hash == dressed.config_hash


def test_identity_fills_what_was_not_stated_and_must_agree() -> None:
    options = BenchOptions.load(None, {"url": "http://h:1", "commit": "abcdef"})
    spec = resolve(options, corpus=CORPUS, identity=Identity(model="served", commit="abcdef123"))
    assert (spec.subject.model, spec.subject.commit) == ("served", "abcdef123")
    stated = resolve(options, corpus=CORPUS, identity=Identity(model="served"))
    assert stated.subject.commit == "abcdef"
    with pytest.raises(SpecError, match="not what the endpoint says"):
        resolve(options, corpus=CORPUS, identity=Identity(model="served", commit="ffffff"))
    with pytest.raises(SpecError, match="give --model"):
        resolve(options, corpus=CORPUS)


def test_every_option_says_what_it_is() -> None:
    assert all(BenchOptions.model_fields[key].description for key in known_keys(BenchOptions))
