"""`kad playground` in a real Chromium over a real server: what a person does with it, and what must never happen."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

import kad
import needs
from kad.cli import demo
from kad.engines.pair import pair_of
from kad.errors import UsageError
from kad.text.prompts import encode
from kad.text.sampling import Sampling
from kad.text.streaming import Stream
from kad.tracing.schema import Trace
from test_page import HOSTILE, SEEN, axe_findings, luminance, make_sample, set_slider, shown_shares, tab_stops
from test_translated import pair as two_tokenizers  # noqa: F401  (a fixture)
from test_translated import where  # noqa: F401  (a fixture, for the other one)

fastapi = pytest.importorskip("fastapi", reason='pip install "kad-align[server]"')

from kad.server.app import make_app  # noqa: E402
from kad.server.connections import server_of  # noqa: E402
from kad.server.listening import Listening, listen  # noqa: E402
from kad.server.playground_app import Playground, run  # noqa: E402
from server_runs import serving  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.browser, needs.chromium]
QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"
# What a browser itself writes into its console when a request fails.
NETWORK = "Failed to load resource"


@pytest.fixture(scope="module")
def tiny() -> kad.KadForCausalLM:
    return kad.load("tiny")


@contextmanager
def running(make: Callable[[], Any], options: Listening | None = None, code: str | None = None) -> Iterator[str]:
    """A playground in a thread, and its address."""
    options = options or Listening()
    playground = Playground(make, lambda error: None, options, "tiny", code)
    with serving(server_of(playground, options), seconds_to_end=60) as address:
        yield address


@pytest.fixture(scope="module")
def address(tiny: kad.KadForCausalLM) -> Iterator[str]:
    with running(lambda: make_app(tiny, "tiny")) as address:
        yield address


# Counts how many tokens the page shows each time that it changes.
WATCH = """
window.seen = [];
new MutationObserver(() => {
  const count = document.querySelectorAll(".token").length;
  if (window.seen.at(-1) !== count) window.seen.push(count);
}).observe(document, {childList: true, subtree: true});
"""


# The animation of what stands behind an element.
MOVES = "selector => getComputedStyle(document.querySelector(selector), '::after').animationName"


@dataclass
class Player:
    """A person at the page."""

    page: Any
    console: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def choose(self, **options: Any) -> None:
        """Set options below the question. Without drafts, every token comes from a forward pass of its own."""
        self.page.locator("#options").evaluate("e => { e.open = true; }")
        for name, value in options.items():
            control = self.page.locator(f"#options [name={name}]")
            control.select_option(str(value)) if name == "num_draft_tokens" else control.fill(str(value))

    def ask(self, question: str = QUESTION, *, wait: bool = True) -> None:
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        if wait:
            self.idle()

    def idle(self) -> None:
        self.page.wait_for_selector(".answer:not(.running)")
        self.page.wait_for_selector("body:not(.busy)")

    def text(self, column: int = -1) -> str:
        answer = self.page.locator(".answer").all()[column]
        return "".join(answer.locator(".token").all_text_contents())


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Player]]:
    opened: list[tuple[Any, Player]] = []

    def open_(*, width: int = 1280, scheme: str = "light", at: str = address) -> Player:
        context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme)
        player = Player(context.new_page())
        opened.append((context, player))
        player.page.set_default_timeout(60_000)
        player.page.add_init_script(WATCH)
        player.page.on("console", lambda message: player.console.append(message.text))
        player.page.on("pageerror", lambda error: player.console.append(str(error)))
        local = (at.split("#")[0], "blob:", "data:", "file:")
        player.page.on("request", lambda r: None if r.url.startswith(local) else player.elsewhere.append(r.url))
        player.page.goto(at)
        if at == address:
            player.page.wait_for_selector("#send:not([disabled])")
        return player

    yield open_
    for context, player in opened:
        assert player.elsewhere == []
        assert [line for line in player.console if NETWORK not in line] == []
        context.close()


def greedy(model: Any, rule: str | None = None, forced: tuple[int, ...] = (), question: str = QUESTION) -> Any:
    """The greedy answer to a question, without drafts, after some tokens of it."""
    prompt_ids = [*encode(model.tokenizer, question), *forced]
    return Stream(model, prompt_ids, pair_of(model).composed_by(rule), Sampling(temperature=0), 0).finish()


def test_asks_and_colors_arrive(open_page: Any, tiny: kad.KadForCausalLM) -> None:
    player = open_page()
    player.choose(num_draft_tokens=0)
    player.ask()
    expected = greedy(tiny)
    assert len(player.page.evaluate("window.seen")) > 5, "the tokens came all at once"
    assert player.page.locator(".token").count() == len(expected.token_ids)
    assert player.text().removesuffix("<|end|>") == expected.text
    shares = [piece.base_share for piece in expected.pieces]
    assert shown_shares(player.page) == pytest.approx(shares, abs=1e-3)
    assert f"{len(shares)} tokens" in player.page.locator(".stats").inner_text()
    player.page.locator(".token").nth(3).hover()
    assert float(player.page.locator("#panel dd[data-name=share]").inner_text().rstrip(" %")) == pytest.approx(
        100 * shares[3], abs=0.6
    )


def test_the_threshold_colors_the_answer_and_makes_another(open_page: Any, tiny: kad.KadForCausalLM) -> None:
    player = open_page()
    player.choose(num_draft_tokens=0)
    player.ask()
    before = shown_shares(player.page)
    set_slider(player.page, "dual", 1.0)
    after = shown_shares(player.page)
    assert sum(after) < sum(before)
    assert "change hands" in player.page.locator("#verdict").inner_text()
    player.page.get_by_role("button", name="Answer again").click()
    player.idle()
    assert player.page.locator(".answer h2").inner_text().startswith("Together (dual 1.00)")
    assert player.text().removesuffix("<|end|>") == greedy(tiny, "dual:threshold=1").text
    assert "2 of 2" in player.page.locator(".versions").inner_text()
    player.page.get_by_role("button", name="The version before").click()
    assert shown_shares(player.page) == after, "the version before, colored by the rule that is set"


@pytest.mark.parametrize("keyboard", [False, True])
def test_what_if(open_page: Any, tiny: kad.KadForCausalLM, keyboard: bool) -> None:
    """The text goes on after another token exactly as the model does when it has written that token."""
    player = open_page()
    player.choose(num_draft_tokens=0)
    player.ask()
    tokens, at = greedy(tiny).token_ids, 13
    player.page.locator(".token").nth(at).click()
    candidate = player.page.locator(".choose").nth(1)
    if keyboard:
        candidate.focus()
        player.page.keyboard.press("Enter")
    else:
        candidate.click()
    player.page.wait_for_selector(".versions")
    player.idle()
    assert "#" not in player.page.url, "a reload would show the version before"
    assert player.page.locator(".token.chosen").get_attribute("data-index") == str(at)
    assert "You chose this token." in player.page.locator("#panel .story").inner_text()
    chosen = int(player.page.locator("#panel h2 small").inner_text().split("id ")[1])
    assert chosen != tokens[at]
    forced = (*tokens[:at], chosen)
    rest = greedy(tiny, forced=forced).token_ids
    assert player.text() == tiny.tokenizer.decode([*forced, *rest])
    player.page.locator(".token").nth(3).click()
    assert player.page.url.endswith("#1.2.1.4")
    assert player.page.locator("#panel h2 a").get_attribute("href") == "#1.2.1.4"
    player.page.evaluate(f"location.hash = '#1.1.1.{at + 1}'")
    player.page.wait_for_selector(f".token[data-index='{at}'][aria-current]")
    assert "1 of 2" in player.page.locator(".versions").inner_text()
    player.page.reload()
    player.page.wait_for_selector(f".token[data-index='{at}'][aria-current]")


def test_three_columns(open_page: Any, tiny: kad.KadForCausalLM) -> None:
    player = open_page()
    player.choose(num_draft_tokens=0)
    player.page.check("#columns")
    # The texts part at a token that is not the one that p is surest of.
    question = "Gus starts the day with 81 toys. After that, he throws away 2. Later 95 more toys are added. "
    question += "Then he finds 76 more toys. Then he finds 27 more toys. What is the number of toys now?"
    player.ask(question)
    answers = [greedy(tiny, rule, question=question) for rule in ("base_only", "aligned_only", None)]
    for column, answer in enumerate(answers):
        assert player.text(column).removesuffix("<|end|>") == answer.text
    boxes = [answer.bounding_box() for answer in player.page.locator(".answer").all()]
    assert len({box["y"] for box in boxes}) == 1
    assert all(a["x"] + a["width"] <= b["x"] for a, b in pairwise(boxes))
    aligned, together = (answer.token_ids for answer in answers[1:])
    parts = next(index for index, token in enumerate(together) if token != aligned[index])
    focused = player.page.locator(".answer").nth(2).locator(".token[aria-current]")
    assert focused.get_attribute("data-index") == str(parts)
    assert player.page.locator(".token[aria-current]").count() == 1
    assert [t.get_attribute("data-index") for t in player.page.locator(".parting").all()] == [str(parts)] * 2


def test_what_is_suggested_shows_what_kad_is_for(open_page: Any) -> None:
    """The questions of `kad demo` in three columns, a verdict under each, the panel on the token that decides."""
    player = open_page()
    player.page.wait_for_selector("#send:not([disabled])")
    suggested = player.page.locator(".welcome button")
    held_out = kad.tiny.problems("held-out", max(demo.SHOWN) + 1)
    assert suggested.all_inner_texts() == [held_out[number].question for number in demo.SHOWN]
    suggested.first.click()
    player.page.wait_for_selector(".answer:nth-child(3) .outcome:not([hidden])")
    player.idle()
    assert player.page.locator(".outcome").all_inner_texts() == [
        "✗ 201 is right, but not in the box",
        "✗ wrong: 10 in the box",
        "✓ right, in the box",
    ]
    assert player.page.locator(".token[aria-current]").get_attribute("data-index") == "5"
    player.page.get_by_role("button", name="Answer again").click()
    player.idle()
    assert player.page.locator(".outcome:visible").all_inner_texts() == ["✓ right, in the box"]
    player.ask("Ann has 5 pens. She buys 8 more. How many pens does she have now?")
    assert player.page.locator(".outcome:visible").count() == 1, "what is right here is not known"


def test_models_with_tokenizers_of_their_own(open_page: Any, two_tokenizers: kad.KadForCausalLM) -> None:  # noqa: F811
    """The base model alone stands in its own tokens; and where a part of p belongs to no token, the panel says so."""
    truth = kad.trace(two_tokenizers, "What is it?", sampling=Sampling(temperature=0, max_new_tokens=8))
    with running(lambda: make_app(two_tokenizers, "two")) as own:
        player = open_page(at=own)
        player.page.wait_for_selector("#send:not([disabled])")
        player.choose(num_draft_tokens=0, temperature=0, max_tokens=8)
        player.page.check("#columns")
        player.ask("What is it?")
        base, _, composed = player.page.locator(".answer").all()
        assert not base.locator(".more").is_visible()
        for index, position in enumerate(truth.positions):
            composed.locator(".token").nth(index).click()
            rows = player.page.locator("#panel tbody tr")
            said = {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows.all()}
            assert ("no token" in said) == (position.nobody >= 0.0005)
            assert all(cells[0][0] in "≥≤" for name, cells in said.items() if name not in ("no token", "all others"))
            assert player.page.locator("#panel .note").count() == 1
        base.locator(".token").nth(2).click()
        assert player.page.locator("#panel thead th").all_inner_texts() == ["p base"]
        assert "in its own tokens" in player.page.locator("#panel .story").inner_text()
        other = player.page.locator("#panel .choose").first
        name = other.inner_text()
        other.click()
        player.idle()
        player.page.wait_for_selector(".token[data-index='2'][aria-current]")
        assert player.page.locator("#panel h2 q").inner_text() == name
        assert player.page.locator(".answer").count() == 1


def shown(text: str) -> str:
    """A token as a label of the page."""
    for blank, sign in {"\n": "⏎", "\t": "⇥"}.items():
        text = text.replace(blank, sign)
    return re.sub("^ | $", "␣", text) or "∅"


def test_drafts_are_shown_as_they_happen(open_page: Any, tiny: kad.KadForCausalLM) -> None:
    player = open_page()
    player.choose(num_draft_tokens=4)
    set_slider(player.page, "dual", 0.01)
    player.ask()
    said = player.page.locator(".stats").inner_text()
    assert f"{player.page.locator('.token.accepted').count()} accepted" in said
    drafts = player.page.locator("s.draft")
    rejected = player.page.locator("s.draft:not(.dropped)")
    assert f"{rejected.count()} rejected" in said
    assert rejected.count() == player.page.locator(".token.corrected").count() > 0
    pieces = (
        Stream(tiny, encode(tiny.tokenizer, QUESTION), tiny.pair.composed_by("dual:threshold=0.01"), Sampling(), 4)
        .finish()
        .pieces
    )
    fallen = [
        token
        for piece in pieces
        if piece.event == "corrected"
        for token in (piece.rejected_draft, *piece.dropped_drafts)
    ]
    assert drafts.all_text_contents() == [shown(tiny.tokenizer.decode([token])) for token in fallen]
    assert not drafts.first.is_visible()
    player.page.check("#drafts")
    assert drafts.first.is_visible()
    at = next(index for index, piece in enumerate(pieces) if piece.dropped_drafts)
    player.page.locator(".token").nth(at).click()
    assert "fell with it" in player.page.locator("#panel .story").inner_text()


def long_answer(player: Player) -> None:
    """A long answer under way: at this temperature, nothing ends the text soon."""
    player.choose(num_draft_tokens=0, temperature=30, max_tokens=400, seed=1)
    player.ask(wait=False)
    player.page.wait_for_selector(".token[data-index='5']")


def test_a_reload_in_the_middle(open_page: Any, address: str) -> None:
    player = open_page()
    long_answer(player)
    player.page.reload()
    player.page.wait_for_selector("#send:not([disabled])")
    part = player.text()
    count = player.page.locator(".token").count()
    assert 5 <= count < 400
    for _ in range(100):
        waiting = httpx.get(f"{address}/v1/models/tiny").json()["kad"]["waiting"]
        if not waiting:
            break
        time.sleep(0.1)
    assert waiting == 0, "nobody reads the answer, and it goes on"
    player.choose(num_draft_tokens=0, max_tokens=8)
    player.page.get_by_role("button", name="Go on").click()
    player.page.wait_for_selector(".versions")
    player.page.wait_for_selector(f".token[data-index='{count + 2}']")
    player.page.press("#question", "Escape")
    player.idle()
    assert player.text().startswith(part)


def test_stop(open_page: Any) -> None:
    player = open_page()
    long_answer(player)
    player.page.get_by_role("button", name="Stop").click()
    player.idle()
    assert player.page.locator(".token").count() < 400
    assert player.page.get_by_role("button", name="Go on").is_visible()
    assert player.page.locator("#send").inner_text() == "Send"


def test_something_moves_from_the_question_to_the_first_token(open_page: Any) -> None:
    player, waiting = open_page(), []
    player.page.route("**/v1/chat/completions", lambda route: waiting.append(route))
    player.page.check("#columns")
    player.ask(wait=False)
    heads = player.page.locator(".answer h2")
    player.page.wait_for_function("document.querySelectorAll('.waiting').length === 3")
    assert heads.all_inner_texts() == ["Base alone", "Aligned alone", "Together (dual 0.40)"]
    assert player.page.evaluate(MOVES, ".waiting") == "blink"
    for route in waiting:
        route.continue_()
    player.idle()
    assert player.page.locator(".waiting").count() == 0
    assert player.page.locator(".answer .token").count() > 30


def test_offline(open_page: Any, tmp_path: Path) -> None:
    """What is there stays of use: the tokens, the files. What is not there is said."""
    player = open_page()
    player.ask()
    tokens = player.page.locator(".token").count()
    player.page.context.set_offline(True)
    player.ask("And without the 9?", wait=False)
    problem = player.page.locator(".turn").nth(1).locator(".problem")
    problem.wait_for()
    assert "The server does not answer" in problem.inner_text()
    player.page.wait_for_selector("#pair.problem")
    assert "The server does not answer" in player.page.locator("#pair").inner_text()
    player.page.locator(".token").nth(2).click()
    assert player.page.locator("#panel table").is_visible()
    player.page.locator(".more summary").first.click()
    with player.page.expect_download() as download:
        player.page.get_by_role("button", name="Page", exact=True).click()
    saved = tmp_path / "trace.html"
    download.value.save_as(saved)
    player.page.context.set_offline(False)
    player.page.get_by_role("button", name="Try again").click()
    player.page.wait_for_selector("#pair:not(.problem)")
    player.page.locator(".turn").nth(1).get_by_role("button", name="Answer again").click()
    player.page.locator(".turn").nth(1).locator(".token").first.wait_for()
    player.idle()
    alone = open_page(at=saved.as_uri())
    assert alone.page.locator(".token").count() == tokens
    assert QUESTION in alone.page.locator(".command code").inner_text()


def test_files(open_page: Any) -> None:
    player = open_page()
    player.ask()
    player.page.locator(".more summary").click()
    files = {}
    for name in ("JSON", "CSV", "SVG"):
        with player.page.expect_download() as download:
            player.page.get_by_role("button", name=name, exact=True).click()
        files[name] = Path(download.value.path()).read_text(encoding="utf-8")
    made = Trace.from_json(files["JSON"])
    assert made.text == player.text()
    assert made.summary() == pytest.approx(json.loads(files["JSON"])["summary"])
    assert len(files["CSV"].splitlines()) == 1 + len(made.positions)
    assert files["SVG"].startswith("<svg")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light"), (375, "dark")])
def test_looks(open_page: Any, width: int, scheme: str) -> None:
    player = open_page(width=width, scheme=scheme)
    player.page.check("#columns")
    player.ask()
    page = player.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#send").is_visible()
    assert page.locator("#panel").is_visible() == (width > 375)
    page.locator(".token").nth(2).click()
    assert page.locator("#panel tr.chosen").is_visible()
    colors = page.evaluate("""() => { const style = getComputedStyle(document.body);
        return [style.color, style.backgroundColor].map(c => c.match(/[\\d.]+/g).slice(0, 3).map(Number)); }""")
    ink, paper = (luminance(rgb) for rgb in colors)
    assert (ink > paper) == (scheme == "dark")
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7


@pytest.mark.parametrize(("width", "height"), [(375, 667), (640, 430)])
def test_a_phone_and_a_page_at_200_percent_show_the_text(open_page: Any, width: int, height: int) -> None:
    player = open_page(width=width)
    player.page.set_viewport_size({"width": width, "height": height})
    player.ask()
    assert not player.page.locator("#panel").is_visible()
    player.page.locator(".token").nth(4).scroll_into_view_if_needed()
    assert player.page.evaluate(SEEN, 4)
    player.page.locator(".token").nth(4).click()
    assert player.page.locator("#panel").is_visible()
    assert player.page.evaluate(SEEN, 4)


def test_options_do_not_cover_the_answer(open_page: Any) -> None:
    player = open_page()
    player.page.set_viewport_size({"width": 1280, "height": 560})
    player.ask()
    player.page.locator("#options summary").click()
    assert player.page.locator("#options [name=system]").is_visible()
    player.page.locator(".token").nth(4).scroll_into_view_if_needed()
    assert player.page.evaluate(SEEN, 4)
    text, composer = (player.page.locator(place).bounding_box() for place in (".text", "#composer"))
    assert composer["y"] >= text["y"] + text["height"]


def test_paper_has_the_talk_and_nothing_to_press(open_page: Any) -> None:
    player = open_page()
    player.ask()
    player.page.emulate_media(media="print")
    assert [player.page.locator(place).is_visible() for place in (".question", ".text", "#panel")] == [True] * 3
    assert [player.page.locator(place).is_visible() for place in ("#composer", ".tools", "#theme")] == [False] * 3


def test_an_answer_is_copied_as_it_is(open_page: Any, tiny: kad.KadForCausalLM, address: str) -> None:
    player = open_page()
    player.page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    player.ask()
    player.page.get_by_role("button", name="Copy").click()
    player.page.get_by_role("button", name="Copied").wait_for()
    assert player.page.evaluate("navigator.clipboard.readText()") == greedy(tiny).text


def test_a_question_is_edited_in_its_place(open_page: Any) -> None:
    player = open_page()
    player.ask()
    before = player.text()
    player.page.get_by_role("button", name="Edit").click()
    assert player.page.input_value("#question") == QUESTION
    player.page.press("#question", "Escape")
    assert player.page.input_value("#question") == ""
    player.page.get_by_role("button", name="Edit").click()
    player.ask(QUESTION.replace("24", "31"))
    assert player.page.locator(".question").all_inner_texts() == [QUESTION.replace("24", "31")]
    assert "2 of 2" in player.page.locator(".versions").inner_text()
    assert player.text() != before
    player.page.get_by_role("button", name="The version before").click()
    assert player.page.locator(".question").all_inner_texts() == [QUESTION]
    assert player.text() == before
    player.ask("And without the 9?")
    assert player.page.locator(".question").count() == 2


def test_a_conversation_is_saved_and_opened(open_page: Any, tmp_path: Path) -> None:
    player = open_page()
    player.ask()
    player.choose()
    with player.page.expect_download() as download:
        player.page.get_by_role("button", name="Save the conversation").click()
    saved = tmp_path / "saved.json"
    download.value.save_as(saved)
    other = open_page()
    other.choose()
    other.page.get_by_label("Open a saved conversation").set_input_files(saved)
    other.page.wait_for_selector(".token")
    assert other.text() == player.text()
    assert other.page.locator(".question").inner_text() == QUESTION
    broken = json.loads(saved.read_text(encoding="utf-8"))
    broken["turns"][0]["versions"][0]["columns"][0]["trace"]["positions"][3]["base_share"] = "url(//evil.example)"
    for name, text in {"other.json": "{}", "cut.json": "{", "hostile.json": json.dumps(broken)}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        other.page.get_by_label("Open a saved conversation").set_input_files(tmp_path / name)
        other.page.wait_for_function(
            "name => document.getElementById('verdict').textContent.startsWith(name)", arg=name
        )
        assert other.text() == player.text()


@pytest.mark.slow  # it measures times
def test_a_streamed_token_costs_the_same_late_in_an_answer(open_page: Any) -> None:
    """The browser's time for a token of a long answer: it grew with the answer, 17 ms each after 1,000."""
    page = open_page().page
    early, late = (min(page.evaluate(STREAM, start) for _ in range(3)) for start in (10, 3000))
    assert late < 5 + 5 * early


