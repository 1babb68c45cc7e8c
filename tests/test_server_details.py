"""The field `kad` of the server: every token with its distributions, "what if", the models alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

import kad

pytest.importorskip("fastapi", reason='pip install "kad-align[server]"')

from kad.tracing.positions import Position
from kad.tracing.schema import Trace
from server_runs import client, detailed, events, running

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"
CHAT = "/v1/chat/completions"
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}]}


@pytest.fixture(scope="module")
def http(tiny: kad.KadForCausalLM) -> Iterator[httpx.Client]:
    with running(tiny, "tiny") as address, client(address) as found:
        yield found


@dataclass
class Told:
    """What the page has of an answer.

    Attributes:
        trace: the details of its tokens, put together.
        before: the tokens before the first of them.
        text, content: the whole text, and what is new of it.
        usage: the counts.
    """

    trace: Trace
    before: list[int]
    text: str
    content: str
    usage: dict[str, Any]

    @property
    def token_ids(self) -> list[int]:
        return [*self.before, *(position.token for position in self.trace.positions)]

    @property
    def positions(self) -> dict[int, Position]:
        """By their places in the answer."""
        return dict(enumerate(self.trace.positions, len(self.before)))


def ask(http: httpx.Client, of: str = "composed", continuation: Sequence[int] = (), **options: Any) -> Told:
    """One answer."""
    tokens, end, content, usage = detailed(http, {**ASKED, **options}, of=of, continuation=list(continuation))
    vocabulary = {token: text for step in tokens for token, text in step["vocabulary"].items()}
    positions = [step["position"] for step in tokens]
    whole = tokens[0]["trace"] | {"generation": end["generation"], "vocabulary": vocabulary, "positions": positions}
    return Told(Trace.from_dict(whole), list(continuation[:-1]), end["text"], content, usage)


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
    facts = http.get("/v1/models").json()["data"][0]["kad"]
    assert facts == http.get("/v1/models/tiny").json()["kad"]
    assert facts["models"] == {"base": "big-base", "aligned": "small-aligned"}
    assert set(facts["parameters"]) == set(facts["engines"]) == {"base", "aligned", "reference"}
    assert facts["rule"] == str(tiny.rule)
    assert facts["context_length"] == 2048
    assert {rule["name"] for rule in facts["rules"]} == set(kad.rules.registry())


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 3.0, "seed": 5}], ids=str)
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "contrastive"])
def test_the_pieces_are_the_positions_of_a_trace(
    http: httpx.Client, tiny: kad.KadForCausalLM, rule: str, sampling: dict[str, Any]
) -> None:
    found = ask(http, rule=rule, **sampling, max_tokens=24, num_draft_tokens=3)
    how = kad.Sampling(**sampling, max_new_tokens=24)
    truth = kad.trace(tiny, QUESTION, sampling=how, num_draft_tokens=3, rule=rule)
    same(found.trace, truth)
    assert found.trace.rule_text == truth.rule_text
    assert found.trace.prompt == truth.prompt
    assert found.trace.models == truth.models
    assert found.trace.generation == {name: truth.generation[name] for name in truth.generation if name != "asked"}
    assert found.token_ids == [position.token for position in truth.positions]
    assert {"accepted", "corrected"} & {position.event for position in found.trace.positions}


@pytest.mark.parametrize("base_prompt", ["qa:ends=base", "Ask {question}\nReply\n", "Ask {question}\n:ends=rule"])
def test_the_base_model_may_have_a_prompt_of_its_own(
    http: httpx.Client, tiny: kad.KadForCausalLM, base_prompt: str
) -> None:
    """What p may not keep depends on the text so far: the stops of these prompts."""
    found = ask(http, temperature=0, base_prompt=base_prompt, max_tokens=12, num_draft_tokens=3)
    how = kad.Sampling(temperature=0, max_new_tokens=12)
    truth = kad.trace(tiny, QUESTION, sampling=how, base_prompt=base_prompt, num_draft_tokens=3)
    same(found.trace, truth)
    assert found.trace.base_prompt == truth.base_prompt
    again = ask(http, temperature=0, base_prompt=base_prompt, max_tokens=5, continuation=found.token_ids[:7])
    assert again.token_ids == found.token_ids
    assert list(again.positions) == list(range(6, 12))
    for index, position in again.positions.items():
        wanted = truth.positions[index]
        assert position.deferred_mass == pytest.approx(wanted.deferred_mass, rel=1e-3, abs=1e-6)
        assert position.p == pytest.approx(wanted.p, rel=1e-3, abs=1e-6)


def test_a_continuation_in_the_middle_of_what_the_base_model_never_keeps(
    http: httpx.Client, tiny: kad.KadForCausalLM
) -> None:
    """After "\\nA", p must not keep the "sk" that completes the stop. Twice: then the prompt is in a cache."""
    rule, base_prompt = "dual:threshold=0.0", "Ask {question}\nReply\n"
    begun = tiny.tokenizer("First\nA", add_special_tokens=False).input_ids
    for _ in range(2):
        found = ask(http, continuation=begun, temperature=0, rule=rule, base_prompt=base_prompt, max_tokens=3)
        truth = kad.trace(tiny, QUESTION, found.token_ids, rule=rule, base_prompt=base_prompt)
        assert truth.positions[len(begun)].deferred_mass > 0
        for index, position in found.positions.items():
            wanted = truth.positions[index]
            assert position.deferred_mass == pytest.approx(wanted.deferred_mass, rel=1e-3, abs=1e-9)
            assert position.pi == pytest.approx(wanted.pi, rel=1e-3, abs=1e-6)


def test_what_if_the_text_had_gone_on_otherwise(http: httpx.Client, tiny: kad.KadForCausalLM) -> None:
    """The chosen token comes first, with its own numbers; then the text that belongs to it."""
    found, place = ask(http, temperature=0), 5
    chosen = next(row.token for row in found.positions[place].candidates if row.token != found.token_ids[place])
    continuation = [*found.token_ids[:place], chosen]
    other = ask(http, temperature=0, continuation=continuation)
    assert other.token_ids[: place + 1] == continuation
    assert next(iter(other.positions)) == place
    assert other.usage["prompt_tokens_details"]["cached_tokens"] > other.usage["prompt_tokens"]
    assert other.text.endswith(other.content)

    prompt = [*kad.generate(tiny, QUESTION, sampling=kad.Sampling(max_new_tokens=1)).prompt_ids, *continuation]
    truth = kad.generate(tiny, prompt, sampling=kad.Sampling(temperature=0))
    assert other.token_ids[place + 1 :] == truth.token_ids
    traced = kad.trace(tiny, QUESTION, other.token_ids)
    for index, position in other.positions.items():
        assert position.pi == pytest.approx(traced.positions[index].pi, rel=1e-3, abs=1e-6)
        assert position.base_share == pytest.approx(traced.positions[index].base_share, abs=1e-3)
        assert position.text == traced.positions[index].text


def test_a_continuation_that_ends_the_text(http: httpx.Client) -> None:
    whole = ask(http, temperature=0)
    end = ask(http, temperature=0, continuation=whole.token_ids)
    assert (len(end.positions), end.token_ids) == (1, whole.token_ids)
    assert end.trace.generation["finish_reason"] == "stop"
    assert end.text == whole.text
    assert end.usage["prompt_tokens"] > 0


def test_a_continuation_between_the_bytes_of_a_character(http: httpx.Client, tiny: kad.KadForCausalLM) -> None:
    parts = tiny.tokenizer("é", add_special_tokens=False).input_ids
    assert len(parts) > 1
    found = ask(http, temperature=0, continuation=[360, *parts], max_tokens=2)
    assert found.trace.positions[0].text == "é"
    assert found.text.startswith("Firsté")


@pytest.mark.parametrize(("of", "rule"), [("base", "base_only"), ("aligned", "aligned_only")])
def test_the_models_alone(http: httpx.Client, tiny: kad.KadForCausalLM, of: str, rule: str) -> None:
    found = ask(http, of=of, temperature=0, rule="dual:threshold=0.3", max_tokens=30)
    assert found.trace.rule == {"rule": rule}
    own = "p" if of == "base" else "p_aligned"
    assert all(position.pi == pytest.approx(getattr(position, own), abs=1e-5) for position in found.trace.positions)
    truth = kad.generate(tiny, QUESTION, rule=rule, sampling=kad.Sampling(temperature=0, max_new_tokens=30))
    assert found.text == found.content == truth.text


def test_what_a_request_may_ask_for_beside_the_field(http: httpx.Client, tiny: kad.KadForCausalLM) -> None:
    """It is a chat completion: the details are those of the text that stops, penalties and choices give."""
    more = {"temperature": 3.0, "seed": 4, "max_tokens": 9, "stop": ["Then"], "frequency_penalty": 0.5}
    plain = http.post(CHAT, json={**ASKED, **more}).json()["choices"][0]
    found = ask(http, **more)
    assert found.text == found.content == plain["message"]["content"]
    with http.stream("POST", CHAT, json={**ASKED, **more, "n": 2, "stream": True, "kad": {}}) as response:
        chunks = [chunk for chunk in events(response) if "kad" in chunk]
    positions = [
        [
            chunk["kad"]["position"]["token"]
            for chunk in chunks
            if chunk["choices"][0]["index"] == choice and "position" in chunk["kad"]
        ]
        for choice in range(2)
    ]
    assert positions == [ask(http, **more | {"seed": 4 + choice}).token_ids for choice in range(2)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kad": {"of": "both"}}, "kad.of: Input should be 'composed', 'base' or 'aligned'."),
        ({"kad": {"off": "base"}}, "Unknown field 'off'."),
        ({"stream": False}, "'kad' belongs to 'stream': true."),
        ({"logprobs": True}, "'kad' says the probabilities of every token; leave 'logprobs' out."),
        ({"rule": "duel"}, "Unknown rule 'duel'."),
        ({"kad": {"continuation": [1 << 20]}}, "kad.continuation has the token id 1048576"),
        ({"kad": {"continuation": [5] * 3000}}, "the models' context holds 2048"),
        ({"num_draft_tokens": 1000}, "num_draft_tokens"),
        ({"base_prompt": "/etc/hostname"}, "base_prompt: give qa, chat, plain, same, or a template with {question}"),
        ({"base_prompt": "few-shot:/etc/hostname"}, "base_prompt: give qa, chat, plain, same, or a template"),
        ({"base_prompt": {"template": 3}}, "A base prompt has at least a template"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required."),
    ],
)
def test_wrong_requests(http: httpx.Client, change: dict[str, Any], message: str) -> None:
    refused = http.post(CHAT, json={**ASKED, "stream": True, "kad": {}, **change})
    assert refused.status_code == 400
    assert message in refused.json()["error"]["message"]
