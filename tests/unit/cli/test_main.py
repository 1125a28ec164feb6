from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import click
import pytest

from tokenweir import __version__
from tokenweir.cli import main
from tokenweir.cli.options import Options
from tokenweir.cli.start import start
from tokenweir.core import errors
from tokenweir.core.errors import WeirError

RAISED: list[tuple[BaseException, int, str]] = [
    (errors.ConfigError("x is 3", mend="make it 4"), 2, "weir: x is 3; make it 4\n"),
    (errors.UnlikeError("runs differ\n in corpus"), 3, "weir: runs differ in corpus\n"),
    (errors.UnreachableError("no one there", mend="start it"), 4, "weir: no one there; start it\n"),
    (errors.RefusedError("401"), 5, "weir: 401\n"),
    (KeyboardInterrupt(), 130, "weir: stopped by the user\n"),
    (click.Abort(), 130, "weir: stopped by the user\n"),
    (click.UsageError("No such option."), 2, "weir: no such option; see weir doctor --help\n"),
    (OSError(errno.ENOSPC, "No space left", "/runs/x"), 6, "weir: /runs/x: No space left; free some space"),
    (OSError(errno.EMFILE, "Too many open files"), 6, "weir: Too many open files; raise the limit"),
    (FileNotFoundError(errno.ENOENT, "No such file", "f"), 2, "weir: f: No such file; mend the path"),
]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let ``weir doctor`` raise what it is given."""

    def install(error: BaseException) -> None:
        @click.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(sys.modules[__name__], "broken", command, raising=False)
        monkeypatch.setitem(main.COMMANDS, "doctor", main.Entry(f"{__name__}:broken", ""))

    return install


@pytest.mark.parametrize(("error", "code", "said"), RAISED, ids=lambda one: type(one).__name__)
def test_an_error_is_one_line_and_an_exit_code(
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    failing(error)
    assert main.run(["doctor"]) == code
    out, err = capsys.readouterr()
    assert not out
    # click ends the line on which a terminal shows ^C.
    line = err.removeprefix("\n")
    assert line.startswith(said)
    assert line.count("\n") == 1


def test_an_error_of_ours_is_logged_with_its_traceback(
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing(ZeroDivisionError("by zero"))
    assert main.run(["doctor"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("weir: internal error: ZeroDivisionError: by zero; please report it")
    assert "Traceback" in caplog.text


def test_every_error_class_has_an_exit_code_of_its_own_family() -> None:
    def family(kind: type[WeirError]) -> set[type[WeirError]]:
        return {kind}.union(*(family(below) for below in kind.__subclasses__()))

    for kind in family(WeirError):
        assert 1 <= kind.exit_code <= 130
        assert kind.code


@pytest.mark.parametrize("group", ["keys", "quotas", "queue"])
def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str], group: str) -> None:
    assert main.run([group]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"Usage: weir {group} [OPTIONS] COMMAND [ARGS]..."
    assert "Commands:" in lines


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bnch"], "weir: no such command 'bnch'; did you mean 'weir bench'?"),
        (["zzz"], "weir: no such command 'zzz'; see weir --help"),
        (["--frob"], "weir: no such option"),
        (["--set", "x", "doctor"], "weir: --set 'x' sets nothing; write --set KEY=VALUE"),
        (
            ["--set", "log.levle=debug", "doctor"],
            "weir: command line: log.levle: unknown key; did you mean 'log.level'?",
        ),
        (["--config", "/nonexistent.toml", "doctor"], "weir: no settings file at '/nonexistent.toml'"),
        (["doctor", "--streams", "many"], "weir: invalid value for '--streams'"),
    ],
)
def test_a_wrong_argument_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main.run(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_a_missing_extra_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(main.COMMANDS, "bench", main.Entry("pyarrow.parquet:command", ""))
    assert main.run(["bench"]) == 2
    assert capsys.readouterr().err == (
        "weir: weir bench needs 'pyarrow', which is not installed; pip install 'tokenweir[bench]'\n"
    )


@pytest.mark.parametrize("command", ["up", "usage", "queue"])
@pytest.mark.parametrize("package", ["cryptography", "sqlalchemy"])
def test_a_command_of_the_gateway_names_the_extra_that_brings_all_of_it(command: str, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from tokenweir.cli import main\nsys.exit(main.run([{command!r}, '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = (
        f"weir: weir {command} needs {package!r}, which is not installed; pip install 'tokenweir[gateway]'\n"
    )
    assert (done.returncode, done.stderr) == (2, said)


def test_flags_before_the_command_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Options] = []

    @click.command()
    @click.pass_obj
    def command(options: Options) -> None:
        seen.append(options)

    monkeypatch.setattr(sys.modules[__name__], "listening", command, raising=False)
    monkeypatch.setitem(main.COMMANDS, "doctor", main.Entry(f"{__name__}:listening", ""))
    assert main.run(["--log-level", "debug", "--set", "bench.workers=2", "doctor"]) == 0
    assert seen == [Options(overrides={"log.level": "debug", "bench.workers": "2"})]


def test_a_flag_that_is_not_given_leaves_what_was_set_before_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, str]] = []

    @click.command()
    def command() -> None:
        settings = start({"gateway.port": None, "gateway.host": "::1"})
        seen.append((settings.gateway.port, settings.gateway.host))

    monkeypatch.setattr(sys.modules[__name__], "listening", command, raising=False)
    monkeypatch.setitem(main.COMMANDS, "doctor", main.Entry(f"{__name__}:listening", ""))
    said = ("--set", "gateway.port=9000", "--set", "gateway.host=127.0.0.2")
    assert main.run([*said, "doctor"]) == 0
    assert seen == [(9000, "::1")]


def test_every_command_exists_and_tells_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in main.COMMANDS:
        assert main.run([name, "--help"]) == 0, name
        assert f"weir {name}" in capsys.readouterr().out


def test_version_names_the_commit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"weir {__version__}")


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tokenweir", "--help"], check=True, capture_output=True, text=True
    )
    assert "Usage: weir" in done.stdout
    for name, entry in main.COMMANDS.items():
        assert name in done.stdout
        assert entry.summary in " ".join(done.stdout.split())


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tokenweir", "doctor"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert said == ""


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        (
            "import tokenweir",
            ("click", "msgspec", "numpy", "pyarrow", "pydantic", "rich", "structlog", "yaml"),
        ),
        (
            "from tokenweir.cli.main import run; run(['--help'])",
            ("asyncio", "msgspec", "numpy", "pyarrow", "pydantic", "rich", "sqlalchemy", "structlog", "yaml"),
        ),
    ],
)
def test_starting_loads_nothing_heavy(code: str, heavy: tuple[str, ...]) -> None:
    for module in heavy:
        assert find_spec(module) is not None, module
    report = f"{code}\nimport sys; print(','.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", report], check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stderr.strip().split(",")}
    assert loaded.isdisjoint(heavy)
