from __future__ import annotations

import hashlib
import json
import math
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import InputError
from tokenweir.core.requests import Json, Sampling
from tokenweir.core.spec import (
    CorpusRef,
    Difference,
    ExperimentSpec,
    MeasurementSpec,
    Subject,
    Trim,
    WorkloadSpec,
    difference_table,
    differences,
    parse_trim,
    public_flags,
    public_url,
)

SPEC = ExperimentSpec(
    subject=Subject(
        backend="sim", url="http://127.0.0.1:8000", model="m", engine_flags={"tp": 1}, commit="c0ffee"
    ),
    workload=WorkloadSpec(
        kind="chat",
        stream=True,
        corpus=CorpusRef("weir-mix", "00"),
        scenario=None,
        loads=("concurrency=1", "concurrency=8"),
        requests=100,
        duration_ns=None,
        sampling=Sampling(temperature=0.5, ignore_eos=True),
        seed=7,
        ignore_eos=True,
    ),
    measurement=MeasurementSpec(
        warmup="5s", cooldown="0s", timeout_ns=60_000_000_000, slo={"ttft": 1}, failures_as_infinite=False
    ),
)


def test_hashes_are_of_the_canonical_json_of_the_parts() -> None:
    whole = json.loads(SPEC.canonical())
    assert SPEC.config_hash == hashlib.sha256(SPEC.canonical()).hexdigest()
    assert set(whole) == {"subject", "workload", "measurement"}
    assert whole["workload"]["sampling"] == {"temperature": 0.5}
    assert whole["workload"]["ignore_eos"] is True
    assert len({SPEC.config_hash, SPEC.workload_hash, SPEC.measurement_hash}) == 3


def test_subject_is_in_the_config_hash_only() -> None:
    other = msgspec.structs.replace(SPEC, subject=msgspec.structs.replace(SPEC.subject, model="n"))
    assert other.config_hash != SPEC.config_hash
    assert (other.workload_hash, other.measurement_hash) == (SPEC.workload_hash, SPEC.measurement_hash)
    assert differences(SPEC, other) == ("subject.model",)


def test_secrets_move_no_hash() -> None:
    subject = Subject(
        backend="sim",
        url="http://me:pw@127.0.0.1:8000?api_key=k",
        model="m",
        engine_flags={"tp": 1, "api_key": "k", "hf_token": "t"},
        commit="c0ffee",
    )
    other = msgspec.structs.replace(SPEC, subject=subject)
    assert other.canonical() == SPEC.canonical()


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("http://h:1/v1", "http://h:1/v1"),
        ("https://u:p@h/x?a=1&token=t&key=k#f", "https://h/x?a=1"),
        ("https://u@[::1]:8/x?X-Amz-Signature=s&version=2", "https://[::1]:8/x?version=2"),
        ("https://h/?sig=1&monkey=2&access_token=3&apikey=4&code=", "https://h/?monkey=2&code="),
    ],
)
def test_url_loses_its_secrets_only(url: str, public: str) -> None:
    assert public_url(url) == public


def test_flags_lose_their_secrets_at_any_depth() -> None:
    flags: dict[str, Json] = {
        "api_key": "k",
        "admin_api_key": None,
        "ssl_keyfile_password": "p",
        "tokenizer_path": "t",
        "max_total_tokens": 5,
        "stop_token": "x",
        "inner": {"hf_token": "t", "ok": [{"password": "p", "a": 1}]},
    }
    assert public_flags(flags) == {
        "tokenizer_path": "t",
        "max_total_tokens": 5,
        "stop_token": "x",
        "inner": {"ok": [{"a": 1}]},
    }


def test_flags_of_any_size_can_be_hashed() -> None:
    flags: dict[str, Json] = {"big": 2**60, "nan": math.nan, "inf": [math.inf], "plain": 0.5, "on": True}
    assert public_flags(flags) == {"big": str(2**60), "nan": "nan", "inf": ["inf"], "plain": 0.5, "on": True}
    subject = Subject(backend="sim", url="http://h", model="m", engine_flags=flags)
    assert msgspec.structs.replace(SPEC, subject=subject).config_hash


def test_differences_have_paths_and_values() -> None:
    workload = msgspec.structs.replace(SPEC.workload, loads=("concurrency=1", "concurrency=16", "x"), seed=8)
    other = msgspec.structs.replace(SPEC, workload=workload)
    assert difference_table(SPEC, other.to_json()) == (
        Difference("workload.loads[1]", "concurrency=8", "concurrency=16"),
        Difference("workload.loads[2]", None, "x"),
        Difference("workload.seed", 7, 8),
    )


def test_a_missing_field_differs_from_null() -> None:
    assert differences({"a": None}, {}) == ("a",)
    assert differences({"a": 1}, {"a": 1.0}) == ()
    assert differences({"a": True}, {"a": 1}) == ("a",)
    assert differences({"a": [1]}, {"a": {"b": 1}}) == ("a",)


_values: st.SearchStrategy[Json] = cast(
    "st.SearchStrategy[Json]",
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["a", "b"]),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)
        ),
        max_leaves=8,
    ),
)
_specs = st.dictionaries(st.sampled_from("abc"), _values, max_size=3)


@given(_specs, _specs)
def test_no_differences_means_equal_json(a: dict[str, Json], b: dict[str, Json]) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (differences(a, b) == ()) == same
    assert differences(a, b) == differences(b, a)
    assert differences(a, a) == ()


@pytest.mark.parametrize(
    ("text", "trim"),
    [
        ("5s", Trim(ns=5_000_000_000)),
        ("32", Trim(requests=32)),
        ("32req", Trim(requests=32)),
        ("0s", Trim()),
        ("0", Trim()),
    ],
)
def test_trim_is_a_time_or_a_number_of_requests(text: str, trim: Trim) -> None:
    assert parse_trim(text) == trim
    assert parse_trim(trim.text) == trim


def test_bad_trim_offers_both() -> None:
    with pytest.raises(InputError, match="or a number of requests such as 32"):
        parse_trim("5 parsecs")
