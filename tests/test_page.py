"""The page of a trace in a real Chromium: its numbers, its slider, its keyboard, its looks, and no network."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import needs
from kad import palette
from kad.cli.main import load_command
from kad.method.composition import acceptance, deferred_mass, origin_shares
from kad.method.rules.describe import family
from kad.rules import parse_rule
from kad.text.answer import Piece
from kad.tracing.positions import Position
from kad.tracing.schema import Trace
from kad.tracing.tracer import record, with_event

pytestmark = [pytest.mark.slow, pytest.mark.browser, needs.chromium]
HOSTILE = {3: "<script>alert(1)</script>", 4: "</script><img src=x onerror=alert(1)>", 5: "&amp;", 6: "\u2028", 7: "\n"}


def logits(seed: int, rows: int, vocab: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)


@dataclass
class Sample:
    """A trace, and the tensors it was made of."""

    base: torch.Tensor
    aligned: torch.Tensor
    tokens: torch.Tensor
    trace: Trace = field(init=False)
    rule: str = "dual:threshold=0.4"

    def __post_init__(self) -> None:
        rule = parse_rule(self.rule)
        vocabulary = {token: HOSTILE.get(token, f" w{token}") for token in range(self.base.shape[-1])}
        positions = record(rule, self.tokens, self.base, self.aligned)
        positions = [replace(position, text=vocabulary[position.token]) for position in positions]
        events = [Piece(3, "", "accepted"), Piece(4, "", "corrected", 9, (10, 11)), Piece(5, "", "bonus")]
        positions[:3] = map(with_event, positions[:3], events)
        self.trace = Trace(
            rule=rule.to_dict(), rule_text=str(rule), family=family(type(rule)),
            models={"base": "big", "aligned": "small"}, generation={"source": "generated", "do_sample": False},
            deferral_temperature=1.0, prompt="<b>Question</b>", vocabulary=vocabulary, positions=tuple(positions),
            kad_version="0",
        )  # fmt: skip

    def shares(self, rule: str) -> list[float]:
        from_base, _ = origin_shares(parse_rule(rule), self.base, self.aligned)
        return from_base.gather(-1, self.tokens[:, None]).squeeze(-1).tolist()


def make_sample(rows: int = 40, vocab: int = 60) -> Sample:
    base, aligned = logits(0, rows, vocab), logits(1, rows, vocab)
    tokens = torch.where(torch.arange(rows) % 3 == 0, aligned.argmax(-1), base.argmax(-1))
    tokens[:5] = torch.tensor([3, 4, 5, 6, 7])
    return Sample(base, aligned, tokens)


@pytest.fixture(scope="module")
def sample() -> Sample:
    return make_sample()


@dataclass
class Opened:
    page: Any
    requests: list[str]
    console: list[str]
    started: float = 0.0
    devtools: Any = None

    def cpu_seconds(self) -> float:
        """CPU time of the page's process so far."""
        metrics = self.devtools.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "ProcessTime")


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    contexts = []

    def open_(
        *traces: Trace, width: int = 1280, height: int = 860, scheme: str = "light", metrics: bool = False, at: str = ""
    ) -> Opened:
        path = tmp_path / "trace.html"
        path.write_text(traces[0].to_html(*traces[1:]), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        opened = Opened(context.new_page(), [], [])
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("console", lambda message: opened.console.append(message.text))
        opened.page.on("pageerror", lambda error: opened.console.append(str(error)))
        # Browsers answer at once; half a minute is not enough only where far too much runs beside this test.
        opened.page.set_default_timeout(120_000)
        if metrics:
            opened.devtools = context.new_cdp_session(opened.page)
            opened.devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        opened.started = time.perf_counter()
        opened.page.goto(path.as_uri() + at)
        return opened

    yield open_
    for context in contexts:
        context.close()


def read_panel(page: Any) -> dict[str, str]:
    return {
        name: page.locator(f"#panel dd[data-name={name}]").inner_text() for name in ("alpha", "tau", "share", "beta")
    }


def set_slider(page: Any, rule: str, value: float) -> None:
    page.select_option("select.rule", rule)
    page.eval_on_selector("input.value", "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)


def shown_shares(page: Any) -> list[float]:
    return page.eval_on_selector_all(
        ".token", "tokens => tokens.map(t => t.dataset.share === '' ? -1 : +t.dataset.share)"
    )


def test_opens_from_disk_alone_and_in_silence(open_page: Any, sample: Sample) -> None:
    opened = open_page(sample.trace)
    for index in range(8):
        opened.page.locator(".token").nth(index).hover()
    set_slider(opened.page, "primal", 0.5)
    opened.page.click("#theme")
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in opened.requests if url.startswith("file:")]) == 1
    assert opened.console == []


