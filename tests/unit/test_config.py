from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenweir
from tokenweir import config
from tokenweir.app import Settings
from tokenweir.config import DurationNs, Secret, SettingsModel
from tokenweir.core.errors import ConfigError

ENDPOINT = """
[[endpoints]]
name = "local"
kind = "openai"
url = "http://127.0.0.1:8000/"
model = "m"
key = "env:MY_KEY"
"""


class Table(SettingsModel):
    workers: int = 0
    patience: DurationNs = 5_000_000_000
    names: tuple[str, ...] = ()


class Whole(SettingsModel):
    bench: Table = Table()


def load(
    text: str | None,
    place: Path,
    *,
    suffix: str = ".toml",
    environ: Mapping[str, str] | None = None,
    **flags: object,
) -> Whole:
    path = None
    if text is not None:
        path = place / f"weir{suffix}"
        path.write_text(text, encoding="utf-8")
    overrides = {name.replace("__", "."): value for name, value in flags.items()}
    return config.load(Whole, path, overrides=overrides, environ=environ or {})


def refusal(
    text: str | None, place: Path, *, suffix: str = ".toml", environ: Mapping[str, str] | None = None
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, place, suffix=suffix, environ=environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_need_no_file() -> None:
    settings = tokenweir.load_config()
    assert settings == Settings()
    assert settings.endpoints == ()


def test_each_source_overrules_the_one_before(tmp_path: Path) -> None:
    text = "[bench]\nworkers = 1\n"
    environ = {"WEIR_BENCH__WORKERS": "2"}
    assert load(text, tmp_path).bench.workers == 1
    assert load(text, tmp_path, environ=environ).bench.workers == 2
    assert load(text, tmp_path, environ=environ, bench__workers=3).bench.workers == 3
    assert load(text, tmp_path, environ=environ, bench__workers=None).bench.workers == 2


@given(
    st.integers(0, 512), st.one_of(st.none(), st.integers(0, 512)), st.one_of(st.none(), st.integers(0, 512))
)
def test_the_last_source_that_speaks_wins(in_file: int, in_environ: int | None, flag: int | None) -> None:
    tree = {"WEIR_BENCH__NAMES": "[]"} | (
        {} if in_environ is None else {"WEIR_BENCH__WORKERS": str(in_environ)}
    )
    environ = {"WEIR_BENCH": f'{{"workers": {in_file}}}'} | tree
    got = config.load(Whole, overrides={"bench.workers": flag}, environ=environ)
    wanted = next(one for one in (flag, in_environ, in_file) if one is not None)
    assert got.bench.workers == wanted


def test_yaml_says_the_same_as_toml(tmp_path: Path) -> None:
    toml = load('[bench]\nworkers = 3\nnames = ["a", "b"]\npatience = "250ms"\n', tmp_path)
    yaml = load("bench:\n  workers: 3\n  names: [a, b]\n  patience: 250ms\n", tmp_path, suffix=".yaml")
    assert toml == yaml
    assert toml.bench.patience == 250_000_000


def test_settings_are_frozen() -> None:
    settings = Whole()
    with pytest.raises(ValueError, match="frozen"):
        settings.bench = Table(workers=1)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("suffix", [".toml", ".yaml"])
def test_an_unknown_key_names_file_path_and_nearest(tmp_path: Path, suffix: str) -> None:
    text = "[bench]\nworkres = 3\n" if suffix == ".toml" else "bench:\n  workres: 3\n"
    message = refusal(text, tmp_path, suffix=suffix)
    assert message == f"{tmp_path}/weir{suffix}: bench.workres: unknown key; did you mean 'bench.workers'?"


def test_an_unknown_key_far_from_any_lists_the_known(tmp_path: Path) -> None:
    assert refusal("[bench]\nqqq = 3\n", tmp_path).endswith("known here: workers, patience, names")


def test_a_key_of_another_table_is_found(tmp_path: Path) -> None:
    assert refusal("workers = 3\n", tmp_path).endswith("did you mean 'bench.workers'?")


@given(st.text(string.ascii_lowercase, min_size=1, max_size=12))
def test_every_undeclared_key_is_refused(key: str) -> None:
    if key not in Table.model_fields:
        with pytest.raises(ConfigError, match=f"bench\\.{key}: unknown key"):
            config.load(Whole, overrides={f"bench.{key}": "1"}, environ={})


def test_the_environment_is_named_as_the_source(tmp_path: Path) -> None:
    message = refusal(None, tmp_path, environ={"WEIR_BENCH__WORKERS": "many"})
    assert message.startswith("WEIR_BENCH__WORKERS: bench.workers: should be a valid integer")
    assert message.endswith("not 'many'")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("WEIR_BENCH_WORKERS", "did you mean 'WEIR_BENCH__WORKERS'?"),
        ("WEIR_FROBNICATE", "a setting is 'WEIR_TABLE__KEY'; let no other name begin with WEIR_"),
    ],
)
def test_an_unknown_variable_is_refused(tmp_path: Path, variable: str, meant: str) -> None:
    assert refusal(None, tmp_path, environ={variable: "2"}).endswith(f"; {meant}")


