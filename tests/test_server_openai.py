"""The OpenAI API of kad's own server, through the real `openai` client and over plain HTTP."""

from __future__ import annotations

import functools
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import LogitsProcessorList

import hostile
import kad
from conftest import make_tokenizer
from kad.rules import parse_rule
from kad.text.sampling import processors
from kad.text.streaming import Stream
from speculative_tables import PROMPT, Script, total_variation, true_distribution
from test_text import TableEngine

fastapi = pytest.importorskip("fastapi", reason='pip install "kad-align[server]"')
openai = pytest.importorskip("openai", reason="pip install openai")

from openai.types import Completion, Model  # noqa: E402
from openai.types.chat import ChatCompletion, ChatCompletionChunk  # noqa: E402

from kad.server.masks import Penalties  # noqa: E402
from kad.text.masks import Grammars  # noqa: E402
from server_runs import client, events, running  # noqa: E402

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}]}
SCHEMA = {
    "type": "object",
    "properties": {"left": {"type": "integer"}, "of": {"enum": ["apples", "pens"]}},
    "required": ["left", "of"],
    "additionalProperties": False,
}

TOO_LARGE = [
    ({"enum": ["x" * 200_000]}, "at most 131,072 are allowed"),
    ({"type": "string", "pattern": "^(([a-z]{1,100}){1,100}){1,100}[a-z]{1,99999}$" * 50}, "The schema cannot be used"),
    (functools.reduce(lambda inner, _: {"anyOf": [inner]}, range(400), {"type": "null"}), "The schema cannot be used"),
]


@pytest.fixture(scope="module")
def address(tiny: kad.KadForCausalLM) -> Iterator[str]:
    with running(tiny, "tiny") as address:
        yield address


@pytest.fixture(scope="module")
def api(address: str) -> Iterator[Any]:
    with openai.OpenAI(
        base_url=f"{address}/v1", api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False)
    ) as api:
        yield api


@pytest.fixture(scope="module")
def http(address: str) -> Iterator[httpx.Client]:
    with client(address) as found:
        yield found


def test_the_models(http: httpx.Client, api: Any) -> None:
    assert [Model.model_validate(model).id for model in http.get("/v1/models").json()["data"]] == ["tiny"]
    assert api.models.retrieve("tiny").owned_by == "kad"
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt' here"):
        api.models.retrieve("gpt")


@pytest.mark.supports("kad's own server", "texts of a seed", rules=())
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 3.0, "seed": 7}, {"temperature": 0.7, "top_p": 0.9, "seed": 1}]
)
def test_the_text_is_that_of_kad_generate(api: Any, tiny: kad.KadForCausalLM, options: dict[str, Any]) -> None:
    """Twice: the second time, the prompt is in a cache."""
    truth = kad.generate(tiny, QUESTION, sampling=kad.Sampling(**options, max_new_tokens=60))
    for _ in range(2):
        found = api.chat.completions.create(**ASKED, **options, max_completion_tokens=60)
        ChatCompletion.model_validate(json.loads(found.model_dump_json()), strict=True)
        assert found.choices[0].message.content == truth.text
        assert found.choices[0].finish_reason == ("stop" if truth.finished else "length")
        assert found.usage.prompt_tokens == len(truth.prompt_ids)
        assert found.usage.completion_tokens == len(truth.token_ids)
    assert found.usage.prompt_tokens_details.cached_tokens > 0


def test_the_choices_have_consecutive_seeds(api: Any, tiny: kad.KadForCausalLM) -> None:
    found = api.chat.completions.create(**ASKED, n=3, seed=4, temperature=3.0, max_tokens=9)
    texts = [
        kad.generate(tiny, QUESTION, sampling=kad.Sampling(seed=4 + n, temperature=3.0, max_new_tokens=9)).text
        for n in range(3)
    ]
    assert [choice.message.content for choice in found.choices] == texts
    assert len(set(texts)) > 1
    assert [choice.finish_reason for choice in found.choices] == ["length"] * 3


