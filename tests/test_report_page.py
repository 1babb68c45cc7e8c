"""The page of `kad report --html`: its data, and in a real Chromium its filters, pages, keyboard and safety."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import kad
import needs
from kad.cli.main import app
from kad.evaluation.results.page import report_page
from kad.evaluation.results.settings import Settings
from kad.evaluation.results.storage import RunDirectory
from kad.evaluation.results.tables import build_report
from kad.evaluation.tasks.task import TaskInfo
from test_page import axe_findings, tab_stops

browser_test = [pytest.mark.slow, pytest.mark.browser, needs.chromium]
BAD = "</script><img src=x onerror=\"document.title='hacked'\"><!-- kad:script -->\u2028&amp;"
COMMAND = f"kad eval --pair 'my pair' --methods 'base;aligned;dual' --out runs/x {shlex.quote(BAD)}"
TASKS = {"kad_tiny": ("strict", "paper"), "kad_facts": ("right", "behaves")}


def record(method: str, task: str, number: int, mark: float, **changes: Any) -> dict[str, Any]:
    asked = f"Question {number} of {task}"
    return {
        "method": method, "task": task, "question": f"{number:05d}", "sample": 0,
        "marks": dict(zip(TASKS[task], (mark, 1 - mark), strict=True)), "answer": f"answer {number}",
        "prompt": f"<|user|>{asked}<|assistant|>",
        "conversation": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked}],
        "text": f"The answer of {method} is {number}.", "prompt_tokens": 5, "tokens": 9, "finished": True,
        "seconds": 0.5, "drafted": None, "accepted": None, "acceptance_lengths": {}, "deferred_mass": None,
        "acceptance": None, "origins": None,
    } | changes  # fmt: skip


def write_run(folder: Path, records: list[dict[str, Any]], command: str = COMMAND) -> Path:
    rows = {task: len({r["question"] for r in records if r["task"] == task}) for task in TASKS}
    tasks = tuple(TaskInfo(t, n, "test", "embedded", False, 64, 0.0, "abc") for t, n in rows.items() if n)
    methods = tuple(dict.fromkeys(r["method"] for r in records))
    with RunDirectory(folder, Settings(models={}, methods=methods, tasks=tasks, samples=1)) as directory:
        directory.log_session({"command": command, "git": "abc", "versions": {}, "hardware": {}})
        directory.append(records)
    return folder


def records_of(questions: int) -> list[dict[str, Any]]:
    """`aligned` is right on even questions, `base` and dual on all; dual's text has origins, one with an emoji."""
    made = []
    for task in TASKS:
        for number in range(questions):
            made += [record("base", task, number, 1.0), record("aligned", task, number, float(number % 2 == 0))]
            text = f"😀 is {number}, and so on"
            origins = [[3, 0.0], [3, 0.25], [len(text), 1.0]]
            made.append(record("dual:threshold=0.4", task, number, 1.0, text=text, origins=origins))
    return made


def page_of(folder: Path) -> str:
    return report_page(build_report([folder]), [folder])


def data_of(page: str) -> Any:
    text = page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    return json.loads(text)


# ---------------------------------------------------------------------- the data


def test_the_page_holds_every_answer_and_whose_it_is(tmp_path: Path) -> None:
    data = data_of(page_of(write_run(tmp_path / "run", records_of(3))))
    assert [task["name"] for task in data["tasks"]] == list(TASKS)
    assert [len(question["answers"]) for question in data["questions"]] == [3] * 6
    base, aligned, dual = data["questions"][1]["answers"]
    assert base["origins"] == [[len(base["text"]), 1.0]]
    assert aligned["origins"] == [[len(aligned["text"]), 0.0]]
    assert aligned["marks"] == [0.0, 1.0]
    assert dual["origins"] == [[4, 0.0], [3, 0.25], [11, 1.0]], "an emoji is two units of JavaScript's texts"
    tables = {table["task"]: table for table in data["tables"]}
    assert tables["kad_tiny"]["rows"][1][0] == "aligned"
    assert len(data["plots"]) == 2
    assert [method["rule"] for method in data["methods"]] == ["base_only", "aligned_only", "dual:threshold=0.4"]
    assert data["methods"][0]["models"] == [["pair", "my pair"]]