def test_model_text_is_text(open_page: Any, sample: Sample) -> None:
    page = open_page(sample.trace).page
    for index, token in enumerate([3, 4, 5]):
        assert page.locator(".token").nth(index).text_content() == HOSTILE[token]
    assert page.locator(".text img, .text script, .prompt b, #panel script").count() == 0
    assert page.locator(".prompt p").text_content() == "<b>Question</b>"


def test_pointer_shows_the_numbers_of_the_token(open_page: Any, sample: Sample) -> None:
    page = open_page(sample.trace).page
    for index in (8, 9, 12, 20):
        page.locator(".token").nth(index).hover()
        position = sample.trace.positions[index]
        panel = read_panel(page)
        assert panel["alpha"] == f"{position.deferred_mass:.3f}"
        assert panel["tau"] == "0.400"
        assert panel["beta"] == f"{position.acceptance:.3f}"
        assert float(panel["share"].rstrip(" %")) == pytest.approx(100 * position.base_share, abs=0.51)
        row = page.locator("#panel tr.chosen td")
        values = [float(row.nth(column).get_attribute("data-value")) for column in range(3)]
        assert values == pytest.approx([position.p, position.p_aligned, position.pi], rel=1e-5)
        assert f"{index + 1} of 40" in page.locator("#panel h2").inner_text()


def test_deferred_mass_is_hatched(open_page: Any, sample: Sample) -> None:
    page = open_page(sample.trace).page
    index = next(i for i, position in enumerate(sample.trace.positions) if 0.2 < position.deferred_mass < 0.6)
    page.locator(".token").nth(index).hover()
    shown = page.eval_on_selector_all(
        "#panel tbody tr:not(.rest) td:nth-child(2)",
        "cells => cells.map(c => [+c.dataset.value, ...[...c.querySelectorAll('i')].map(i => i.className)])",
    )
    for p, *kinds in shown:
        assert kinds == (["base"] if p >= 0.4 else ["deferred"] if p >= 0.0005 else [])
    assert any(kinds == ["deferred"] for _, *kinds in shown)