def test_variables_of_the_examples_and_of_the_containers_are_left_alone(tmp_path: Path) -> None:
    environ = {"WEIR_URL": "x", "WEIR_KEY": "x", "WEIR_MODEL": "x", "WEIR_HTTPS": "1", "WEIR_PORT_KAFKA": "1"}
    assert load(None, tmp_path, environ=environ) == Whole()


def test_variables_that_hold_secrets_are_left_alone(tmp_path: Path) -> None:
    environ = {"WEIR_SEAL_NEW": "x", "WEIR_SEAL_OLD": "y"}
    text = '[bench]\nnames = ["env:WEIR_SEAL_NEW"{}]\n'
    assert load(text.format(', "env:WEIR_SEAL_OLD"'), tmp_path, environ=environ).bench.names
    assert "'WEIR_SEAL_OLD'" in refusal(text.format(""), tmp_path, environ=environ)


def test_variables_that_kubernetes_sets_are_left_alone(tmp_path: Path) -> None:
    environ = {
        "WEIR_SERVICE_HOST": "10.0.0.1",
        "WEIR_PORT_80_TCP": "tcp://10.0.0.1:80",
        "WEIR_GATEWAY_PORT": "x",
    }
    assert load(None, tmp_path, environ=environ) == Whole()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("5", "5"),
        ('"5"', "unit"),
        ('"5 parsecs"', "parsecs"),
        ("true", "True"),
    ],
)
def test_a_duration_needs_a_unit(tmp_path: Path, value: str, said: str) -> None:
    message = refusal(f"[bench]\npatience = {value}\n", tmp_path)
    assert message.startswith(f"{tmp_path}/weir.toml: bench.patience: ")
    assert said in message