@pytest.mark.supports("kad's own server", "streaming", rules=())
def test_a_stream_has_the_same_text(api: Any, http: httpx.Client) -> None:
    whole = api.chat.completions.create(**ASKED, n=2, seed=4, temperature=3.0, max_tokens=30)
    asked = {**ASKED, "n": 2, "seed": 4, "temperature": 3.0, "max_tokens": 30, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json={**asked, "stream_options": {"include_usage": True}}) as got:
        assert got.headers["content-type"].startswith("text/event-stream")
        *chunks, done = events(got)
    assert done == "[DONE]"
    read = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks]
    texts = ["", ""]
    for chunk in read[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    ends = [chunk.choices[0].finish_reason for chunk in read[:-1] if chunk.choices[0].finish_reason]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert read[-1].choices == []
    assert read[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_streaming_helper_of_the_client(api: Any, tiny: kad.KadForCausalLM) -> None:
    with api.chat.completions.stream(**ASKED) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == kad.generate(tiny, QUESTION).text


@pytest.mark.supports("kad's own server", "stop strings", rules=())
@pytest.mark.parametrize("stops", [["Then"], ["7.", "Then"], ["zzz", "37. T"], [", 24 + 13 = 37. The"]])
@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_text_is_no_part_of_the_answer(
    api: Any, tiny: kad.KadForCausalLM, stops: list[str], stream: bool
) -> None:
    """Also where a stop reaches over several pieces, and where only its beginning comes."""
    whole = kad.generate(tiny, QUESTION).text
    wanted = whole[: min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))]
    assert wanted != whole
    found = api.chat.completions.create(**ASKED, stop=stops, stream=stream)
    if stream:
        parts = [chunk.choices[0] for chunk in found]
        text, reason = "".join(part.delta.content or "" for part in parts), parts[-1].finish_reason
    else:
        text, reason = found.choices[0].message.content, found.choices[0].finish_reason
    assert (text, reason) == (wanted, "stop")


@pytest.mark.supports("kad's own server", "log-probabilities", rules=())
def test_the_log_probabilities_are_those_of_pi(api: Any, tiny: kad.KadForCausalLM) -> None:
    options = {"rule": "dual:threshold=0.9"}
    found = api.chat.completions.create(
        **ASKED, seed=3, temperature=1.5, max_tokens=12, logprobs=True, top_logprobs=3, extra_body=options
    )
    answer = kad.generate(
        tiny, QUESTION, sampling=kad.Sampling(seed=3, temperature=1.5, max_new_tokens=12), rule=options["rule"]
    )
    content = found.choices[0].logprobs.content
    truth = kad.score(tiny, QUESTION, answer.token_ids, rule=options["rule"]).log_pi.clamp(min=-9999).tolist()
    assert [entry.logprob for entry in content] == pytest.approx(truth, abs=1e-4)
    assert bytes(byte for entry in content for byte in entry.bytes).decode() == answer.text
    for entry in content:
        best = [other.logprob for other in entry.top_logprobs]
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert best[0] >= entry.logprob - 1e-6


@pytest.mark.supports("kad's own server", "completions", rules=())
def test_completions(api: Any, http: httpx.Client, tiny: kad.KadForCausalLM) -> None:
    prompts = ["Question: 2 + 2 =", "Mia has"]
    asked = {"model": "tiny", "prompt": prompts, "max_tokens": 6, "temperature": 0, "logprobs": 2}
    found = Completion.model_validate(http.post("/v1/completions", json=asked).json(), strict=True)
    truth = [
        kad.generate(tiny, prompt, raw=True, sampling=kad.Sampling(temperature=0, max_new_tokens=6))
        for prompt in prompts
    ]
    assert [choice.text for choice in found.choices] == [answer.text for answer in truth]
    assert found.usage.prompt_tokens == sum(len(answer.prompt_ids) for answer in truth)
    first = found.choices[0].logprobs
    assert "".join(first.tokens) == truth[0].text
    assert [
        truth[0].text[place:][: len(token)] for place, token in zip(first.text_offset, first.tokens, strict=True)
    ] == first.tokens
    by_ids = api.completions.create(model="tiny", prompt=truth[0].prompt_ids, max_tokens=6, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in by_ids) == truth[0].text


