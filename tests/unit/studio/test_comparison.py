# pyarrow's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.factories.runs import MS, RunShape, make_run

from tokenweir.core.errors import InputError, RecordError, UnlikeError
from tokenweir.core.metrics.registry import METRICS
from tokenweir.studio.comparison import DEFAULT_METRICS, Options, compare
from tokenweir.studio.findings import Comparison, Contrast, PairComparison


def compared(
    tmp_path: Path, a: RunShape, b: RunShape, *, n: int = 512, options: Options | None = None
) -> PairComparison:
    make_run(tmp_path / "a", seed=1, n=n, shape=a)
    make_run(tmp_path / "b", seed=2, n=n, shape=b)
    found = compare([tmp_path / "a", tmp_path / "b"], options or Options())
    return found.comparisons[0]


def contrasts(one: PairComparison, load: int = 0) -> dict[str, Contrast]:
    return {contrast.metric: contrast for contrast in one.loads[load].contrasts}


def test_a_faster_run_is_found_with_its_effect_and_pairs(tmp_path: Path) -> None:
    found = compared(tmp_path, RunShape(), RunShape(slow=0.88))
    tpot = contrasts(found)["tpot"]
    assert tpot.outcome == "better"
    assert tpot.paired
    assert tpot.n == found.loads[0].pairs
    main = tpot.main
    assert main.percent is not None
    assert main.percent_low is not None
    assert main.percent_high is not None
    assert main.percent_low < -12 < main.percent_high
    assert main.percent == pytest.approx(-12, abs=0.6)
    assert found.verdict.startswith("B is faster: TPOT −1")
    assert f"n = {tpot.n} pairs" in found.verdict
    # TPOT and ITL per request say the same: the verdict names one of them.
    assert "ITL" not in found.verdict


def test_a_slower_run_is_found(tmp_path: Path) -> None:
    found = compared(tmp_path, RunShape(), RunShape(late=20))
    assert contrasts(found)["ttft"].outcome == "worse"
    assert found.verdict.startswith("B is slower: TTFT +")


def test_a_mixed_result_says_so(tmp_path: Path) -> None:
    found = compared(tmp_path, RunShape(), RunShape(late=100, slow=0.95))
    assert "faster in some and slower in other respects: TPOT −" in found.verdict
    assert "TTFT +" in found.verdict


def test_equal_runs_show_no_difference_and_what_would_have_been_found(tmp_path: Path) -> None:
    found = compared(tmp_path, RunShape(), RunShape())
    assert found.verdict.startswith("no difference detected; smallest detectable: TPOT ±")
    tpot = contrasts(found)["tpot"]
    assert tpot.outcome == "no difference detected"
    assert tpot.detectable_percent is not None
    assert 0 < tpot.detectable_percent < 5
    assert found.warnings == ()


def test_equal_runs_rarely_differ(tmp_path: Path) -> None:
    for seed in range(8):
        make_run(tmp_path / str(seed), seed=seed, n=200)
    found = compare([tmp_path / str(seed) for seed in range(8)], Options())
    wrong = [one.b.letter for one in found.comparisons if not one.verdict.startswith("no difference")]
    assert len(wrong) <= 1


def test_quantiles_have_intervals_where_the_data_bound_them(tmp_path: Path) -> None:
    changes = {
        change.statistic: change
        for change in contrasts(compared(tmp_path, RunShape(), RunShape(slow=0.8), n=256))["tpot"].changes
    }
    assert list(changes) == ["mean", "p50", "p90", "p99"]
    half = changes["p50"]
    assert half.low is not None
    assert half.high is not None
    assert half.change is not None
    assert half.low < half.change < half.high < 0
    # Some 230 values do not reach beyond the 99th percentile's interval.
    assert changes["p99"].low is None
    assert changes["p99"].change is not None


def test_failures_are_compared_on_pairs(tmp_path: Path) -> None:
    found = compared(tmp_path, RunShape(), RunShape(failures=0.2))
    errors = contrasts(found)["error_rate"]
    assert errors.outcome == "worse"
    assert errors.method.startswith("McNemar")
    assert "; B fails more often: Error rate +18.1 [+14.4, +2" in found.verdict
    assert "pairs have no finite value on one side" in contrasts(found)["tpot"].note
    assert compared(tmp_path / "c", RunShape(), RunShape()).loads[0].pairs > 0


def test_failures_as_infinite_shift_quantiles_only(tmp_path: Path) -> None:
    shape = RunShape(failures_as_infinite=True)
    found = contrasts(compared(tmp_path, shape, msgspec_replace(shape, failures=0.3)))["ttft"]
    by_name = {change.statistic: change for change in found.changes}
    assert by_name["p90"].b is None
    assert by_name["mean"].b is not None
    assert found.mann_whitney_p is not None
    assert found.mann_whitney_p < 0.01