def test_keyboard(open_page: Any, sample: Sample) -> None:
    page = open_page(sample.trace).page
    chosen = lambda: int(page.locator(".token[aria-current]").get_attribute("data-index"))  # noqa: E731
    page.locator(".token").nth(0).click()
    for key, expected in [
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", 39),
        ("Home", 0),
        ("ArrowLeft", 0),
    ]:
        page.keyboard.press(key)
        assert chosen() == expected
    page.keyboard.press("ArrowDown")
    below = chosen()
    tops = page.eval_on_selector_all(".token", "tokens => tokens.map(t => t.getClientRects()[0].top)")
    assert tops[below] > tops[0]
    page.keyboard.press("ArrowUp")
    assert tops[chosen()] < tops[below]
    focused = page.evaluate(
        "() => [document.activeElement.dataset.index, document.activeElement.getAttribute('aria-label')]"
    )
    assert int(focused[0]) == chosen()
    assert "Kept:" in focused[1] or "Deferred:" in focused[1]
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    assert page.locator(".token[tabindex='0']").count() == 1


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        ("dual", [0.05, 0.3, 0.6, 1.0]),
        ("primal", [0.3, 0.7, 0.95, 1.0]),
        ("nudging", [0.2, 0.5, 0.9]),
        ("confidence_bet", [0.0, 0.2, 0.5]),
        ("relative", [0.0, 0.25, 0.6]),
    ],
)
def test_slider_recolors_as_the_rule_would(open_page: Any, sample: Sample, rule: str, values: list[float]) -> None:
    page = open_page(sample.trace).page
    parameter = {"dual": "threshold", "primal": "budget", "nudging": "threshold"}.get(rule, "margin")
    for value in values:
        set_slider(page, rule, value)
        text = f"{rule}:{parameter}={value}"
        shown, expected = shown_shares(page), sample.shares(text)
        decided = [(a, b) for a, b in zip(shown, expected, strict=True) if a >= 0]
        assert [a for a, _ in decided] == pytest.approx([b for _, b in decided], abs=2e-3)
        taus = torch.tensor([p.tau for p in record(parse_rule(text), sample.tokens, sample.base, sample.aligned)])
        undecided = int(((taus > 0) & (taus < 0.01)).sum())
        assert len(shown) - len(decided) == undecided
        page.locator(".token").nth(8).hover()
        if shown[8] >= 0:
            panel = read_panel(page)
            models = (parse_rule(text), sample.base[8], sample.aligned[8])
            assert float(panel["alpha"]) == pytest.approx(float(deferred_mass(*models)), abs=1e-3)
            assert float(panel["beta"]) == pytest.approx(float(acceptance(*models)), abs=1e-3)


def test_slider_says_what_greedy_would_change_and_comes_back(open_page: Any, sample: Sample) -> None:
    page = open_page(sample.trace).page
    before = shown_shares(page)
    set_slider(page, "dual", 1.0)
    differs = (sample.aligned.argmax(-1) != sample.tokens).nonzero().squeeze(-1).tolist()
    assert page.locator(".token.differs").count() == len(differs)
    verdict = page.locator(".verdict").inner_text()
    assert f"At {len(differs)} the most probable token is another one, first at {differs[0] + 1}" in verdict
    assert "not regenerated" in page.locator(".what-if > .note").inner_text()
    page.click(".reset")
    assert shown_shares(page) == before
    assert page.locator(".token.differs").count() == 0


MEASURES = {
    "surprisal": lambda position: -math.log(position.pi),
    "entropy": lambda position: position.entropy,
    "divergence": lambda position: position.divergence,
    "rank": lambda position: position.rank,
}


@pytest.mark.parametrize("measure", MEASURES)
def test_tokens_are_colored_by_other_measures(open_page: Any, sample: Sample, measure: str) -> None:
    page = open_page(sample.trace).page
    page.select_option("select.measure", measure)
    shown = page.eval_on_selector_all(".token", "tokens => tokens.map(t => +t.dataset.value)")
    expected = [MEASURES[measure](position) for position in sample.trace.positions]
    assert shown == pytest.approx(expected, rel=1e-5)
    page.locator(".token").nth(12).hover()
    said = page.locator(f"#panel dd[data-name={measure}]").inner_text()
    assert float(said) == pytest.approx(expected[12], abs=5.1e-4)
    colors = page.eval_on_selector_all(".token", "tokens => tokens.map(t => getComputedStyle(t).backgroundColor)")
    assert colors[shown.index(min(shown))] != colors[shown.index(max(shown))]


def surest(positions: Sequence[Position], winner: str, loser: str) -> list[int]:
    """Where the token is the first choice of one model and not of the other, and how sure of its own that one was."""
    found = {}
    for index, position in enumerate(positions):
        first = {of: max(position.candidates, key=lambda row: getattr(row, of)) for of in (winner, loser)}
        if first[winner].token == position.token != first[loser].token:
            found[index] = getattr(first[loser], loser) - getattr(position, loser)
    return sorted(found, key=lambda index: (-found[index], index))