@pytest.mark.supports("kad's own server", "a rule for each request", rules=())
@pytest.mark.parametrize(
    "body", [{"rule": "base_only"}, {"vllm_xargs": {"rule": "base_only"}}, {"rule": {"rule": "base_only"}}]
)
def test_a_request_may_have_a_rule_of_its_own(api: Any, tiny: kad.KadForCausalLM, body: dict[str, Any]) -> None:
    found = api.chat.completions.create(**ASKED, extra_body=body)
    base = kad.generate(tiny, QUESTION, rule="base_only").text
    assert found.choices[0].message.content == base
    assert base != kad.generate(tiny, QUESTION).text


def test_drafts_are_counted(api: Any) -> None:
    plain = api.chat.completions.create(**ASKED, extra_body={"num_draft_tokens": 0}).usage.completion_tokens_details
    assert (plain.accepted_prediction_tokens, plain.rejected_prediction_tokens, plain.drafted_tokens) == (0, 0, 0)
    usage = api.chat.completions.create(**ASKED, extra_body={"num_draft_tokens": 4}).usage
    drafts = usage.completion_tokens_details
    assert 0 < drafts.accepted_prediction_tokens <= usage.completion_tokens
    assert drafts.accepted_prediction_tokens + drafts.rejected_prediction_tokens <= drafts.drafted_tokens


# ------------------------------------------------------------------------------------------------------- JSON schemas


@pytest.mark.supports("kad's own server", "JSON schemas", rules=())
@pytest.mark.parametrize("seed", range(4))
def test_the_text_follows_its_schema(api: Any, seed: int) -> None:
    kind = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    found = api.chat.completions.create(**ASKED, seed=seed, temperature=1.0, response_format=kind, max_tokens=80)
    value = json.loads(found.choices[0].message.content)
    assert set(value) == {"left", "of"}
    assert type(value["left"]) is int
    assert value["of"] in ("apples", "pens")
    assert found.usage.completion_tokens_details.accepted_prediction_tokens > 0


def test_a_json_object(api: Any) -> None:
    found = api.chat.completions.create(
        **ASKED, seed=1, temperature=0.5, response_format={"type": "json_object"}, max_tokens=200, stop=["}"]
    )
    assert found.choices[0].message.content.startswith("{")