@pytest.mark.parametrize(
    ("text", "suffix", "said"),
    [
        ("[bench\n", ".toml", "is not TOML"),
        ("[bench]\nworkers = 1\nworkers = 2\n", ".toml", "is not TOML"),
        ("bench: [\n", ".yaml", "is not YAML"),
        ("bench:\n  workers: 1\n  workers: 2\n", ".yaml", "key 'workers' occurs twice (line 3)"),
        ("- bench\n", ".yaml", "holds a list instead of tables"),
        ("bench = 3\n", ".toml", "bench: should be a table, not 3"),
        ("[bench]\nworkers = 1.5\n", ".toml", "bench.workers"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, suffix: str, said: str) -> None:
    message = refusal(text, tmp_path, suffix=suffix)
    assert message.startswith(f"{tmp_path}/weir{suffix}: ")
    assert said in message


def test_a_file_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weir.toml"
    path.write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 2"):
        config.load(Whole, path, environ={})


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no settings file at .*nothing\.toml"):
        config.load(Whole, tmp_path / "nothing.toml", environ={})
    with pytest.raises(ConfigError, match="named by WEIR_CONFIG"):
        config.load(Whole, environ={"WEIR_CONFIG": str(tmp_path / "nothing.toml")})


def test_the_file_is_searched_from_near_to_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "config" / "tokenweir" / "weir.toml"
    here = tmp_path / "here" / "weir.toml"
    named = tmp_path / "named.toml"
    for file in (own, here, named):
        file.parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(here.parent)
    assert config.find_file(environ={}) is None
    own.touch()
    found = config.find_file(environ={})
    assert found is not None
    assert found.name == "weir.toml"
    here.touch()
    assert config.find_file(environ={}) == Path("weir.toml")
    named.touch()
    assert config.find_file(environ={"WEIR_CONFIG": str(named)}) == named
    assert config.find_file(own, environ={"WEIR_CONFIG": str(named)}) == own


def test_endpoints_are_read_and_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weir.toml"
    path.write_text(ENDPOINT, encoding="utf-8")
    monkeypatch.setenv("WEIR_ENDPOINTS__0__MODEL", "other")
    settings = tokenweir.load_config(path)
    endpoint = settings.endpoint("local")
    assert (endpoint.url, endpoint.model, endpoint.weight) == ("http://127.0.0.1:8000", "other", 1.0)
    with pytest.raises(ConfigError, match="known endpoints: local"):
        settings.endpoint("remote")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('kind = "vllm2"', "kind"),
        ('url = "127.0.0.1:8000"', "a URL begins with http://, https:// or grpc:// and a host"),
        ("weight = 0", "greater than 0"),
        ('nam = "x"', "did you mean 'endpoints[0].name'?"),
    ],
)
def test_a_bad_endpoint_is_refused(tmp_path: Path, line: str, said: str) -> None:
    name = line.partition(" ")[0]
    kept = [one for one in ENDPOINT.splitlines() if not one.startswith(f"{name} ")]
    path = tmp_path / "weir.toml"
    path.write_text("\n".join([*kept, line]), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        tokenweir.load_config(path)
    assert said in str(caught.value)


def test_two_endpoints_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weir.toml"
    path.write_text(ENDPOINT * 2, encoding="utf-8")
    with pytest.raises(ConfigError, match="two endpoints are named 'local'"):
        tokenweir.load_config(path)


def test_a_secret_is_read_late_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weir.toml"
    path.write_text(ENDPOINT, encoding="utf-8")
    endpoint = tokenweir.load_config(path).endpoints[0]
    assert endpoint.key == Secret("env:MY_KEY")
    assert endpoint.key is not None
    with pytest.raises(ConfigError, match="'MY_KEY' that holds a secret is not set"):
        endpoint.key.read()
    monkeypatch.setenv("MY_KEY", " hush \n")
    assert endpoint.key.read() == "hush"
    assert "hush" not in f"{endpoint!r} {endpoint} {endpoint.model_dump()}"


def test_a_secret_may_lie_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with pytest.raises(ConfigError, match="cannot be read"):
        Secret(f"file:{file}").read()
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="is empty"):
        Secret(f"file:{file}").read()
    file.write_text("hush\n", encoding="utf-8")
    assert Secret(f"file:{file}").read() == "hush"


def test_a_secret_written_down_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "weir.toml"
    path.write_text(ENDPOINT.replace("env:MY_KEY", "very-hush"), encoding="utf-8")
    with pytest.raises(ConfigError, match="use 'env:NAME' or 'file:PATH'") as caught:
        tokenweir.load_config(path)
    assert "very-hush" not in str(caught.value)


def test_known_keys_reach_into_lists() -> None:
    keys = config.known_keys(Settings)
    assert {"log.level", "stores.runs", "endpoints[].url"} <= set(keys)


def test_child_environment_is_ours_with_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    child = config.child_environment({"MORE": "2"})
    assert (child["OURS"], child["MORE"]) == ("1", "2")
    assert "MORE" not in config.read_environment()