def test_a_run_keeps_whose_each_part_of_an_answer_is(tmp_path: Path) -> None:
    """As a trace of the same answer says it, and only where it was measured."""
    options = [
        "--tasks",
        "kad_tiny",
        "--limit",
        "2",
        "--methods",
        "pair;implicit_reward",
        "--out",
        str(tmp_path / "run"),
    ]
    assert CliRunner().invoke(app, ["eval", *options]).exit_code == 0
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    pair = kad.load("tiny")
    for sample in samples:
        if sample["method"] == "implicit_reward":
            assert sample["origins"] is None
            continue
        system, user = (message["content"] for message in sample["conversation"])
        positions = kad.trace(pair, user, sample["text"], system=system).positions
        expected = [share for position in positions for share in [position.base_share] * len(position.text)]
        found = [share for length, share in sample["origins"] for _ in range(length)]
        assert found == pytest.approx(expected, abs=2e-3)
        assert len(set(found)) > 2


@pytest.mark.parametrize(
    ("command", "models"),
    [
        ("kad eval --base ./big --aligned=./small --limit 3", [["base", "./big"], ["aligned", "./small"]]),
        ("kad eval --pair 'a", None),
        ("script.py", None),
        ("kad eval --pair p --reference r", [["pair", "p"]]),
    ],
)
def test_which_models_a_trace_is_made_of(tmp_path: Path, command: str, models: Any) -> None:
    run = write_run(tmp_path / "run", [record("dual", "kad_tiny", 0, 1.0)], command)
    assert data_of(page_of(run))["methods"][0]["models"] == models


def test_several_runs_and_old_records(tmp_path: Path) -> None:
    """Records of before have no conversation and no origins: their questions are their prompts, without a command."""
    old = [{k: v for k, v in record("oracle=x", "kad_tiny", 0, 1.0).items() if k not in ("conversation", "origins")}]
    folders = [write_run(tmp_path / "old", old), write_run(tmp_path / "new", records_of(1))]
    data = data_of(report_page(build_report(folders), folders))
    assert [method["name"] for method in data["methods"]][:2] == ["old/oracle=x", "new/base"]
    assert data["methods"][0]["rule"] is None
    assert data["questions"][0]["asked"].startswith("<|user|>")
    assert not data["questions"][0]["single"]