def test_the_page_opens_on_the_token_that_matters_and_lists_the_others(open_page: Any, sample: Sample) -> None:
    page = open_page(sample.trace).page
    at = lambda: int(page.locator(".token[aria-current]").get_attribute("data-index"))  # noqa: E731
    knowledge, manners = (
        surest(sample.trace.positions, *models) for models in (("p", "p_aligned"), ("p_aligned", "p"))
    )
    assert len(knowledge) > 8
    assert len(manners) > 8
    assert at() == knowledge[0]
    for name, order in (("base overruled aligned", knowledge), ("aligned overruled base", manners)):
        buttons = page.get_by_role("region", name=name).get_by_role("button")
        assert [int(text.split()[0]) - 1 for text in buttons.all_inner_texts()] == order[:8]
        buttons.nth(2).click()
        assert at() == order[2]
        assert page.evaluate("document.activeElement.dataset.index") == str(order[2])


def test_a_link_leads_to_a_token(open_page: Any, sample: Sample) -> None:
    page = open_page(sample.trace, at="#18").page
    assert page.locator(".token[aria-current]").get_attribute("data-index") == "17"
    page.locator(".token").nth(5).click()
    assert page.url.endswith("#6")
    assert page.locator("#panel h2 a").get_attribute("href") == "#6"