@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "mixture:weight=0.4"])
def test_a_mask_conditions_pi_at_every_token(rule: str, drafts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every random outcome under a mask that depends on the text, before top-k, is enumerated."""

    def mask(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, ids[0, -1:] % 4, -torch.inf)

    assert _distance(rule, drafts, mask, mask, monkeypatch) < 1e-6


@pytest.mark.parametrize("drafts", [0, 2])
def test_penalties_and_biases_act_on_log_pi_as_defined(drafts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every random outcome is enumerated. The definition counts the tokens of the answer, and not of the prompt."""
    made = Penalties(frequency=1.2, presence=-0.7, bias={1: 1.5, 2: -2.0})

    def definition(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.tensor([_penalized(scores[0].tolist(), ids[0, len(PROMPT) :].tolist(), 1.2, -0.7, made.bias)])

    rule, mask = "dual:threshold=0.4", partial(made.mask, len(PROMPT))
    assert _distance(rule, drafts, mask, definition, monkeypatch) < 1e-6


def _penalized(
    scores: list[float], answer: list[int], frequency: float, presence: float, bias: Mapping[int, float]
) -> list[float]:
    """The definition of the OpenAI API."""
    return [
        score + bias.get(token, 0) - answer.count(token) * frequency - (answer.count(token) > 0) * presence
        for token, score in enumerate(scores)
    ]


def _distance(rule: str, drafts: int, mask: Any, definition: Any, monkeypatch: pytest.MonkeyPatch) -> float:
    """Between the texts of a stream with a mask and pi under its definition, both before top-k: total variation."""
    model, script = TableEngine(rule, vocab=4, eos=3), Script()
    monkeypatch.setattr("kad.text.streaming.TorchRandomness", lambda seed: script)
    how = kad.Sampling(max_new_tokens=3, temperature=1.0, top_k=2)
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for _ in script.runs():
        answer = Stream(model, PROMPT, model.composition, how, drafts, masks=[mask]).finish()
        found[tuple(answer.token_ids)] += script.probability
    made = LogitsProcessorList([definition, *processors(how.apply(model.generation_config, None), len(PROMPT))])
    pi = true_distribution(parse_rule(rule), vocab=4, new_tokens=3, eos=3, processors=made)
    return total_variation(dict(found), pi)


@pytest.mark.supports("kad's own server", "penalties and biases", rules=())
@pytest.mark.parametrize(("drafts", "frequency", "presence"), [(0, 2, 1), (4, 2, -2)])
def test_penalties_of_a_request(
    api: Any, tiny: kad.KadForCausalLM, drafts: int, frequency: float, presence: float
) -> None:
    """The greedy text is the best token of log pi with the penalties of the definition, one after the other.

    Without its first words, the pair is unsure of its text. So each of the three changes it, and so would counting
    the prompt.
    """
    usual = kad.generate(tiny, QUESTION, sampling=kad.Sampling(temperature=0, max_new_tokens=3))
    bias, answer = dict.fromkeys(usual.token_ids, -100.0), list[int]()
    with torch.no_grad():
        for _ in range(16):
            log_pi = tiny(torch.tensor([[*usual.prompt_ids, *answer]])).logits[0, -1].tolist()
            scores = _penalized(log_pi, answer, frequency, presence, bias)
            answer.append(scores.index(max(scores)))
    found = api.chat.completions.create(
        **ASKED, temperature=0, frequency_penalty=frequency, presence_penalty=presence, max_tokens=16,
        logit_bias={str(token): value for token, value in bias.items()}, extra_body={"num_draft_tokens": drafts},
    )  # fmt: skip
    assert found.choices[0].message.content == tiny.tokenizer.decode(answer, skip_special_tokens=True)


def test_a_grammar_answers_in_any_order() -> None:
    """Going back to other drafts gives the mask of a matcher that read the text from its beginning."""
    tokenizer = kad.load("tiny").tokenizer
    end = tokenizer.eos_token_id
    ids = tokenizer('{"left":-12,"of":"pens"}', add_special_tokens=False).input_ids
    other = tokenizer('{"left":7,"of":"apples"}', add_special_tokens=False).input_ids
    grammar = Grammars(tokenizer, [end]).of_schema(SCHEMA)

    def allowed(asked: Any, text: list[int]) -> list[int]:
        scores = asked(torch.tensor([[9, 9, *text]]), torch.zeros(1, len(tokenizer) + 3))
        return (scores[0] == 0).nonzero().flatten().tolist()

    mask = partial(grammar.mask, 2)
    for text in ([], ids[:4], ids[:2], ids, other[:6], [*ids, end], ids[:-1], other, ids):
        fresh = partial(Grammars(tokenizer, [end]).of_schema(SCHEMA).mask, 2)
        assert allowed(mask, text) == allowed(fresh, text)
    assert allowed(mask, ids) == [end]
    assert set(allowed(mask, [])) == {token for token in range(len(tokenizer)) if _begins_object(tokenizer, token)}


def _begins_object(tokenizer: Any, token: int) -> bool:
    text = tokenizer.decode([token])
    return bool(text) and '{"left":'.startswith(text)


def test_a_tokenizer_without_bytes_has_no_grammars(model: kad.KadForCausalLM) -> None:
    model.tokenizer = make_tokenizer()
    asked = {
        "model": "pair",
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "json_object"},
    }
    with running(model) as address, client(address) as http:
        refused = http.post("/v1/chat/completions", json=asked)
        assert refused.status_code == 400
        assert "cannot be read as bytes" in refused.json()["error"]["message"]
        del asked["response_format"]
        assert http.post("/v1/chat/completions", json={**asked, "max_tokens": 2}).status_code == 200


# ---------------------------------------------------------------------------------------------------------- wrong input

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        (CHAT, {"rule": "duel"}, "Unknown rule 'duel'."),
        (CHAT, {"rule": "x" * 300}, "rule: String should have at most 256 characters."),
        (
            CHAT,
            {"rule": "base_only", "vllm_xargs": {"rule": "dual"}},
            "'rule' and 'vllm_xargs' name two rules; give one.",
        ),
        (CHAT, {"rules": "dual"}, "Unknown field 'rules'."),
        (CHAT, {"temperature": -1}, "temperature: Input should be greater than or equal to 0."),
        (CHAT, {"temperature": 1e-40}, "must be 0 or in [0.01, 1000], but is 1e-40."),
        (CHAT, {"deferral_temperature": 1e-9}, "must be a number from 0.01 to 1000, but is 1e-09."),
        (CHAT, {"top_p": 0}, "top_p: Input should be greater than 0."),
        (CHAT, {"seed": -3}, "seed: Input should be greater than or equal to 0."),
        (CHAT, {"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1."),
        (CHAT, {"n": 1000}, "n: Input should be less than or equal to 128."),
        (CHAT, {"logit_bias": {"99999": 1}}, "logit_bias has the token id 99999, but the largest one is"),
        (CHAT, {"logit_bias": {"x": 1}}, "logit_bias.x: Input should be a valid integer"),
        (CHAT, {"logit_bias": {"3": 101}}, "logit_bias: Input should be less than or equal to 100."),
        (CHAT, {"frequency_penalty": 3}, "frequency_penalty: Input should be less than or equal to 2."),
        (CHAT, {"tool_choice": "required"}, "'tool_choice' is not supported by this server: its answers call no"),
        (CHAT, {"prediction": {"type": "content"}}, "'prediction' is not supported by this server: leave it out."),
        (CHAT, {"top_logprobs": 2}, "'top_logprobs' needs 'logprobs': true."),
        (CHAT, {"stream_options": {"include_usage": True}}, "'stream_options' belongs to 'stream': true."),
        (CHAT, {"messages": []}, "messages: List should have at least 1 item"),
        (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: Input should be 'system'"),
        (
            CHAT,
            {"response_format": {"type": "json_schema"}},
            "the field 'json_schema' belongs to the type 'json_schema'.",
        ),
        (
            CHAT,
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}},
            "The schema cannot be used: Invalid type: nope",
        ),
        *(
            (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}, message)
            for schema, message in TOO_LARGE
        ),
        (CHAT, {"vllm_xargs": {"rule": "a" * 4_000_000}}, "vllm_xargs.rule: String should have at most 256 characters"),
        (CHAT, {"rule": {"rule": "a" * 4_000_000}}, "rule: a rule has at most 256 characters."),
        (CHAT, {"rule": {"rule": "dual", "threshold": [0.4] * 10_000}}, "rule: a rule has at most 256 characters."),
        (CHAT, {"base_prompt": {"template": "{question}", "stops": ["x"] * 10_000}}, "at most 16 stops of 200"),
        (CHAT, {"base_prompt": {"template": "{question}", "stops": ["x" * 80_000]}}, "at most 16 stops of 200"),
        (CHAT, {"base_prompt": {"template": "{" + "x" * 2_000_000 + "}"}}, "The template '{xxxxx"),
        (CHAT, {"base_prompt": {"template": "{question}", "x" * 2_000_000: 1}}, "A base prompt has no 'xxxxx"),
        (TEXT, {"prompt": ""}, "The prompt is empty"),
        (TEXT, {"prompt": [99999]}, "prompt has the token id 99999, but the largest one is"),
        (TEXT, {"prompt": "x " * 4000}, "the models' context holds 2048, answer included. Shorten it, or start a new"),
        (TEXT, {"prompt": ["x"] * 100, "n": 2}, "prompts times 'n' must be at most 128."),
    ],
)
def test_a_wrong_request_says_what_is_wrong(
    http: httpx.Client, path: str, change: dict[str, Any], message: str
) -> None:
    good = ASKED if path == CHAT else {"model": "tiny", "prompt": "x"}
    refused = http.post(path, json={**good, "max_tokens": 2, **change})
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(refused.text) < 2000


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [{}] * 1_000_000}]}),
        (CHAT, {"kad": {"continuation": [None] * 800_000}, "stream": True}),
        (TEXT, {"prompt": [-1] * 1_000_000}),
        (TEXT, {"prompt": [[-1] * 1_000] * 1_000}),
        (TEXT, {"prompt": [[None] * 800] * 1_000}),
        (TEXT, {"logit_bias": {f"x{number}": 1 for number in range(250_000)}}),
        (TEXT, {f"x{number}": 1 for number in range(250_000)}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_million_mistakes_cost_no_more_than_one(http: httpx.Client, path: str, change: dict[str, Any]) -> None:
    """An error for each of them would take half a minute and gigabytes, while nobody else is answered."""
    body = {**(ASKED if path == CHAT else {"model": "tiny", "prompt": "x"}), **change}
    begun = time.perf_counter()
    text = json.dumps(body, separators=(",", ":"))
    refused = http.post(path, content=text, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400
    assert time.perf_counter() - begun < 8


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x\udfff"}]}]}),
        (TEXT, {"prompt": "\ud800"}),
        (TEXT, {"prompt": ["x", "\ud800"]}),
    ],
)
def test_half_a_surrogate_pair_is_no_text(http: httpx.Client, path: str, change: dict[str, Any]) -> None:
    good = ASKED if path == CHAT else {"model": "tiny"}
    refused = http.post(path, content=json.dumps(good | change), headers={"Content-Type": "application/json"})
    assert refused.status_code == 400, refused.text
    assert "Input should be a valid string" in refused.json()["error"]["message"]