def msgspec_replace(shape: RunShape, *, failures: float) -> RunShape:
    return RunShape(failures=failures, failures_as_infinite=shape.failures_as_infinite)


def test_goodput_is_compared_where_objectives_are_stated(tmp_path: Path) -> None:
    slo = {"tpot": int(20.2 * MS)}
    found = contrasts(compared(tmp_path, RunShape(slo=slo), RunShape(slo=slo, slow=1.1)))["goodput"]
    assert found.outcome == "worse"
    assert not found.paired
    assert contrasts(compared(tmp_path / "no", RunShape(), RunShape()))["goodput"].note == "no SLO is stated"


def test_pooled_gaps_and_too_few_requests_are_not_evaluated(tmp_path: Path) -> None:
    found = contrasts(compared(tmp_path, RunShape(), RunShape()))["itl"]
    assert (found.outcome, found.p_value) == ("not evaluated", None)
    assert found.main.change is not None
    assert "itl_request has an interval" in found.note
    few = compared(tmp_path / "few", RunShape(warmup=0), RunShape(warmup=0), n=5)
    assert contrasts(few)["tpot"].outcome == "not evaluated"
    assert contrasts(few)["request_throughput"].outcome == "not evaluated"
    assert contrasts(few)["tpot"].note == "TPOT has 5 and 5 values; 8 are needed"


def test_nothing_evaluated_is_the_verdict(tmp_path: Path) -> None:
    options = Options(metrics=("queue_time", "itl"))
    found = compared(tmp_path, RunShape(), RunShape(), options=options)
    assert found.verdict == "not evaluated: Queue time has 0 and 0 values; 8 are needed"


def test_few_pairs_are_bootstrapped_repeatably(tmp_path: Path) -> None:
    shape = RunShape(samples=40, warmup=0)
    first = compared(tmp_path, shape, shape, n=32)
    again = compare([tmp_path / "a", tmp_path / "b"], Options()).comparisons[0]
    assert first == again
    assert any(contrast.method == "pairs, BCa bootstrap" for contrast in contrasts(first).values())


def test_repeats_of_few_samples_say_how_far_the_interval_reaches(tmp_path: Path) -> None:
    shape = RunShape(samples=4)
    assert "only 4 distinct samples" in contrasts(compared(tmp_path, shape, shape))["tpot"].note


def test_runs_whose_samples_do_not_pair_are_compared_by_blocks_of_time(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=1)
    make_run(tmp_path / "b", seed=2, shape=RunShape(slow=0.9))
    # B answered other samples: as after a cancelled run of a shuffled corpus.
    rekey(tmp_path / "b" / "requests.parquet")
    found = compare([tmp_path / "a", tmp_path / "b"], Options()).comparisons[0]
    tpot = contrasts(found)["tpot"]
    assert found.loads[0].pairs == 0
    assert (tpot.paired, tpot.method, tpot.outcome) == (False, "time blocks of each run", "better")
    assert tpot.note == "samples do not pair"
    assert contrasts(found)["error_rate"].method.startswith("two shares")


def rekey(path: Path) -> None:
    table = pq.read_table(path)
    place = table.schema.get_field_index("sample")
    moved = pa.array(table.column("sample").to_numpy() + 1000, pa.int32())
    pq.write_table(table.set_column(place, table.schema.field(place), moved), path)


def test_a_shortened_run_pairs_what_there_is(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=1, n=512, shape=RunShape(warmup=0))
    made = make_run(tmp_path / "b", seed=2, n=300, shape=RunShape(warmup=0, status="cancelled"))
    # A cancelled run asked for as many requests as the whole one.
    whole = msgspec.json.decode((tmp_path / "a" / "run.json").read_bytes(), type=type(made))
    changed = msgspec.structs.replace(made, spec=whole.spec, provenance=whole.provenance)
    (tmp_path / "b" / "run.json").write_bytes(msgspec.json.encode(changed))
    found = compare([tmp_path / "a", tmp_path / "b"], Options()).comparisons[0]
    assert found.loads[0].pairs == 300
    assert "B was cancelled" in found.warnings


def test_sweeps_are_compared_load_by_load(tmp_path: Path) -> None:
    loads = ("concurrency=4", "poisson=20/s")
    found = compared(tmp_path, RunShape(loads=loads), RunShape(loads=loads, slow=0.8), n=200)
    assert [load.arrival for load in found.loads] == list(loads)
    assert all(contrasts(found, load)["tpot"].outcome == "better" for load in (0, 1))
    assert " at concurrency=4" in found.verdict