def test_the_command(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", records_of(2))
    call = lambda *more: CliRunner().invoke(app, ["report", str(run), *map(str, more)])  # noqa: E731
    done = call("--html", tmp_path / "report.html", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == "kad-report/2"
    assert (tmp_path / "report.html").read_text().count("<h1>") == 1
    assert "is written as .html" in call("--html", tmp_path / "report.pdf").stderr
    assert call("--html", tmp_path / "none" / "report.html").exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]


@pytest.mark.parametrize(
    "damage", [{"text": None}, {"origins": [["x"]]}, {"origins": [[3, float("nan")]]}, {"tokens": "x"}]
)
def test_a_damaged_run_leaves_no_page(tmp_path: Path, damage: dict[str, Any]) -> None:
    made = [record("dual", "kad_tiny", 0, 1.0), record("dual", "kad_tiny", 1, 1.0, **damage)]
    if "text" in damage:
        del made[1]["text"]
    run = write_run(tmp_path / "run", made)
    done = CliRunner().invoke(app, ["report", str(run), "--html", str(tmp_path / "report.html")])
    assert (done.exit_code, "is damaged" in done.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# ---------------------------------------------------------------------- the page


@dataclass
class Opened:
    page: Any
    requests: list[str]
    console: list[str]


@pytest.fixture
def open_report(browser: Any, tmp_path: Path) -> Iterator[Any]:
    contexts = []

    def open_(run: Path, width: int = 1280, scheme: str = "light") -> Opened:
        path = tmp_path / "report.html"
        path.write_text(page_of(run), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        opened = Opened(context.new_page(), [], [])
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("console", lambda message: opened.console.append(message.text))
        opened.page.on("pageerror", lambda error: opened.console.append(str(error)))
        opened.page.set_default_timeout(60_000)
        opened.page.goto(path.as_uri())
        return opened

    yield open_
    for context in contexts:
        context.close()


def shown(page: Any) -> list[str]:
    return page.locator(".question h3").all_inner_texts()


class TestInBrowser:
    pytestmark = browser_test

    def test_filters(self, open_report: Any, tmp_path: Path) -> None:
        page = open_report(write_run(tmp_path / "run", records_of(6))).page
        assert len(shown(page)) == 12
        page.get_by_label("only where methods disagree").check()
        odd = [f"{task} {number:05d}" for task in TASKS for number in (1, 3, 5)]
        assert shown(page) == odd
        page.locator("select.by-task").select_option("kad_facts")
        assert shown(page) == odd[3:]
        page.locator("select.by-mark").select_option("right")
        page.locator("select.by-method").select_option("aligned")
        assert shown(page) == []
        assert page.get_by_role("status").inner_text() == "No question is like this; 12 in all"
        page.locator("select.by-metric").select_option("behaves")
        assert shown(page) == odd[3:], "by the other metric it is right just there"
        page.get_by_label("only where methods disagree").uncheck()
        page.locator("select.by-mark").select_option("wrong")
        assert shown(page) == [f"kad_facts {number:05d}" for number in (0, 2, 4)]

    def test_pages_and_keyboard(self, open_report: Any, tmp_path: Path) -> None:
        page = open_report(write_run(tmp_path / "run", records_of(25))).page
        assert (len(shown(page)), page.get_by_role("status").inner_text()) == (20, "Questions 1 to 20 of 50; 50 in all")
        page.get_by_role("group", name="below").get_by_role("button", name="Later").press("Enter")
        assert shown(page)[0] == "kad_tiny 00020"
        assert page.evaluate("document.activeElement.textContent") == "Answers"
        assert page.get_by_role("status").is_visible()
        later = page.get_by_role("group", name="above").get_by_role("button", name="Later")
        later.press("Enter")
        assert len(shown(page)) == 10
        assert later.is_disabled()
        page.get_by_role("group", name="above").get_by_role("button", name="Earlier").press("Enter")
        assert shown(page)[-1] == "kad_facts 00014"

    def test_the_tab_key_leads_to_everything(self, open_report: Any, tmp_path: Path) -> None:
        page = open_report(write_run(tmp_path / "run", records_of(1))).page
        page.get_by_role("button", name="Trace").first.press("Enter")
        stops = tab_stops(page)
        enabled = "e => e.filter(x => !x.disabled && x.checkVisibility()).length"
        assert len(stops) == page.eval_on_selector_all("button, input, select, [tabindex='0']", enabled)
        assert all(outline != "none" for _, outline in stops)

    def test_answers_have_the_colors_of_their_models(self, open_report: Any, tmp_path: Path) -> None:
        page = open_report(write_run(tmp_path / "run", records_of(1))).page
        texts = page.locator(".question").first.locator(".text")
        shares = "e => [...e.querySelectorAll('.token')].map(t => [t.textContent, t.style.getPropertyValue('--share')])"
        assert texts.nth(0).evaluate(shares) == [["The answer of base is 0.", "1"]]
        assert texts.nth(2).evaluate(shares) == [["😀 i", "0"], ["s 0", "0.25"], [", and so on", "1"]]
        images = page.locator(".plots img")
        assert images.count() == 2
        assert all(images.nth(at).evaluate("i => i.complete && i.naturalWidth > 0") for at in range(2))

    def test_texts_of_strangers_stay_texts(self, open_report: Any, tmp_path: Path) -> None:
        """In questions, answers, names, marks' tasks and the run's command: shown as they are, and nothing runs."""
        talk = [{"role": "user", "content": BAD}]
        hostile = [
            record("aligned", "kad_tiny", 0, 1.0, question=BAD, answer=BAD, text=BAD, conversation=talk),
            record(f"oracle={BAD}", "kad_tiny", 0, 0.0, question=BAD, answer=BAD, text=BAD, conversation=talk),
        ]
        opened = open_report(write_run(tmp_path / "run", hostile))
        page = opened.page
        page.wait_for_timeout(200)
        assert page.title() == "kad report · run"
        assert opened.console == []
        assert [url for url in opened.requests if not url.startswith(("file:", "data:image/"))] == []
        assert page.locator(".asked").evaluate("e => e.textContent") == BAD
        assert page.locator(".text").first.evaluate("e => e.textContent") == BAD
        assert page.locator("article h4").nth(1).inner_text().startswith("oracle=</script>")
        assert page.locator("main img:not(.plots img)").count() == 0

    @pytest.mark.parametrize(
        "text", ["it's $(touch ran) `touch ran` \"; touch ran\n\\", "-n -e %s%d 'x'", "\u00e9 ${HOME} !! && touch ran"]
    )
    def test_the_command_gives_kad_what_was_asked_and_answered(
        self, open_report: Any, tmp_path: Path, text: str
    ) -> None:
        talk = [{"role": "system", "content": text}, {"role": "user", "content": text}]
        page = open_report(
            write_run(tmp_path / "run", [record("dual", "kad_tiny", 0, 1.0, text=text, conversation=talk)])
        ).page
        page.get_by_role("button", name="Trace").click()
        command = page.locator(".command code").evaluate("e => e.textContent")
        stub = tmp_path / "kad"
        stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > words\ncat > answer\n')
        stub.chmod(0o755)
        subprocess.run(["bash", "-c", f"PATH=.:$PATH\n{command}"], cwd=tmp_path, check=True)
        assert (tmp_path / "answer").read_text() == text
        words = ["trace", "--pair", "my pair", "--rule", "dual:threshold=0.4", "--system", text, "--no-thinking"]
        words += ["--text", "/dev/stdin", "-o", "trace.html", "--", text]
        assert (tmp_path / "words").read_text() == "".join(f"{word}\n" for word in words)
        assert not (tmp_path / "ran").exists()
        assert shlex.split(command)[-1] == text

    def test_where_there_is_no_command(self, open_report: Any, tmp_path: Path) -> None:
        """Control characters act when they are pasted; an oracle is no composition; examples are not taken."""
        talk = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
        records = [
            record("dual", "kad_tiny", 0, 1.0, text="a\x1b[2Jb"),
            record("dual", "kad_tiny", 1, 1.0, conversation=talk),
            record("dual", "kad_tiny", 2, 1.0, text=" "),
            record("oracle=x", "kad_tiny", 3, 1.0),
        ]
        page = open_report(write_run(tmp_path / "run", records)).page
        for at, why in enumerate(("control character", "with examples", "is empty", "answered alone")):
            page.get_by_role("button", name="Trace").nth(at).click()
            assert why in page.locator(".answer .note").nth(at).inner_text()
        assert page.locator(".command").count() == 0

    @needs.axe
    @pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light")])
    def test_axe_finds_nothing_serious(self, open_report: Any, tmp_path: Path, width: int, scheme: str) -> None:
        page = open_report(write_run(tmp_path / "run", records_of(3)), width, scheme).page
        page.get_by_role("button", name="Trace").first.click()
        assert axe_findings(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.getElementById('theme').replaceWith(document.createElement('button'))")
        assert axe_findings(page) != [], "it sees nothing"

    def test_ten_thousand_answers_stay_usable(self, open_report: Any, tmp_path: Path) -> None:
        made = []
        text = "The first step is to add the numbers, and the second one is to subtract. " * 8
        origins = [[4, round(at % 11 / 10, 1)] for at in range(len(text) // 4)]
        for number in range(2500):
            for method in ("base", "aligned", "dual:threshold=0.4", "primal:budget=0.9"):
                mark = float(number % 2 == 0 or ":" in method)
                own = {"text": text, "origins": origins if ":" in method else None}
                made.append(record(method, "kad_tiny", number, mark, **own))
        page = open_report(write_run(tmp_path / "run", made)).page
        page.locator(".question").first.wait_for()
        ready = page.evaluate("performance.timing.domComplete - performance.timing.navigationStart")
        nodes = page.evaluate("document.querySelectorAll('*').length")
        timed = page.evaluate("""() => { const start = performance.now();
            document.querySelector('.disagree').click(); document.body.getBoundingClientRect();
            return performance.now() - start; }""")
        turned = page.evaluate("""() => { const start = performance.now();
            document.querySelectorAll('.pager button')[1].click(); document.body.getBoundingClientRect();
            return performance.now() - start; }""")
        size = (tmp_path / "report.html").stat().st_size / 1e6
        assert page.get_by_role("status").inner_text() == "Questions 21 to 40 of 1,250; 2,500 in all"
        assert nodes < 30_000
        assert ready < 20_000
        assert max(timed, turned) < 2000, (timed, turned)
        assert size < 40, "megabytes"