def axe_findings(page: Any) -> list[str]:
    """What keeps somebody from using a page, as axe-core sees it: its serious and critical findings."""
    page.evaluate(needs.AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{rule['id']}: {node['html'][:120]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.slow
@needs.axe
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light")])
def test_axe_finds_nothing_serious(open_page: Any, sample: Sample, width: int, scheme: str) -> None:
    page = open_page(sample.trace, Sample(sample.base, sample.aligned, sample.tokens, rule="aligned_only").trace).page
    page.set_viewport_size({"width": width, "height": 860})
    page.emulate_media(color_scheme=scheme)
    page.locator(".token").nth(4).click()
    set_slider(page, "dual", 1.0)
    assert axe_findings(page) == []
    page.select_option("select.measure", "entropy")
    assert axe_findings(page) == []
    page.evaluate("document.getElementById('theme').replaceWith(document.createElement('button'))")
    assert axe_findings(page) != [], "it sees nothing"


# What Tab stops at, in its order, until it is back at the page itself.
STOP = """() => { const at = document.activeElement;
    return at === document.body ? null : [at.id || at.className || at.tagName, getComputedStyle(at).outlineStyle]; }"""


def tab_stops(page: Any) -> list[list[str]]:
    stops: list[list[str]] = []
    page.evaluate("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")
    while len(stops) < 100:
        page.keyboard.press("Tab")
        stop = page.evaluate(STOP)
        if stop is None:
            return stops
        stops.append(stop)
    raise AssertionError(f"Tab never leaves the page: {stops[-3:]}")


def test_the_tab_key_alone_leads_to_everything_once(open_page: Any, sample: Sample) -> None:
    page = open_page(sample.trace).page
    stops = tab_stops(page)
    enabled = "e => e.filter(x => !x.disabled && x.checkVisibility()).length"
    controls = page.eval_on_selector_all("a[href], button, input, select, summary, [tabindex='0']:not(button)", enabled)
    assert len(stops) == controls
    assert all(outline != "none" for _, outline in stops), "a place of the keyboard that cannot be seen"
    assert len([kind for kind, _ in stops if kind.startswith("token")]) == 1


def test_the_answer_is_text_that_is_read_and_copied_as_it_is(open_page: Any, sample: Sample) -> None:
    opened = open_page(sample.trace)
    page, text = opened.page, opened.page.locator(".text")
    answer = "".join(position.text for position in sample.trace.positions)
    assert text.evaluate("e => [...e.querySelectorAll('.token')].map(t => t.textContent).join('')") == answer
    copied = text.evaluate("e => { getSelection().selectAllChildren(e); return getSelection().toString(); }")
    assert copied == answer
    page.evaluate("getSelection().empty()")
    # For a reader of the screen: plain text, but for the one token in focus, which names its blanks.
    page.locator(".token").nth(21).click()
    snapshot = text.aria_snapshot()
    assert snapshot.count("button") == 1
    assert f"space {sample.trace.positions[21].text.strip()}. " in snapshot
    page.locator(".token").nth(4).click()
    assert page.locator(".token").nth(4).get_attribute("aria-label").startswith("line break. ")


def test_a_click_holds_the_token(open_page: Any, sample: Sample) -> None:
    page = open_page(sample.trace).page
    chosen = lambda: page.locator(".token[aria-current]").get_attribute("data-index")  # noqa: E731
    page.locator(".token").nth(9).click()
    page.locator(".token").nth(20).hover()
    assert chosen() == "9"
    page.keyboard.press("Escape")
    page.locator(".token").nth(21).hover()
    assert chosen() == "21"


def test_files(open_page: Any, sample: Sample, tmp_path: Path) -> None:
    """JSON and CSV hold the trace, the SVG its picture: well-formed, with the text of the models as text."""
    opened = open_page(sample.trace)
    files = {}
    for name in ("JSON", "CSV", "SVG"):
        with opened.page.expect_download() as download:
            opened.page.get_by_role("button", name=name, exact=True).click()
        files[name] = Path(download.value.path()).read_text(encoding="utf-8")
        assert download.value.suggested_filename == f"trace.{name.lower()}"
    assert Trace.from_json(files["JSON"]) == sample.trace
    rows = list(csv.DictReader(io.StringIO(files["CSV"])))
    assert [json.loads(row["text"]) for row in rows] == [position.text for position in sample.trace.positions]
    assert [float(row["divergence"]) for row in rows] == [position.divergence for position in sample.trace.positions]
    assert not [row for row in files["CSV"].splitlines() if row[0] in "=+-@"]
    picture = ElementTree.fromstring(files["SVG"])
    shown = "".join(text.text for text in picture.iter("{http://www.w3.org/2000/svg}text"))
    assert HOSTILE[3] in shown
    assert HOSTILE[4] in shown
    assert not list(picture.iter("{http://www.w3.org/2000/svg}script"))
    assert opened.console == []


def test_two_traces_stand_side_by_side(open_page: Any, sample: Sample) -> None:
    other_tokens = sample.tokens.clone()
    other_tokens[25:] = sample.aligned.argmax(-1)[25:]
    other = Sample(sample.base, sample.aligned, other_tokens, rule="aligned_only").trace
    parts = next(i for i in range(40) if sample.tokens[i] != other_tokens[i])
    opened = open_page(sample.trace, other, width=1440)
    page = opened.page
    readings = page.locator(".reading")
    assert page.locator(".token[aria-current]").get_attribute("data-index") == str(parts)
    boxes = [readings.nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
    assert page.locator(".parted").inner_text() == f"The texts part at token {parts + 1}."
    assert [t.get_attribute("data-index") for t in page.locator(".parting").all()] == [str(parts)] * 2
    readings.nth(1).locator(".token").nth(8).click()
    assert page.locator("#panel dd[data-name=tau]").inner_text() == "none kept"
    assert page.locator(".token[aria-current]").count() == 1
    assert page.url.endswith("#2.9")
    page.select_option("select.measure", "entropy")
    assert page.locator(".token.heat").count() == 80
    assert opened.console == []


def test_a_rule_without_a_slider_stands_alone(open_page: Any, sample: Sample) -> None:
    page = open_page(Sample(sample.base, sample.aligned, sample.tokens, rule="base_only").trace).page
    assert page.locator("select.rule").evaluate("e => e.selectedOptions[0].textContent") == "base_only, as recorded"
    assert not page.locator(".slider").is_visible()
    page.select_option("select.rule", "primal")
    assert page.locator(".slider").is_visible()
    assert page.get_by_label("budget b").count() == 1
    page.click(".reset")
    assert not page.locator(".slider").is_visible()


def test_the_command_asks_again_with_the_rule_shown(open_page: Any, sample: Sample) -> None:
    asked = {"prompt": "Why isn't it $HOME?", "pair": "tiny", "system": "Be brief."}
    trace = replace(sample.trace, generation={**sample.trace.generation, "asked": asked})
    opened = open_page(trace)
    shown = lambda: shlex.split(opened.page.locator(".command code").inner_text())  # noqa: E731
    expected = ["kad", "trace", "--pair", "tiny", "--rule", "dual:threshold=0.4", "--system", "Be brief."]
    expected += ["--temperature", "0", "-o", "trace.html", "--", asked["prompt"]]
    assert shown() == expected
    set_slider(opened.page, "primal", 0.25)
    assert shown()[5] == "primal:budget=0.25"
    known = {option for parameter in load_command("trace").params for option in parameter.opts}
    assert {word for word in expected if word.startswith("-")} <= known | {"--"}


RUN = "$(touch ran)`touch ran`'; touch ran; #\ntouch ran"


def test_a_copied_command_of_somebody_elses_trace_runs_kad_alone(
    open_page: Any, sample: Sample, tmp_path: Path
) -> None:
    """Each field of the trace that reaches the command, with what a shell would run; in a real shell."""
    (tmp_path / "kad").write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done\n', encoding="utf-8")
    (tmp_path / "kad").chmod(0o755)
    everything = {"prompt": f"--import=x {RUN}", "system": RUN, "base_prompt": RUN, "thinking": "constructor"}
    trace = replace(
        sample.trace,
        models={"base": RUN, "aligned": "small", f"base x; {RUN}": "y", "import": "x"},
        rule_text=RUN, deferral_temperature=RUN,
        generation={"source": "generated", "do_sample": True, "temperature": RUN, "seed": RUN, "asked": everything},
    )  # fmt: skip
    command = open_page(trace).page.locator(".command code").text_content()  # as the button copies it
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=True)
    words = done.stdout.decode().split("\0")[:-1]
    assert not (tmp_path / "ran").exists()
    names = ["base", "aligned", "rule", "base-prompt", "system", "temperature", "seed", "deferral-temperature"]
    values = [RUN, "small", *[RUN] * 6]
    options = [word for name, value in zip(names, values, strict=True) for word in (f"--{name}", value)]
    assert words == ["trace", *options, "-o", "trace.html", "--", f"--import=x {RUN}"]


def test_a_question_with_control_characters_gives_no_command(open_page: Any, sample: Sample) -> None:
    """Pasted into a terminal, Ctrl-C ends the line before its quotes do."""
    asked = {"prompt": "x\x03\ntouch ran\n", "pair": "tiny"}
    trace = replace(sample.trace, generation={**sample.trace.generation, "asked": asked})
    assert not open_page(trace).page.locator(".command").is_visible()


def test_the_panel_folds_on_a_phone(open_page: Any, sample: Sample) -> None:
    page = open_page(sample.trace, width=375).page
    assert not page.locator("#panel").is_visible()
    page.locator(".token").nth(3).click()
    assert page.locator("#panel").is_visible()
    page.locator(".fold").click()
    assert not page.locator("#panel").is_visible()
    assert page.locator(".fold").get_attribute("aria-expanded") == "false"
    page.locator(".fold").click()
    assert page.locator("#panel").is_visible()


# Whether a token is what one sees at its place.
SEEN = """index => { const box = document.querySelectorAll(".token")[index].getClientRects()[0];
    const seen = document.elementFromPoint(box.left + 2, box.top + box.height / 2);
    return seen?.closest(".token")?.dataset.index === `${index}`; }"""


@pytest.mark.parametrize(("width", "height"), [(375, 667), (640, 430)])
def test_a_phone_and_a_page_at_200_percent_show_the_text(
    open_page: Any, sample: Sample, width: int, height: int
) -> None:
    page = open_page(sample.trace, width=width, height=height).page
    assert not page.locator("#panel").is_visible()
    page.locator(".token").nth(4).scroll_into_view_if_needed()
    assert page.evaluate(SEEN, 4)
    page.locator(".token").nth(4).click()
    assert page.locator("#panel").is_visible()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert page.evaluate(SEEN, 34), "the panel covers the token that it is about"
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_paper_has_the_text_its_colors_and_the_panel(open_page: Any, sample: Sample) -> None:
    page = open_page(sample.trace, scheme="dark").page
    page.locator(".token").nth(8).click()
    page.emulate_media(media="print", color_scheme="dark")
    style = "e => { const s = getComputedStyle(e); return [s.printColorAdjust, s.maxHeight, s.color]; }"
    assert page.eval_on_selector(".text", style)[:2] == ["exact", "none"]
    assert page.eval_on_selector("body", style)[2] == "rgb(29, 31, 35)", "the ink of the light theme"
    assert "gradient" in page.eval_on_selector(".token", "e => getComputedStyle(e).backgroundImage")
    text, panel = (page.locator(place).bounding_box() for place in (".text", "#panel"))
    assert panel["y"] >= text["y"] + text["height"]
    assert panel["width"] >= 0.9 * page.evaluate("document.body.clientWidth")
    assert not page.locator("#theme").is_visible()
    assert not page.locator(".what-if").is_visible()


def test_old_traces_have_no_measures_of_today(open_page: Any, sample: Sample) -> None:
    none = {"rank": None, "entropy": None, "divergence": None, "overlap": None}
    old = replace(sample.trace, positions=tuple(replace(position, **none) for position in sample.trace.positions))
    opened = open_page(old)
    opened.page.select_option("select.measure", "divergence")
    assert opened.page.locator(".token.unknown").count() == 40
    set_slider(opened.page, "nudging", 0.01)
    assert read_panel(opened.page)["beta"] == "–"
    assert opened.console == []


def test_mass_of_no_token_is_deferred_and_leaves_measures_unknown(open_page: Any, sample: Sample) -> None:
    positions = list(sample.trace.positions)
    rows = tuple(replace(row, p=0.7 * row.p) for row in positions[8].candidates)
    positions[8] = replace(positions[8], p=0.7 * positions[8].p, candidates=rows, nobody=0.3)
    page = open_page(replace(sample.trace, positions=tuple(positions))).page
    for measure in ("entropy", "divergence"):
        page.select_option("select.measure", measure)
        unknown = page.eval_on_selector_all(".token.unknown", "tokens => tokens.map(t => t.dataset.index)")
        assert unknown == ["8"]
    deferred = {value: 1 - sum(row.p for row in rows if row.p >= value) for value in (0.1, 0.9)}
    for rule, value, alpha in (("nudging", 0.01, 0.3), *(("dual", *found) for found in deferred.items())):
        set_slider(page, rule, value)
        page.locator(".token").nth(8).hover()
        panel = read_panel(page)
        assert float(panel["alpha"]) == pytest.approx(alpha, abs=1e-3)
        assert (panel["beta"] == "–") == (rule == "nudging")


def test_the_panel_names_the_models_of_a_pair_in_the_pair(open_page: Any, sample: Sample) -> None:
    shares = {"base": 0.004, "aligned.base": 0.25, "aligned.aligned": 0.746}
    positions = (replace(sample.trace.positions[0], leaves=shares), *sample.trace.positions[1:])
    page = open_page(replace(sample.trace, positions=positions)).page
    page.locator(".token").first.hover()
    story = page.locator("#panel .story").inner_text()
    assert "Its models: base 0.4 %, aligned.base 25 %, aligned.aligned 75 %." in story
    page.locator(".token").nth(1).hover()
    assert "Its models" not in page.locator("#panel .story").inner_text()


def test_speculation_is_shown(open_page: Any, sample: Sample) -> None:
    page = open_page(sample.trace).page
    assert "1 of 2" in page.locator(".facts").inner_text()
    page.locator(".token").nth(1).hover()
    assert "The draft “␣w9” was rejected" in page.locator("#panel .story").inner_text()
    sign = "getComputedStyle(document.querySelector('.token.bonus'), '::before').content"
    drafts = page.locator("s.draft")
    assert drafts.all_text_contents() == ["␣w9", "␣w10", "␣w11"]
    assert (drafts.first.is_visible(), page.locator(".of-drafts").first.is_visible()) == (False, False)
    assert page.evaluate(sign) == "none", "a mark of speculation that is not switched off"
    page.check("#drafts")
    assert (drafts.first.is_visible(), page.locator(".of-drafts").first.is_visible()) == (True, True)
    assert page.evaluate(sign) == '"+"'


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light"), (375, "dark")])
def test_looks(open_page: Any, sample: Sample, tmp_path: Path, width: int, scheme: str) -> None:
    """Nothing sticks out sideways, text stands out from its background, and the screenshot is not blank."""
    page = open_page(sample.trace, width=width, height=860, scheme=scheme).page
    page.locator(".token").nth(8).click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#panel tr.chosen").is_visible()
    colors = page.evaluate("""() => { const style = getComputedStyle(document.body);
        return [style.color, style.backgroundColor].map(c => c.match(/[\\d.]+/g).slice(0, 3).map(Number)); }""")
    ink, paper = (luminance(rgb) for rgb in colors)
    assert (ink > paper) == (scheme == "dark")
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7
    assert len(page.screenshot(path=tmp_path / "shot.png")) > 8_000


@pytest.mark.parametrize(("scheme", "colors"), [("light", palette.LIGHT), ("dark", palette.DARK)])
def test_every_letter_on_every_color_of_a_token_can_be_read(
    open_page: Any, sample: Sample, scheme: str, colors: dict[str, str]
) -> None:
    """axe-core does not look at letters on a gradient. WCAG asks for a contrast of 4.5."""

    def channels(color: str) -> list[float]:
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        return [float(int(digits[at : at + 2], 16)) for at in (0, 2, 4)]

    def mixed(first: str, second: str, share: float) -> list[float]:
        return [a * share + b * (1 - share) for a, b in zip(channels(first), channels(second), strict=True)]

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        origin = mixed(colors["base-tint"], colors["aligned-tint"], share)
        heat = mixed(colors["heat"], colors["paper"], 0.6 * share)
        for ground in (origin, heat):
            low, high = sorted((luminance(channels(colors["ink"])), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 4.5
    page = open_page(sample.trace, scheme=scheme).page
    page.check("#drafts")
    used = """() => [...document.querySelectorAll(".token, .token *")]
        .flatMap(e => [getComputedStyle(e).color, getComputedStyle(e, "::before").color])"""
    assert set(page.evaluate(used)) == {page.evaluate("getComputedStyle(document.body).color")}


def test_theme_button_overrides_the_system(open_page: Any, sample: Sample) -> None:
    page = open_page(sample.trace, scheme="light").page
    paper = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    light = paper()
    page.click("#theme")
    assert paper() == light
    page.click("#theme")
    assert paper() != light
    assert page.locator("#theme").get_attribute("aria-label") == "Color theme: dark"


@pytest.mark.slow  # its limits are those of an ordinary machine
def test_a_thousand_tokens_open_within_two_seconds(open_page: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    scale = 1.0 + 5.0 * torch.rand(1000, 1, generator=generator, dtype=torch.float64)
    base, aligned = (scale * logits(seed, 1000, 2000, 1.0) for seed in (5, 6))
    trace = Sample(base, aligned, base.argmax(-1)).trace
    assert len(trace.to_html().encode()) < 5_000_000
    opened = open_page(trace, metrics=True)
    page = opened.page
    page.wait_for_selector("#panel table")
    seconds = time.perf_counter() - opened.started
    # The page's own work, which does not depend on what else the machine does; the clock only where it is idle.
    assert opened.cpu_seconds() < 1.0
    if os.getloadavg()[0] < (os.cpu_count() or 1):
        assert seconds < 2.0
    assert page.locator(".token").count() == 1000


def test_a_product_of_models_has_no_colors(open_page: Any, sample: Sample) -> None:
    positions = record(parse_rule("implicit_reward"), sample.tokens, sample.base, sample.aligned, logits(2, 40, 60))
    rule = parse_rule("implicit_reward")
    trace = replace(
        sample.trace, rule=rule.to_dict(), rule_text=str(rule), family="product", positions=tuple(positions)
    )
    opened = open_page(trace)
    assert opened.page.locator(".token.unknown").count() == 40
    assert "product of the models" in opened.page.locator("#panel .story").inner_text()
    set_slider(opened.page, "dual", 0.4)
    assert opened.page.locator(".token.unknown").count() == 0
    assert opened.console == []


def luminance(rgb: list[float]) -> float:
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
