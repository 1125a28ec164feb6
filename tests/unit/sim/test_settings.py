from __future__ import annotations

import msgspec
import pytest

from tokenweir.app import load_config
from tokenweir.core.errors import ConfigError
from tokenweir.sim.options import FIXED, Options, changed, public, read_options
from tokenweir.sim.process import SimFlags
from tokenweir.sim.settings import Settings


def test_settings_options_and_process_flags_are_the_same_set_with_the_same_defaults() -> None:
    assert Settings().options() == Options()
    names = set(Options.__struct_fields__)
    assert set(Settings.model_fields) == names
    assert set(SimFlags.__annotations__) == names


def test_every_setting_says_what_it_means() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_key_is_read_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_KEY", "hush")
    settings = load_config(overrides={"sim.api_key": "env:SIM_KEY"}).sim
    assert "hush" not in repr(settings)
    assert settings.options().api_key == "hush"


def test_options_come_from_json_and_unknown_ones_are_refused() -> None:
    assert read_options(b'{"port": 0, "faults": ["500@#1"]}') == Options(port=0, faults=("500@#1",))
    for bad in (b'{"prot": 0}', b'{"port": "x"}', b"[", b'"x"'):
        with pytest.raises(ConfigError):
            read_options(bad)


def test_what_describes_the_engine_is_public_and_the_rest_is_not() -> None:
    flags = public(Options(api_key="hush", port=1))
    assert not FIXED & flags.keys()
    assert flags["ttft"] == "constant:50ms"
    assert msgspec.json.encode(flags)


def test_options_can_change_but_for_those_of_the_process() -> None:
    before = Options(api_key="hush", port=1)
    after = changed(before, {"itl": "constant:1ms", "faults": ["500"]})
    assert (after.itl, after.faults, after.api_key, after.port) == ("constant:1ms", ("500",), "hush", 1)
    for name in FIXED:
        with pytest.raises(ConfigError, match=name):
            changed(before, {name: 1})
    with pytest.raises(ConfigError, match="ilt"):
        changed(before, {"ilt": "constant:1ms"})