# The milliseconds for a token that arrives when an answer has so many.
STREAM = """start => {
    const position = index => ({token: index, text: index % 12 ? " word" : "\\n", p: 1, p_aligned: 1, pi: 1,
        base_share: 1, deferred_mass: 0, acceptance: 1, floor: 0.01, candidates: [[index, 1, 1, 1]]});
    const answer = new kad.Answer({of: "composed", rule: "dual:threshold=0.4", request: {kad: {continuation: []}}}, {});
    const take = index => answer.take([{position: position(index), vocabulary: {}, seconds: 1}]);
    document.getElementById("talk").append(answer.element);
    const trace = {rule_text: "dual:threshold=0.4", models: {aligned: "q"}, generation: {}};
    answer.take([{trace, position: position(0), seconds: 1}]);
    for (let index = 1; index < start; index++) take(index);
    document.body.offsetHeight;
    const began = performance.now();
    for (let index = 0; index < 50; index++) { take(start + index); document.body.offsetHeight; }
    answer.element.remove();
    return (performance.now() - began) / 50;
}"""


def test_everything_that_is_used_has_a_name(open_page: Any) -> None:
    """For a reader of the screen: controls, texts and the panel."""
    player = open_page()
    player.ask()
    player.page.locator(".token").nth(2).click()
    unnamed = player.page.evaluate("""() => {
        const labelled = e => [...(e.labels ?? [])].some(label => label.textContent.trim());
        return [...document.querySelectorAll("button, input, select, textarea")]
            .filter(e => !e.getAttribute("aria-label") && !e.textContent.trim() && !labelled(e)).map(e => e.outerHTML);
    }""")
    assert unnamed == []
    assert player.page.get_by_role("group", name="Together").count() == 1
    assert player.page.get_by_role("region", name="The token in focus").count() == 1
    label = player.page.locator(".token").nth(2).get_attribute("aria-label")
    assert "Kept:" in label or "Deferred:" in label


