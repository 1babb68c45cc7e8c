"""The routes of the playground: every token with its distributions, "what if", the models alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import kad

pytest.importorskip("fastapi", reason='pip install "kad-align[server]"')

from kad.server import page_fields
from kad.tracing.schema import Trace
from server_runs import client, events, running

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def tiny() -> kad.KadForCausalLM:
    return kad.load("tiny", dtype="float32")


@pytest.fixture(scope="module")
def http(tiny: kad.KadForCausalLM) -> Iterator[httpx.Client]:
    with running(tiny, "tiny") as address, client(address) as found:
        yield found


def ask(http: httpx.Client, **asked: Any) -> tuple[page_fields.Start, list[page_fields.PieceEvent], page_fields.Done]:
    """One answer, checked against its types."""
    with http.stream("POST", "/kad/answer", json={"messages": MESSAGES, **asked}) as got:
        (first, start), *pieces, (last, done) = events(got)
    assert (first, last, {name for name, _ in pieces}) == ("start", "done", {"piece"})
    return (
        page_fields.Start.model_validate(start),
        [page_fields.PieceEvent.model_validate(piece) for _, piece in pieces],
        page_fields.Done.model_validate(done),
    )


def as_trace(start: page_fields.Start, pieces: list[page_fields.PieceEvent], done: page_fields.Done) -> Trace:
    """What the page saves: the events put together are a trace."""
    vocabulary = {token: text for piece in pieces for token, text in piece.vocabulary.items()}
    positions = [piece.position for piece in pieces]
    return Trace.from_dict(
        {**start.trace, "generation": done.generation, "vocabulary": vocabulary, "positions": positions}
    )


def same(found: Trace, truth: Trace) -> None:
    """Equal up to the last digits: other numbers of tokens were read at once."""
    assert found.text == truth.text
    for ours, theirs in zip(found.positions, truth.positions, strict=True):
        for name in ("token", "event", "rejected_draft", "dropped_drafts", "text"):
            assert getattr(ours, name) == getattr(theirs, name), name
        for name in ("p", "p_aligned", "pi", "base_share", "kept", "deferred_mass", "tau", "acceptance"):
            wanted = getattr(theirs, name)
            close = wanted if wanted is None else pytest.approx(wanted, rel=1e-3, abs=1e-6)
            assert getattr(ours, name) == close, name
        kept = {row.token: row.pi for row in theirs.candidates if row.pi > 1e-4}
        assert {row.token: row.pi for row in ours.candidates if row.token in kept} == pytest.approx(kept, rel=1e-3)


def test_the_facts(http: httpx.Client, tiny: kad.KadForCausalLM) -> None:
    facts = page_fields.ModelFacts.model_validate(http.get("/kad/model").json())
    assert facts.models == {"base": "big-base", "aligned": "small-aligned"}
    assert facts.rule == str(tiny.rule)
    assert facts.context_length == 2048
    assert {rule["name"] for rule in facts.rules} == set(kad.rules.registry())


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 3.0, "seed": 5}], ids=str)
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "contrastive"])
def test_the_pieces_are_the_positions_of_a_trace(
    http: httpx.Client, tiny: kad.KadForCausalLM, rule: str, sampling: dict[str, Any]
) -> None:
    asked = {"rule": rule, **sampling}
    found = ask(http, **asked, max_new_tokens=24, num_draft_tokens=3)
    how = kad.Sampling(**sampling, max_new_tokens=24)
    truth = kad.trace(tiny, QUESTION, sampling=how, num_draft_tokens=3, rule=rule)
    made = as_trace(*found)
    same(made, truth)
    assert made.rule_text == truth.rule_text
    assert made.prompt == truth.prompt
    assert made.models == truth.models
    assert [piece.index for piece in found[1]] == list(range(len(found[1])))
    assert found[2].token_ids == [position.token for position in truth.positions]
    assert {"accepted", "corrected"} & {position.event for position in made.positions}


@pytest.mark.parametrize("base_prompt", ["qa", "Ask {question}\nReply\n"])
def test_the_base_model_may_have_a_prompt_of_its_own(
    http: httpx.Client, tiny: kad.KadForCausalLM, base_prompt: str
) -> None:
    """What p may not keep depends on the text so far: the stops of these prompts."""
    found = ask(http, temperature=0, base_prompt=base_prompt, max_new_tokens=12, num_draft_tokens=3)
    how = kad.Sampling(temperature=0, max_new_tokens=12)
    truth = kad.trace(tiny, QUESTION, sampling=how, base_prompt=base_prompt, num_draft_tokens=3)
    same(as_trace(*found), truth)
    assert found[0].trace["base_prompt"] == truth.base_prompt
    begun = found[2].token_ids[:7]
    _, pieces, done = ask(http, temperature=0, base_prompt=base_prompt, max_new_tokens=5, continuation=begun)
    assert done.token_ids == found[2].token_ids
    for piece in pieces:
        wanted = truth.positions[piece.index]
        assert piece.position["deferred_mass"] == pytest.approx(wanted.deferred_mass, rel=1e-3, abs=1e-6)
        assert piece.position["p"] == pytest.approx(wanted.p, rel=1e-3, abs=1e-6)


def test_a_continuation_in_the_middle_of_what_the_base_model_never_keeps(
    http: httpx.Client, tiny: kad.KadForCausalLM
) -> None:
    """After "\\nA", p must not keep the "sk" that completes the stop. Twice: then the prompt is in a cache."""
    asked = {
        "temperature": 0,
        "base_prompt": "Ask {question}\nReply\n",
        "max_new_tokens": 3,
        "rule": "dual:threshold=0.0",
    }
    begun = tiny.tokenizer("First\nA", add_special_tokens=False).input_ids
    for _ in range(2):
        _, pieces, done = ask(http, **asked, continuation=begun)
        truth = kad.trace(tiny, QUESTION, done.token_ids, rule=asked["rule"], base_prompt=asked["base_prompt"])
        assert truth.positions[len(begun)].deferred_mass > 0
        for piece in pieces:
            wanted = truth.positions[piece.index]
            assert piece.position["deferred_mass"] == pytest.approx(wanted.deferred_mass, rel=1e-3, abs=1e-9)
            assert piece.position["pi"] == pytest.approx(wanted.pi, rel=1e-3, abs=1e-6)


def test_what_if_the_text_had_gone_on_otherwise(http: httpx.Client, tiny: kad.KadForCausalLM) -> None:
    """The chosen token comes first, with its own numbers; then the text that belongs to it."""
    _, pieces, done = ask(http, temperature=0)
    place = 5
    chosen = next(row[0] for row in pieces[place].position["candidates"] if row[0] != done.token_ids[place])
    continuation = [*done.token_ids[:place], chosen]
    start, others, other = ask(http, temperature=0, continuation=continuation)
    assert other.token_ids[: place + 1] == continuation
    assert [piece.forced for piece in others] == [True] + [False] * (len(others) - 1)
    assert [piece.index for piece in others] == list(range(place, place + len(others)))
    assert start.reused_tokens > start.prompt_tokens

    prompt = [*kad.generate(tiny, QUESTION, sampling=kad.Sampling(max_new_tokens=1)).prompt_ids, *continuation]
    truth = kad.generate(tiny, prompt, sampling=kad.Sampling(temperature=0))
    assert other.token_ids[place + 1 :] == truth.token_ids
    traced = kad.trace(tiny, QUESTION, other.token_ids)
    for piece in others:
        assert piece.position["pi"] == pytest.approx(traced.positions[piece.index].pi, rel=1e-3, abs=1e-6)
        assert piece.position["base_share"] == pytest.approx(traced.positions[piece.index].base_share, abs=1e-3)
        assert piece.position["text"] == traced.positions[piece.index].text


def test_a_continuation_that_ends_the_text(http: httpx.Client) -> None:
    _, _, done = ask(http, temperature=0)
    start, pieces, end = ask(http, temperature=0, continuation=done.token_ids)
    assert (len(pieces), pieces[0].forced, end.finish_reason) == (1, True, "stop")
    assert end.text == done.text
    assert start.prompt_tokens > 0


def test_a_continuation_between_the_bytes_of_a_character(http: httpx.Client, tiny: kad.KadForCausalLM) -> None:
    parts = tiny.tokenizer("é", add_special_tokens=False).input_ids
    assert len(parts) > 1
    _, pieces, done = ask(http, temperature=0, continuation=[360, *parts], max_new_tokens=2)
    assert pieces[0].position["text"] == "é"
    assert done.text.startswith("Firsté")


@pytest.mark.parametrize(("of", "rule"), [("base", "base_only"), ("aligned", "aligned_only")])
def test_the_models_alone(http: httpx.Client, tiny: kad.KadForCausalLM, of: str, rule: str) -> None:
    start, pieces, done = ask(http, of=of, temperature=0, rule="dual:threshold=0.3", max_new_tokens=30)
    assert start.trace["rule"] == {"rule": rule}
    assert start.of == of
    own = "p" if of == "base" else "p_aligned"
    assert all(piece.position["pi"] == pytest.approx(piece.position[own], abs=1e-5) for piece in pieces)
    truth = kad.generate(tiny, QUESTION, rule=rule, sampling=kad.Sampling(temperature=0, max_new_tokens=30))
    assert done.text == truth.text


def test_a_given_answer_and_its_page(http: httpx.Client, tiny: kad.KadForCausalLM) -> None:
    answer = kad.generate(tiny, QUESTION, sampling=kad.Sampling(temperature=0, max_new_tokens=12))
    asked = {"messages": MESSAGES, "token_ids": answer.token_ids, "rule": "dual:threshold=0.9"}
    found = http.post("/kad/trace", json=asked)
    same(Trace.from_dict(found.json()), kad.trace(tiny, QUESTION, answer.token_ids, rule="dual:threshold=0.9"))
    page = http.post("/kad/page", json=found.json())
    assert page.text == Trace.from_dict(found.json()).to_html()
    assert http.post("/kad/page", json={"schema": "none"}).status_code == 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"of": "both"}, "of: Input should be 'composed', 'base' or 'aligned'."),
        ({"rule": "duel"}, "Unknown rule 'duel'."),
        ({"continuation": [1 << 20]}, "continuation has the token id 1048576"),
        ({"continuation": [5] * 3000}, "the models' context holds 2048"),
        ({"num_draft_tokens": 1000}, "num_draft_tokens"),
        ({"base_prompt": "/etc/hostname"}, "base_prompt: give qa, chat, plain, same, or a template with {question}"),
        ({"base_prompt": "few-shot:/etc/hostname"}, "base_prompt: give qa, chat, plain, same, or a template"),
        ({"base_prompt": {"template": 3}}, "A base prompt has at least a template"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required."),
    ],
)
def test_wrong_requests(http: httpx.Client, change: dict[str, Any], message: str) -> None:
    refused = http.post("/kad/answer", json={"messages": MESSAGES, **change})
    assert refused.status_code == 400
    assert message in refused.json()["error"]["message"]
