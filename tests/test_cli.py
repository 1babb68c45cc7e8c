"""The dispatcher: commands on demand, errors as exit codes, help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

from kad.cli.main import COMMANDS, KadCommand, app, exit_code, load_command
from kad.errors import KadError


@pytest.fixture
def kad() -> CliRunner:
    return CliRunner()


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_what_needs_no_model_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    """One command after the other in one interpreter: the first that imports something heavy is named.

    `kad pack` and `kad info` need configurations, which Transformers reads, but no engine.
    """
    asked = [["--help"], [], ["--version"], *([name, "--help"] for name in COMMANDS)]
    asked += [["rules"], ["rules", "primal"], ["reproduce", "qwen3", "--dry-run"]]
    pack = ["pack", "--base", "tiny:big-base", "--aligned", "tiny:small-aligned", "-o", str(tmp_path / "pair")]
    code = f"""
import sys
from kad.cli.main import app
found = {{}}
for arguments in {asked!r}:
    try:
        app(arguments)
    except SystemExit as end:
        assert end.code == 0, (arguments, end.code)
    heavy = {{"torch", "transformers", "vllm", "lm_eval", "matplotlib", "datasets"}} & set(sys.modules)
    found.setdefault(tuple(sorted(heavy)), arguments)
for arguments in {pack!r}, ["info", {pack[-1]!r}]:
    app(arguments, standalone_mode=False)
engines = [name for name in sys.modules if name.startswith(("kad.engines.transformers", "kad.engines.pair"))]
print(found, engines, "transformers" in sys.modules)
"""
    assert python(code).splitlines()[-1] == "{(): ['--help']} [] True"


def test_help_lists_every_command_with_its_line(kad: CliRunner) -> None:
    shown = kad.invoke(app, ["--help"], env={"COLUMNS": "160"}).output
    for name, (panel, summary) in COMMANDS.items():
        assert f"{name} " in shown
        assert summary in shown
        assert panel in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(kad: CliRunner, name: str) -> None:
    command = load_command(name)
    assert isinstance(command, KadCommand)
    assert command.examples, f"kad {name} has no EXAMPLES"
    result = kad.invoke(app, [name, "--help"], env={"COLUMNS": "160"})
    assert result.exit_code == 0
    assert f"kad {name}" in result.output.split("Examples")[-1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    silent = [p.name for p in load_command(name).params if not getattr(p, "help", None) and p.name != "help"]
    assert silent == []


def test_a_long_help_paragraph_is_broken_by_the_terminal_only(kad: CliRunner) -> None:
    wide = kad.invoke(app, ["generate", "--help"], env={"COLUMNS": "250"}).output
    assert "unless you give --raw. Tokens are drawn as the generation settings of the aligned model say, unless" in wide


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["genrate"], "Unknown command 'genrate'. Did you mean 'generate'?"),
        (["xyzzy"], "Unknown command 'xyzzy'. Choose from: generate, chat,"),
        (["--verison"], "No such option: --verison"),
        (["generate", "--bse", "x", "Hi"], "No such option: --bse"),
        (["generate", "--max-new-tokens", "many", "Hi"], "Invalid value for '--max-new-tokens'"),
        (["generate", "--max-new-tokens", "0", "Hi"], "--max-new-tokens must be >= 1, but is 0."),
        (["generate", "a", "b"], "Got unexpected extra argument"),
        (["generate", "--seed", "-1", "Hi"], "--seed must be in [0, 9223372036854775807], but is -1."),
    ],
)
def test_wrong_input_is_two_lines_and_exit_code_2(kad: CliRunner, arguments: list[str], message: str) -> None:
    result = kad.invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) <= 2


def test_a_usage_error_names_the_help_of_its_command(kad: CliRunner) -> None:
    assert kad.invoke(app, ["generate", "--bse"]).stderr.endswith("See: kad generate --help\n")


def test_version(kad: CliRunner) -> None:
    result = kad.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("kad-align ")


def fail(error: BaseException) -> None:
    raise error


def test_errors_become_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: None) == 0
    assert exit_code(lambda: 3) == 3  # what Click returns for typer.Exit(3)
    assert exit_code(lambda: fail(KadError("got 7, allowed is 3"))) == 2
    assert capsys.readouterr().err == "error: got 7, allowed is 3\n"
    assert exit_code(lambda: fail(KeyboardInterrupt())) == 130
    assert exit_code(lambda: fail(typer.Abort())) == 130
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # a defect of ours stays visible
        exit_code(lambda: fail(ZeroDivisionError()))


def test_a_missing_command_module_leaves_the_others_alone(kad: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("kad.cli.main.import_module", absent)
    result = kad.invoke(app, ["figures"])
    assert result.exit_code == 2
    assert "kad figures is not part of this installation" in result.stderr
    assert kad.invoke(app, ["--help"]).exit_code == 0


def test_a_missing_dependency_is_not_taken_for_a_missing_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr("kad.cli.main.import_module", absent)
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        load_command("figures")


def test_serve_passes_unknown_options_on() -> None:
    settings = load_command("serve").context_settings
    assert settings["ignore_unknown_options"]
    assert settings["allow_extra_args"]


def test_a_closed_pipe_is_quiet() -> None:
    """`kad rules | head -1`: no traceback, no "Exception ignored"."""
    pipe = subprocess.Popen(
        [sys.executable, "-c", "from kad.cli.main import main; main()", "rules", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert pipe.stdout is not None
    assert pipe.stderr is not None
    pipe.stdout.close()
    errors = pipe.stderr.read()
    assert pipe.wait() == 141
    assert errors == ""