@pytest.mark.slow
@needs.axe
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light")])
def test_axe_finds_nothing_serious(open_page: Any, width: int, scheme: str) -> None:
    player = open_page(width=width, scheme=scheme)
    found = {"empty": axe_findings(player.page)}
    player.page.check("#columns")
    player.page.check("#drafts")
    set_slider(player.page, "dual", 0.01)
    player.ask()
    assert player.page.locator("s.draft.dropped").count() > 0
    found["three columns"] = axe_findings(player.page)
    player.page.select_option("#view", "text")
    found["text"] = axe_findings(player.page)
    player.page.select_option("#view", "tokens")
    player.choose(temperature=1)
    player.page.locator(".answer").nth(2).locator(".token").nth(4).click()
    player.page.locator(".more summary").last.click()
    found["all open"] = axe_findings(player.page)
    player.page.context.set_offline(True)
    player.ask("And without the 9?", wait=False)
    player.page.wait_for_selector("#pair.problem")
    found["offline"] = axe_findings(player.page)
    assert found == {state: [] for state in found}


def test_the_tab_key_alone_leads_to_everything_once(open_page: Any) -> None:
    player = open_page()
    player.page.check("#columns")
    player.ask()
    stops = tab_stops(player.page)
    assert all(outline != "none" for _, outline in stops), "a place of the keyboard that cannot be seen"
    kinds = [kind for kind, _ in stops]
    assert len([kind for kind in kinds if kind.startswith("token")]) == 3
    assert {"measure", "view", "new", "theme", "question", "send", "columns", "drafts", "rule", "value"} <= set(kinds)