def test_a_load_that_one_run_lacks_is_not_evaluated(tmp_path: Path) -> None:
    loads = ("concurrency=4", "concurrency=8")
    make_run(tmp_path / "a", seed=1, shape=RunShape(loads=loads))
    made = make_run(tmp_path / "b", seed=2, shape=RunShape(loads=loads))
    cut = msgspec.structs.replace(made, loads=made.loads[:1])
    (tmp_path / "b" / "run.json").write_bytes(msgspec.json.encode(cut))
    found = compare([tmp_path / "a", tmp_path / "b"], Options()).comparisons[0]
    assert found.loads[1].note == "B has no requests at concurrency=8"
    assert found.loads[1].contrasts == ()


def test_warnings_name_what_qualifies_the_verdict(tmp_path: Path) -> None:
    shape = RunShape(slow=0.8, answers=1, attributed=False, client_bound=True)
    found = compared(tmp_path, RunShape(), shape)
    assert [warning.partition(" at ")[0].partition(":")[0] for warning in found.warnings] == [
        "B is client-bound",
        "B is unattributed",
        "answers changed",
    ]
    assert found.verdict.endswith("; but B is client-bound, so this may be the client's doing")
    assert found.loads[0].answers.share == 0


@pytest.mark.parametrize(
    ("a", "b", "field"),
    [
        (RunShape(tokens=32), RunShape(tokens=64), 'workload.scenario: "D(100,32)" against "D(100,64)"'),
        (RunShape(), RunShape(corpus="other"), 'workload.corpus.name: "synthetic" against "other"'),
        (RunShape(loads=("concurrency=8",)), RunShape(loads=("concurrency=9",)), "workload.loads[0]: "),
        (RunShape(), RunShape(measurement={"timeout_ns": 5}), "measurement.timeout_ns: "),
        (RunShape(), RunShape(slo={"ttft": 200_000_000}), "measurement.slo.ttft: null against 200ms"),
    ],
)
def test_unlike_runs_are_refused_with_the_fields(
    tmp_path: Path, a: RunShape, b: RunShape, field: str
) -> None:
    with pytest.raises(UnlikeError) as caught:
        compared(tmp_path, a, b, n=20)
    assert any(found.startswith(field) for found in caught.value.fields)
    assert all(found in str(caught.value) for found in caught.value.fields)
    assert caught.value.exit_code == 3


def test_subjects_and_labels_may_differ(tmp_path: Path) -> None:
    found = compared(tmp_path, RunShape(labels={"k": "1"}), RunShape(slow=0.9, labels={"k": "2"}), n=100)
    assert (found.a.labels, found.b.labels) == ({"k": "1"}, {"k": "2"})
    flags = {name for name in found.a.subject if name.startswith("engine_flags.")}
    assert any(found.a.subject[name] != found.b.subject[name] for name in flags)


def test_every_metric_can_be_asked_for(tmp_path: Path) -> None:
    found = compared(tmp_path, RunShape(), RunShape(), options=Options(metrics=tuple(METRICS)))
    assert list(contrasts(found)) == list(METRICS)
    assert set(DEFAULT_METRICS) <= set(METRICS)
    with pytest.raises(InputError, match="no metric 'speed'"):
        compare([tmp_path / "a", tmp_path / "b"], Options(metrics=("speed",)))


def test_the_comparison_is_whole_as_json(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=1, n=100)
    make_run(tmp_path / "b", seed=2, n=100)
    found = compare([tmp_path / "a", tmp_path / "b"], Options())
    assert msgspec.json.decode(msgspec.json.encode(found), type=Comparison) == found
    numbers = [
        value
        for contrast in found.comparisons[0].loads[0].contrasts
        for change in contrast.changes
        for value in msgspec.structs.astuple(change)
        if isinstance(value, float)
    ]
    assert all(math.isfinite(value) for value in numbers)


def test_more_confidence_makes_wider_intervals(tmp_path: Path) -> None:
    wide = compared(tmp_path, RunShape(), RunShape(), options=Options(confidence=0.999))
    narrow = compare([tmp_path / "a", tmp_path / "b"], Options(confidence=0.8)).comparisons[0]
    for tag in ("tpot", "output_throughput", "error_rate"):
        one, two = contrasts(wide)[tag].main, contrasts(narrow)[tag].main
        assert one.low is not None
        assert two.low is not None
        assert one.low < two.low


def test_damaged_records_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, n=20)
    (tmp_path / "b" / "requests.parquet").write_bytes(b"PAR1")
    with pytest.raises(RecordError, match="cannot be read"):
        compare([tmp_path / "a", tmp_path / "b"], Options())
    (tmp_path / "b" / "requests.parquet").unlink()
    with pytest.raises(RecordError, match="cannot be read"):
        compare([tmp_path / "a", tmp_path / "b"], Options())
    with pytest.raises(InputError, match="1 runs were named"):
        compare([tmp_path / "a"], Options())