def test_hostile_requests_are_refused_and_the_server_goes_on(address: str) -> None:
    assert hostile.wrong(address, "tiny") == []


def test_another_model_is_not_found(http: httpx.Client) -> None:
    refused = http.post(CHAT, json={**ASKED, "model": "gpt"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


def test_fields_without_effect_are_passed_over(http: httpx.Client) -> None:
    more = {"user": "me", "store": False, "metadata": {}, "presence_penalty": 0, "top_k": -1, "stop": None}
    more |= {"tool_choice": "auto", "tools": [{"type": "function", "function": {"name": "now", "parameters": {}}}]}
    asked = {**ASKED, "max_tokens": 2}
    answered = http.post(CHAT, json={**asked, **more})
    assert answered.status_code == 200, answered.text
    assert answered.json()["choices"] == http.post(CHAT, json=asked).json()["choices"]


def test_the_python_of_the_page_runs(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the example, which names no server."""
    root = Path(__file__).resolve().parents[1]
    code = "\n".join(
        re.findall(r"^```python\n(.*?)^```", (root / "docs" / "server.md").read_text("utf-8"), re.M | re.S)
    )
    assert "http://127.0.0.1:8000" in code
    code += (root / "examples" / "openai_client.py").read_text("utf-8")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("http://127.0.0.1:8000", address), "server.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert re.search(r'^\{"pens":-?\d+\}$', printed, re.M)
    assert printed.count("The answer is") >= 3