def written(player: Player, texts: list[str], error: str | None = None) -> None:
    """From now on, answers have these tokens."""
    trace = make_sample(rows=max(5, len(texts))).trace.to_dict()
    trace["positions"] = [{**position, "text": text} for position, text in zip(trace["positions"], texts)]  # noqa: B905
    steps = [{"position": position, "vocabulary": {}, "seconds": 1.0} for position in trace["positions"]]
    steps[0]["trace"] = {name: trace[name] for name in trace if name not in ("positions", "vocabulary", "summary")}
    steps[0]["vocabulary"] = trace["vocabulary"]
    chunks = [*({"choices": [], "kad": step} for step in steps), *([{"error": {"message": error}}] if error else [])]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    answer = {"body": body, "content_type": "text/event-stream"}
    player.page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer))


def test_text_of_a_model_is_text(open_page: Any) -> None:
    """The models of this answer write markup, and so does their server's error."""
    player = open_page()
    written(player, [HOSTILE[token] for token in (3, 4, 5, 6, 7)], error=HOSTILE[4])
    player.ask(HOSTILE[3])
    page = player.page
    assert page.locator(".question").inner_text() == HOSTILE[3]
    assert page.locator(".problem:visible").inner_text() == HOSTILE[4]
    assert [page.locator(".token").nth(index).text_content() for index in range(3)] == [HOSTILE[at] for at in (3, 4, 5)]
    assert page.locator("#talk img, #talk script, #panel script, #talk b").count() == 0
    page.reload()
    page.wait_for_selector("#send:not([disabled])")
    assert page.locator(".question").inner_text() == HOSTILE[3]
    assert page.locator("#talk img, #talk script").count() == 0


