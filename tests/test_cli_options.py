"""Options said once: groups of annotated fields, their checks, and the commands that Typer makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from kad.cli.common import ModelOptions
from kad.cli.flatten import Only, Prefix, Without, flatten
from kad.cli.main import COMMANDS, load_command
from kad.errors import UsageError
from kad.evaluation.evaluate import Plan
from kad.evaluation.results.settings import Settings
from kad.evaluation.run_options import RunOptions, TaskOptions
from kad.options import Option, check_fields


@dataclass(frozen=True)
class Group:
    PANEL: ClassVar[str] = "Panel"

    count: Annotated[int, Option("How many.", "N", "-c", allowed=">= 1")] = 2
    share: Annotated[float | None, Option("Which share.", "S", allowed="(0, 1]", shown="all")] = None
    words: Annotated[tuple[str, ...], Option("Words.", "WORD")] = ()
    pairs: Annotated[dict[str, Any], Option("Keys and values.", "KEY=VALUE", name="--set")] = field(
        default_factory=dict
    )
    names: Annotated[tuple[str, ...], Option("Names.", "A,B", parse=lambda text: tuple(text.split(",")))] = ("x",)
    quiet: Annotated[bool, Option("Say less.")] = False
    loud: Annotated[bool, Option("Say more.")] = True

    def __post_init__(self) -> None:
        check_fields(self)


def run(command: Any, *arguments: str) -> Any:
    made = typer.Typer(add_completion=False)
    made.command()(flatten(command))
    return CliRunner().invoke(made, list(arguments), env={"COLUMNS": "100"})


def read(*arguments: str) -> Group:
    """The group that the arguments make."""
    given: list[Group] = []

    def command(*, group: Group) -> None:
        given.append(group)

    result = run(command, *arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    (group,) = given
    return group


def test_a_group_without_arguments_is_its_defaults() -> None:
    assert read() == Group()


def test_every_kind_of_value_is_read() -> None:
    arguments = ["-c", "3", "--share", "0.5", "--words", "a", "--words", "b", "--set", "n=1", "--set", "s=t"]
    arguments += ["--names", "x,y", "--quiet", "--no-loud"]
    assert read(*arguments) == Group(3, 0.5, ("a", "b"), {"n": 1, "s": "t"}, ("x", "y"), True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count must be >= 1, but is 0."),
        (["--share", "0"], "--share must be in (0, 1], but is 0."),
        (["--share", "nan"], "--share must be in (0, 1], but is nan."),
        (["--set", "n"], "--set takes KEY=VALUE, but got 'n'."),
    ],
)
def test_a_wrong_value_is_named_by_its_option(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        read(*arguments)
    assert str(error.value) == message


def test_in_python_the_same_check_names_the_field() -> None:
    with pytest.raises(UsageError, match=r"^`share` must be in \(0, 1\], but is 2\.$"):
        Group(share=2.0)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        (">= 1", [1, 2.5], [0.999, math.nan, math.inf]),
        ("> 0", [1e-300], [0, -1, math.nan, math.inf]),
        ("(0, 1]", [0.1, 1], [0, 1.1, math.nan]),
        ("[0, 1)", [0, 0.9], [-0.1, 1, math.nan]),
        (("a", "b"), ["a"], ["c", ""]),
    ],
)
def test_what_is_allowed(allowed: Any, inside: list[Any], outside: list[Any]) -> None:
    option = Option("Help.", allowed=allowed)
    for value in [*inside, None]:
        option.check("--x", value)
    for value in outside:
        with pytest.raises(UsageError):
            option.check("--x", value)


def test_a_command_can_offer_a_part_of_a_group_several_times_and_with_other_defaults() -> None:
    given: dict[str, Any] = {}
    other = Group(count=7, quiet=True)

    def command(
        *,
        first: Annotated[Group, Only("count"), Prefix("first", "First")] = other,
        second: Annotated[Group, Without("count", "loud"), Prefix("second", "Second")],
        single: Annotated[int, Option("One.", "N")] = 1,
    ) -> None:
        given.update(first=first, second=second, single=single)

    assert run(command, "--second-share", "1", "--single", "5").exit_code == 0
    assert given == {"first": other, "second": Group(share=1.0), "single": 5}
    assert run(command, "--first-share", "1").exit_code == 2
    assert run(command, "--second-count", "1").exit_code == 2
    page = run(command, "--help").stdout
    assert "[default: 7]" in page
    assert "First" in page
    assert "Second" in page


def test_the_help_page_says_what_the_group_says() -> None:
    def command(*, group: Group) -> None:
        """Do it."""

    page = run(command, "--help").stdout
    for words in ("Panel", "N >= 1", "S in (0, 1]", "How many.", "[default: 2]", "(all)", "(x)", "--no-loud", "-c"):
        assert words in page
    assert not any("<bool>" in line for line in page.splitlines() if "--help" not in line)
    assert "--no-quiet" not in page


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_means_the_same_in_every_command(name: str) -> None:
    """Its help, its letter and the values it allows come from one place, so they cannot differ."""
    known = {
        "--pair", "--base", "--aligned", "--reference", "--deferral-temperature", "--device", "--limit", "--data-dir",
        "--max-new-tokens", "--temperature", "--json",
    }  # fmt: skip
    short = {"--max-new-tokens": "-n", "--temperature": "-t", "--out": "-o"}
    shared = {parameter.opts[0]: parameter for parameter in load_command("eval").params}
    for parameter in load_command(name).params:
        for long, letter in short.items():
            if long in parameter.opts:
                assert letter in parameter.opts
        option = parameter.opts[0]
        if option in known & shared.keys() and option not in ("--limit", "--temperature"):
            assert parameter.help == shared[option].help, option


def test_a_plan_and_its_stored_settings_have_the_options_of_a_run() -> None:
    for option in fields(RunOptions):
        assert option.name in {own.name for own in fields(Plan)}
        assert option.name in {own.name for own in fields(Settings)}
    assert issubclass(Plan, TaskOptions)


def test_models_are_named_as_a_pair_or_one_by_one() -> None:
    ModelOptions().check()
    ModelOptions(pair="tiny").check()
    with pytest.raises(UsageError, match="not both"):
        ModelOptions(pair="tiny", base="x").check()
    with pytest.raises(UsageError, match="needs `base` beside it"):
        ModelOptions(aligned="x").check()