MARKDOWN = """# Sum
The **answer** is `a<i>*b`,
not *<b>more*. 2 * 3
<img src=x onerror=alert(1)> [here](javascript:alert(1))

1. one <script>alert(1)</script>
   and on
2. two
- **x

```js
<b>**raw**</b>
"""


def test_markdown_is_shown_as_text_and_nothing_of_it_is_markup(open_page: Any) -> None:
    player = open_page()
    written(player, MARKDOWN.splitlines(keepends=True))
    player.ask()
    page, prose = player.page, player.page.locator(".prose")
    page.select_option("#view", "text")
    shown = prose.evaluate("e => [...e.querySelectorAll('*')].map(x => [x.localName, x.textContent])")
    assert shown == [
        ["h3", "Sum"],
        ["p", "The answer is a<i>*b,\nnot <b>more. 2 * 3\n<img src=x onerror=alert(1)> [here](javascript:alert(1))"],
        ["strong", "answer"],
        ["code", "a<i>*b"],
        ["em", "<b>more"],
        ["ol", "one <script>alert(1)</script>\nand ontwo"],
        ["li", "one <script>alert(1)</script>\nand on"],
        ["li", "two"],
        ["ul", "**x"],
        ["li", "**x"],
        ["pre", "<b>**raw**</b>\n\n"],
    ]
    assert page.locator(".token").count() == 0
    page.reload()
    page.wait_for_selector("#send:not([disabled])")
    page.select_option("#view", "text")
    assert prose.locator("li").count() == 3
    page.evaluate("location.hash = '#1.1.1.3'")
    page.wait_for_selector(".token[data-index='2'][aria-current]")
    page.select_option("#view", "tokens")
    assert "".join(page.locator(".token").all_text_contents()) == MARKDOWN


def test_the_page_is_there_before_the_models(open_page: Any, tiny: kad.KadForCausalLM) -> None:
    loaded = threading.Event()

    def make() -> Any:
        assert loaded.wait(120)
        return make_app(tiny, "tiny")

    with running(make) as address:
        player = open_page(at=address)
        assert player.page.locator("#pair").inner_text() == "Loading tiny …"
        assert player.page.evaluate(MOVES, "#pair") == "blink"
        assert player.page.locator("#send").is_disabled()
        player.page.fill("#question", QUESTION)
        player.page.press("#question", "Enter")
        assert "as soon as the models are loaded" in player.page.locator("#verdict").inner_text()
        loaded.set()
        player.page.wait_for_selector("#send:not([disabled])")
        player.idle()
        assert player.page.locator(".question").inner_text() == QUESTION
        assert "The answer is" in player.text()
        assert "dual 0.40" in player.page.locator("#pair").inner_text()


def test_the_page_answers_only_to_this_machine(address: str) -> None:
    assert httpx.get(address).status_code == 200
    assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 403
    policy = httpx.get(address).text.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy


def test_models_that_cannot_be_loaded_end_it() -> None:
    def make() -> Any:
        raise UsageError("no such pair")

    # In a thread: the browser's driver has an event loop in this one.
    with ThreadPoolExecutor(1) as thread, pytest.raises(UsageError, match="no such pair"):
        thread.submit(run, make, listen(Listening(port=0)), Listening(), "tiny").result()


def test_a_key_is_asked_for_and_comes_with_the_address(open_page: Any, tiny: kad.KadForCausalLM) -> None:
    options = Listening(api_key="open sesame")
    with running(lambda: make_app(tiny, "tiny", options), options, code="c0de") as address:
        locked = open_page(at=address)
        locked.page.wait_for_selector("#pair.problem")
        assert "Give the key of this server" in locked.page.locator("#pair").inner_text()
        for secret in ("code=c0de", "key=open%20sesame"):
            player = open_page(at=f"{address}/#{secret}")
            player.page.wait_for_selector("#send:not([disabled])")
            assert player.page.url == f"{address}/", "the key stays in the address"
            player.page.reload()
            player.page.wait_for_selector("#send:not([disabled])")
        late = open_page(at=f"{address}/#code=c0de")
        late.page.wait_for_selector("#pair.problem")
