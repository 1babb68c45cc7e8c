"""A base model on a server: the same text and the same log pi as here, exact lists, faults, refusals."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from typer.testing import CliRunner

import cli_runs
import kad
from conftest import VOCAB, make_model, make_tokenizer
from kad.cli.main import app
from kad.engines.pair import Pair
from kad.engines.remote import client
from kad.engines.remote import model as remote_model
from kad.engines.remote.client import KEY, SECONDS
from kad.engines.remote.model import RemoteModel, RemoteScorer
from kad.errors import OptionError, PairError, RuleError, ServerError, UsageError, VocabularyError
from kad.method.composed import Composed
from kad.method.distribution import Distribution, ListedRows
from kad.method.rules import parse_rule
from kad.pair.config import KadConfig
from kad.pair.folder import read_config
from kad.pair.sources import BASE_URL, Source
from kad.text.batch import generate_all
from kad.text.prompts import encode
from kad.tiny.problems import problems
from remote_servers import FAULTS, answering, completions, faulty
from server_runs import running

RULES = ("dual:threshold=0.4", "primal:budget=0.9", "confidence_bet:margin=0.2", "relative:margin=0.1")
QUESTIONS = [problem.question for problem in problems("held-out", 8)]
GREEDY = kad.Sampling(temperature=0, max_new_tokens=60)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two attempts at the same request."""
    monkeypatch.setattr(client, "_FIRST_PAUSE", 0.01)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """kad's own server, which runs the base model alone."""
    base = kad.load(base="tiny:big-base", aligned="tiny:big-base", rule="base_only", device="cpu", dtype="float32")
    with running(base, "big-base", max_requests=64) as address:
        yield f"{address}/v1"


def load(url: str, **options: Any) -> Any:
    options = {"base_tokenizer": "tiny:big-base", "aligned": "tiny:small-aligned", **options}
    return kad.load(base=url, device="cpu", dtype="float32", **options)


@pytest.fixture(scope="module")
def remote(served: str) -> Any:
    return load(served)


# ------------------------------------------------------------------ the same as here


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("drafts", [0, 4, "auto"])
def test_greedy_text_is_that_of_the_local_pair(tiny: Any, remote: Any, rule: str, drafts: Any) -> None:
    for question in QUESTIONS[:2]:
        here = kad.generate(tiny, question, sampling=GREEDY, rule=rule, num_draft_tokens=0)
        there = kad.generate(remote, question, sampling=GREEDY, rule=rule, num_draft_tokens=drafts)
        assert there.token_ids == here.token_ids
        assert there.base_share == pytest.approx(here.base_share, abs=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_log_pi_of_kept_tokens_is_that_of_the_local_pair(tiny: Any, remote: Any, rule: str) -> None:
    for question in QUESTIONS[:2]:
        text = kad.generate(tiny, question, sampling=GREEDY, rule=rule, origins=False).token_ids
        here, there = (kad.score(model, question, text, rule=rule) for model in (tiny, remote))
        kept = here.base_share > 0.5
        assert kept.sum() > 10
        assert (here.log_pi - there.log_pi)[kept].abs().max() < 1e-4
        assert (here.log_p - there.log_p)[kept].abs().max() < 1e-4
        assert (here.deferred_mass - there.deferred_mass).abs().max() < 1e-4
        assert (here.acceptance - there.acceptance).abs().max() < 1e-4


def test_processors_act_on_log_pi(tiny: Any, remote: Any) -> None:
    sampling = kad.Sampling(temperature=0.8, top_k=5, top_p=0.9, repetition_penalty=1.2, seed=3, max_new_tokens=40)
    texts = [kad.generate(pair, QUESTIONS[0], sampling=sampling, num_draft_tokens=4).text for pair in (tiny, remote)]
    assert texts[0] == texts[1]


def test_a_conversation_reads_on_and_a_prompt_of_its_own_is_read(tiny: Any, remote: Any) -> None:
    said = []
    for pair in (tiny, remote):
        talk = kad.Conversation(pair, sampling=GREEDY)
        said.append([talk.say(question).finish().text for question in QUESTIONS[:2]])
        own = kad.generate(pair, QUESTIONS[0], sampling=GREEDY, base_prompt="Problem: {question}\n:ends=aligned")
        said[-1].append(own.text)
    assert said[0] == said[1]


def test_an_end_of_p_that_is_a_sum_over_tokens_is_whole(tiny: Any, remote: Any) -> None:
    for rule in RULES[:2]:
        answers = [
            kad.generate(pair, QUESTIONS[1], sampling=GREEDY, rule=rule, base_prompt="qa") for pair in (tiny, remote)
        ]
        assert answers[0].token_ids == answers[1].token_ids


def test_a_trace_says_what_is_known_of_p(tiny: Any, remote: Any) -> None:
    here, there = (kad.trace(pair, QUESTIONS[0], sampling=GREEDY) for pair in (tiny, remote))
    assert [at.token for at in here.positions] == [at.token for at in there.positions]
    assert all(abs(one.pi - other.pi) < 1e-4 for one, other in zip(here.positions, there.positions, strict=True))
    unknown = 0
    for one, other in zip(here.positions, there.positions, strict=True):
        p = {row.token: row.p for row in one.candidates}
        for row in other.candidates:
            if row.token in p:
                assert row.p - 1e-4 <= p[row.token] <= row.p + float(other.nobody) + 1e-4
                unknown += row.p == 0.0 < p[row.token]
    assert unknown > 0


@pytest.mark.parametrize("drafts", [0, 3])
def test_many_answers_are_asked_for_at_the_same_time(tiny: Any, remote: Any, drafts: int) -> None:
    prompts = [encode(tiny.tokenizer, question) for question in QUESTIONS[:5]]
    here, there = (
        generate_all(pair, tiny.tokenizer, prompts, sampling=GREEDY, batch_size=size, num_draft_tokens=drafts)
        for pair, size in ((tiny, 1), (remote, 3))
    )
    assert [answer.token_ids for answer in there] == [answer.token_ids for answer in here]
    assert there[0].seconds == there[2].seconds != there[3].seconds


# ------------------------------------------------------------------ the certificate


class Lists:
    """What a server says of one row of p, as `RemoteModel` gives it: a list as long as asked, up to a limit."""

    def __init__(self, row: list[float], limit: int) -> None:
        self.vocab_size, self.limit, self.asked = len(row), limit, 0
        self._best = sorted(enumerate(math.log(p) if p else -9999.0 for p in row), key=lambda pair: -pair[1])

    def first(self, count: int) -> list[tuple[int, float]]:
        return self._best[:count]

    def longer(self, texts: Any, known: Any) -> Any:
        self.asked += 1
        if len(known[0]) >= self.limit:
            raise UsageError("There is no longer list.")
        return [self.first(min(2 * len(known[0]), self.limit))]


def listed(lists: Lists, count: int) -> ListedRows:
    model: Any = lists
    return remote_model._Window(model, lists.vocab_size, [[0]], [lists.first(count)]).rows


TABLES = [
    [0.4, 0.4, 0.2, 0.0, 0.0, 0.0],  # ties
    [0.25, 0.25, 0.25, 0.25, 0.0, 0.0],
    [0.2, 0.2, 0.2, 0.2, 0.1, 0.1],  # ties in primal's critical item
    [0.9, 0.05, 0.02, 0.01, 0.01, 0.01],
    [0.45, 0.35, 0.05, 0.05, 0.05, 0.05],
    [1 / 6] * 6,
    [0.5, 0.3, 0.1, 0.05, 0.03, 0.02],
]
CASCADES = [
    *(f"dual:threshold={tau}" for tau in (0.0499, 0.1999, 0.2499, 0.3999, 0.5001, 1.0)),
    *(f"primal:budget={budget}" for budget in (0.05, 0.3, 0.5, 0.75, 0.9, 1.0)),
    *(f"relative:margin={margin}" for margin in (0.0, 0.1, 0.2, 0.6)),
    *(f"confidence_bet:margin={margin}" for margin in (0.0, 0.2001, 0.5001, 0.7)),
    "aligned_only",
]


@pytest.mark.parametrize("rule", CASCADES)
def test_a_row_is_composed_where_no_token_outside_of_the_list_can_be_kept_and_nowhere_else(rule: str) -> None:
    aligned = Distribution.of(torch.tensor([[0.05, 0.05, 0.1, 0.1, 0.1, 0.6]]).log())
    outcomes = Counter[bool]()
    for row, count in itertools.product(TABLES, range(1, 7)):
        dense = Composed(parse_rule(rule), Distribution.of(torch.tensor([row]).clamp(min=1e-30).log()), aligned)
        rows = Composed(parse_rule(rule), Distribution.of(listed(Lists(row, count), count)), aligned)
        tau = float(rows.rule.log_tau(dense.base, aligned).exp())
        known = sorted(row)[::-1][:count]
        complete = count == 6 or min(known[-1], 1 - sum(known)) < tau * (1 - 1e-4)
        outcomes[complete] += 1
        assert (rows.lacking is None) == complete, (row, count, tau)
        if complete:
            assert torch.allclose(rows.log_pi().exp(), dense.log_pi().exp(), atol=1e-5), (row, count)
        else:
            assert bool(rows.log_pi().isnan().all())
            assert "There is no longer list" in str(rows.lacking)
    assert outcomes[True] > 0


@pytest.mark.parametrize("rule", CASCADES)
def test_longer_lists_are_asked_for_until_the_row_is_complete(rule: str) -> None:
    aligned = Distribution.of(torch.tensor([[0.05, 0.05, 0.1, 0.1, 0.1, 0.6]]).log())
    for row in TABLES:
        lists = Lists(row, 6)
        dense = Composed(parse_rule(rule), Distribution.of(torch.tensor([row]).clamp(min=1e-30).log()), aligned)
        rows = listed(lists, 1)
        for _ in range(2):  # the second time nothing is asked
            made = Composed(parse_rule(rule), Distribution.of(rows), aligned)
            assert made.lacking is None
            assert torch.allclose(made.log_pi().exp(), dense.log_pi().exp(), atol=1e-5), row
            asked, lists.asked = lists.asked, 0
            assert asked == 0 or _ == 0


@pytest.mark.parametrize(
    "rule", ["base_only", "nudging", "dual:threshold=0", "mixture", "veto", "blend", "lp", "product", "contrastive"]
)
def test_rules_that_need_all_of_p_are_refused(remote: Any, rule: str) -> None:
    with pytest.raises(RuleError, match="all of p|reference"):
        kad.generate(remote, QUESTIONS[0], rule=rule)
    if not parse_rule(rule).needs_reference:
        rows = Distribution.of(listed(Lists(TABLES[0], 6), 6))
        with pytest.raises(RuleError, match="all of p"):
            Composed(parse_rule(rule), rows, rows)


def test_deferral_at_another_temperature_is_refused(remote: Any) -> None:
    with pytest.raises(RuleError, match="gives p at temperature 1"):
        kad.generate(remote, QUESTIONS[0], deferral_temperature=0.7)
    with pytest.raises(RuleError, match="gives p at temperature 1"):
        kad.compose("dual", listed(Lists(TABLES[0], 6), 6), torch.zeros(1, 6), deferral_temperature=0.7)


# ------------------------------------------------------------------ a toy server


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random base model, whose rows the toy server has, and a pair of it with another one."""
    root, parts = tmp_path_factory.mktemp("toy"), {"base": make_model(0), "aligned": make_model(1)}
    for role, part in parts.items():
        part.save_pretrained(root / role)
        make_tokenizer().save_pretrained(root / role)

    @cache
    def row(prompt: tuple[int, ...]) -> list[float]:
        with torch.no_grad():
            return parts["base"](torch.tensor([prompt])).logits[0, -1].log_softmax(-1).tolist()

    return root, lambda prompt: row(tuple(prompt))


def of_toy(address: str, root: Path, **options: Any) -> Any:
    """The pair on the toy server. Its texts do not end by themselves."""
    pair = load(f"{address}/v1", **{"base_tokenizer": str(root / "base"), "aligned": str(root / "aligned"), **options})
    pair.generation_config.eos_token_id = None
    return pair


@pytest.mark.slow
def test_sampled_drafts_follow_pi(toy: Any) -> None:
    root, rows = toy
    rule, prompt, runs = "primal:budget=0.5", [5, 9, 30], 300
    local = kad.load(base=str(root / "base"), aligned=str(root / "aligned"), device="cpu", rule=rule)
    local.generation_config.eos_token_id = None
    with torch.no_grad():
        probabilities: dict[tuple[int, int], float] = {}
        pi = local(torch.tensor([prompt])).logits[0, -1].exp()
        for one in pi.topk(6).indices.tolist():
            after = local(torch.tensor([[*prompt, one]])).logits[0, -1].exp()
            probabilities |= {(one, other): float(pi[one] * after[other]) for other in range(VOCAB)}
    with answering(completions(rows)) as address:
        pair = of_toy(address, root, rule=rule)
        seen = Counter[tuple[int, int]]()
        for seed in range(runs):
            sampling = kad.Sampling(max_new_tokens=3, temperature=1, top_k=0, top_p=1, seed=seed)
            ids = kad.generate(pair, prompt, sampling=sampling, num_draft_tokens=3, origins=False).token_ids
            seen[ids[0], ids[1]] += 1
    large = [both for both, chance in probabilities.items() if chance * runs >= 5]
    expected = [probabilities[both] * runs for both in large]
    observed = [seen[both] for both in large]
    assert len(large) > 5
    result = chisquare([*observed, runs - sum(observed)], [*expected, runs - sum(expected)])
    assert result.pvalue > 1e-4


@pytest.mark.parametrize("rule", ["confidence_bet:margin=0.4", "relative:margin=0.3"])
def test_a_list_that_is_too_short_is_an_error_only_where_the_text_comes_by(rule: str, toy: Any) -> None:
    root, rows = toy
    texts, refused = 0, 0
    local = kad.load(base=str(root / "base"), aligned=str(root / "aligned"), device="cpu", rule=rule)
    local.generation_config.eos_token_id = None

    def short(path: str, body: Any) -> tuple[int, Any]:
        if body and body.get("logprobs", 0) > 6:
            return 400, {"error": {"message": f"Requested {body['logprobs']}, which is greater than max allowed: 6"}}
        return completions(rows)(path, body)

    with answering(short) as address:
        pair = of_toy(address, root, rule=rule)
        for start in range(3, 21):
            sampling = kad.Sampling(temperature=0, max_new_tokens=12)
            want = kad.generate(local, [start], sampling=sampling, origins=False).token_ids
            plain, drafted = (_text_or_error(pair, [start], sampling, drafts) for drafts in (0, 5))
            assert plain == drafted or (isinstance(plain, str) and isinstance(drafted, str))
            if isinstance(plain, str):
                assert "longest list, of 6 tokens" in plain
                assert "--max-logprobs" in plain
                refused += 1
            else:
                assert plain == want
                texts += 1
    assert min(texts, refused) >= 3


@pytest.mark.parametrize("sampled", [False, True])
def test_what_stands_behind_the_end_of_a_text_needs_no_list(sampled: bool, toy: Any) -> None:
    root, rows = toy
    end = -1

    def flat_behind_the_end(prompt: list[int]) -> list[float]:
        return [-math.log(VOCAB)] * VOCAB if end in prompt[1:] else rows(prompt)

    def short(path: str, body: Any) -> tuple[int, Any]:
        if body and body.get("logprobs", 0) > 60:
            return 400, {"error": {"message": "greater than max allowed: 60"}}
        return completions(flat_behind_the_end)(path, body)

    met = 0
    with answering(short) as address:
        pair = of_toy(address, root, rule="primal:budget=0.9")
        for start in range(3, 21):
            sampling = kad.Sampling(temperature=1.0 if sampled else 0, max_new_tokens=10, seed=start)
            for place in (2, 5):
                end, pair.generation_config.eos_token_id = -1, None
                end = kad.generate(pair, [start], sampling=sampling, num_draft_tokens=3, origins=False).token_ids[place]
                pair.generation_config.eos_token_id = end
                text = kad.generate(pair, [start], sampling=sampling, num_draft_tokens=3, origins=False).token_ids
                assert sampled or end in text  # other rows behind it, other random numbers
                met += 1
    assert met == 36


def _text_or_error(pair: Any, prompt: list[int], sampling: Any, drafts: int) -> list[int] | str:
    try:
        return kad.generate(pair, prompt, sampling=sampling, num_draft_tokens=drafts, origins=False).token_ids
    except RuleError as error:
        return str(error)


def test_another_tokenizer_is_refused_at_the_start(toy: Any) -> None:
    root, rows = toy
    ours = make_tokenizer()
    with answering(completions(rows, lambda text: ours.encode(text, add_special_tokens=False))) as address:
        of_toy(address, root)
    with (
        answering(completions(rows, lambda text: [token + 1 for token in ours.encode(text)])) as address,
        pytest.raises(VocabularyError, match="has another tokenizer than `base_tokenizer`"),
    ):
        of_toy(address, root)
    with (
        answering(completions(lambda prompt: [*rows(prompt), 0.0])) as address,
        pytest.raises(VocabularyError, match=f"names the token {VOCAB}"),
    ):
        of_toy(address, root)
    with answering(completions(rows, text=lambda token: ours.decode([token]))) as address:
        of_toy(address, root)
    with (
        answering(completions(rows, text=lambda token: "x" + ours.decode([token]))) as address,
        pytest.raises(VocabularyError, match="names the token"),
    ):
        of_toy(address, root)


def test_another_tokenizer_than_that_of_the_aligned_model_is_refused(remote: Any) -> None:
    with pytest.raises(VocabularyError, match="with the same tokenizer"):
        Pair(KadConfig(rule="dual", vocab_size=768, base_tokenizer="own"), remote.models)


BAD = {
    "nan": b'{"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:1": NaN}]}}]}',
    "null": b'{"choices": [{"index": 0, "logprobs": null}]}',
    "fewer": b'{"choices": []}',
    "deep": b"[" * 100_000,
    "huge": b'{"x": "' + b"a" * (1 << 21) + b'"}',
    "text": b'"yes"',
    "other tokens": b'{"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:9999": -0.1}]}}]}',
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_answer_is_one_sentence_in_time(toy: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root, rows = toy
    monkeypatch.setenv(SECONDS, "1")
    good, bad = completions(rows), False

    def answer(path: str, body: Any) -> tuple[int, Any]:
        return (200, BAD[kind]) if bad and path == "/v1/completions" else good(path, body)

    with answering(answer) as address:
        pair = of_toy(address, root)
        stream = kad.stream(pair, [5, 9], sampling=kad.Sampling(temperature=0, max_new_tokens=30), num_draft_tokens=0)
        come = [next(stream).token for _ in range(3)]
        bad, started = True, time.monotonic()
        with pytest.raises(ServerError, match="server 127.0.0.1") as raised:
            stream.finish()
        assert time.monotonic() - started < 5
        assert "\n" not in str(raised.value)
        assert raised.value.answer.token_ids[:3] == come  # type: ignore[attr-defined]
        assert raised.value.answer.finish_reason == "interrupted"  # type: ignore[attr-defined]


# ------------------------------------------------------------------ faults


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_change_no_text(served: str, tiny: Any, kind: str) -> None:
    want = kad.generate(tiny, QUESTIONS[0], sampling=GREEDY).token_ids
    with faulty(served.removesuffix("/v1"), 0.25, seed=1, kinds=(kind,)) as (address, done):
        while True:
            try:  # nothing is asked again at the start
                pair = load(f"{address}/v1")
                break
            except (ServerError, PairError):
                pass
        assert kad.generate(pair, QUESTIONS[0], sampling=GREEDY, num_draft_tokens=2).token_ids == want
    assert done.count(kind) > 2


@pytest.mark.slow
def test_a_soak_of_1000_requests_with_faults(served: str, tiny: Any) -> None:
    want = [kad.generate(tiny, question, sampling=GREEDY).token_ids for question in QUESTIONS]
    with faulty(served.removesuffix("/v1"), 0.05, seed=2) as (address, done):
        pair = load(f"{address}/v1")
        traffic = pair.models["base"].client.traffic
        for question, ids in itertools.cycle(zip(QUESTIONS, want, strict=True)):
            assert kad.generate(pair, question, sampling=GREEDY, num_draft_tokens=1).token_ids == ids
            if traffic.requests >= 1000:
                break
    assert set(done) == set(FAULTS)


def test_a_server_that_drips_is_late(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root, rows = toy
    monkeypatch.setenv(SECONDS, "1")
    good, dripping = completions(rows), False
    with answering(lambda path, body: (time.sleep(30) if dripping else None, good(path, body))[1]) as address:
        pair = of_toy(address, root)
        dripping, started = True, time.monotonic()
        with pytest.raises(ServerError, match="gave no answer in 1 seconds"):
            kad.generate(pair, [5, 9])
        assert time.monotonic() - started < 4


def test_a_server_that_goes_away_and_comes_back(toy: Any) -> None:
    root, rows = toy
    sampling = kad.Sampling(temperature=0, max_new_tokens=12)
    down = 0

    def answer(path: str, body: Any) -> tuple[int, Any]:
        nonlocal down
        if down:
            down -= 1
            return 503, {"error": {"message": "loading"}}
        return completions(rows)(path, body)

    with answering(answer) as address:
        pair = of_toy(address, root)
        want = kad.generate(pair, [5, 9], sampling=sampling).token_ids
        down = 3
        assert kad.generate(pair, [5, 9], sampling=sampling).token_ids == want
        assert down == 0


def test_nobody_there_is_said_at_once(toy: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        started = time.monotonic()
        with pytest.raises(ServerError, match="Is it running"):
            of_toy(f"http://127.0.0.1:{taken.getsockname()[1]}", toy[0])
        assert time.monotonic() - started < 5


# ------------------------------------------------------------------ names, keys, pairs


def test_a_key_goes_to_the_server_and_nowhere_else(toy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root, rows = toy
    seen: list[Any] = []
    with (
        answering(lambda path, body: (401, {"error": "a key is needed"})) as address,
        pytest.raises(PairError, match=KEY),
    ):
        of_toy(address, root)
    monkeypatch.setenv(KEY, "s3cret")
    with answering(completions(rows), seen) as address:
        pair = of_toy(address, root)
        assert {headers.get("Authorization") for headers in seen} == {"Bearer s3cret"}
        pair.save_pretrained(tmp_path / "pair")
        stolen: list[Any] = []
        with (
            answering(completions(rows), stolen) as thief,
            answering(lambda path, body: (302, f"{thief}{path}")) as redirecting,
            pytest.raises(PairError),
        ):
            of_toy(redirecting, root)
        assert stolen == []
    for file in (tmp_path / "pair").iterdir():
        assert b"s3cret" not in file.read_bytes()
    with pytest.raises(PairError, match="without a password"):
        of_toy("http://me:s3cret@127.0.0.1:1", root)


def test_a_pair_does_not_say_where_prompts_go(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, rows = toy
    seen: list[Any] = []
    with answering(completions(rows), seen) as address:
        kad_pair = tmp_path / "pair"
        of_toy(address, root, rule="primal:budget=0.5").save_pretrained(kad_pair)
        written = json.loads((kad_pair / "config.json").read_text())["base"]
        assert written == {"url": f"{address}/v1", "model": None, "tokenizer": str(root / "base")}
        seen.clear()
        with pytest.raises(PairError, match=f"would read your prompts.*{BASE_URL}"):
            kad.load(str(kad_pair))
        assert seen == []
        monkeypatch.setenv(BASE_URL, f"{address}/v1/")
        assert str(kad.load(str(kad_pair)).rule) == "primal:budget=0.5"
        assert seen


def test_names_of_servers(toy: Any, tmp_path: Path) -> None:
    root, rows = toy
    source = Source.on_server("https://host:1/v1/#big", str(root / "base"))
    assert (source.url, source.served, source.allowed) == ("https://host:1/v1", "big", True)
    again = Source.parse(source.to_dict())
    assert (again, again.allowed) == (source, False)
    with pytest.raises(OptionError, match="`base_tokenizer`"):
        kad.load(base="http://host:1/v1", aligned="tiny:small-aligned")
    with pytest.raises(OptionError, match="for a base model on a server"):
        kad.load(base="tiny:big-base", base_tokenizer="tiny:big-base", aligned="tiny:small-aligned")
    for wrong in ({"url": 3, "tokenizer": "x"}, {"url": "http://h/v1"}, {"url": "ftp://h", "tokenizer": "x"}):
        with pytest.raises(PairError):
            Source.parse(wrong)
    with pytest.raises(PairError, match="unknown keys"):
        Source.parse({"url": "http://h/v1", "tokenizer": "x", "token": "y"})

    def two(path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "small"}, {"id": "big"}]}
        return completions(rows)(path, body)

    with answering(two) as address:
        with pytest.raises(PairError, match="has several models.*small, big"):
            of_toy(address, root)
        load(f"{address}/v1#big", base_tokenizer=str(root / "base"), aligned=str(root / "aligned"))
        with pytest.raises(PairError, match="has no model 'huge'"):
            load(f"{address}/v1#huge", base_tokenizer=str(root / "base"), aligned=str(root / "aligned"))


def test_other_engines_refuse_such_a_pair(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BASE_URL, served)
    load(served).save_pretrained(tmp_path / "pair")
    assert read_config(str(tmp_path / "pair")).model_sources()["base"].allowed
    with pytest.raises(PairError, match="on a server.*Transformers cannot run the pair"):
        kad.KadForCausalLM.from_pretrained(str(tmp_path / "pair"))
    with pytest.raises(PairError, match="Only the base model can be on a server"):
        kad.load(base="tiny:big-base", aligned=Source.on_server(served, "tiny:small-aligned"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="gives its most probable tokens alone"):
        load(served).base_model()


def test_a_scorer_has_read_nothing_that_failed(served: str) -> None:
    model = RemoteModel(Source.on_server(served, "tiny:big-base"))
    scorer = RemoteScorer(model, model.vocab_size, torch.device("cpu"))
    rows = scorer.advance(torch.tensor([5, 9, 11]), 2)
    assert (rows.shape, scorer.processed) == ((2, model.vocab_size), 3)
    assert rows.logits.exp().sum(-1) + rows.rest.exp()[:, 0] == pytest.approx([1.0, 1.0], abs=1e-5)
    model.dialect.name = "another"
    with pytest.raises(ServerError, match="There is no model 'another'"):
        scorer.advance(torch.tensor([12]), 1)
    assert scorer.processed == 3
    scorer.rollback(2)
    assert scorer.processed == 2


# ------------------------------------------------------------------ commands


def test_commands(served: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = ("--base", served, "--base-tokenizer", "tiny:big-base", "--aligned", "tiny:small-aligned")
    want = kad.generate(tiny, QUESTIONS[0], sampling=GREEDY).text
    found = cli_runs.as_json(cli_runs.generate(QUESTIONS[0], "--json", "-t", 0, "-n", 60, *models))
    assert found["text"] == want
    assert found["models"]["base"] == served

    def run(*arguments: Any) -> str:
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        return result.stdout

    pair = tmp_path / "pair"
    run("pack", *models, "--rule", "primal:budget=0.9", "-o", pair)
    assert "on a server" in run("info", pair)
    monkeypatch.setenv(BASE_URL, served)
    (tmp_path / "text").write_text(want)
    here = json.loads(
        run("score", tmp_path / "text", "--pair", "tiny", "--rule", "primal:budget=0.9", "--dtype", "float32", "--json")
    )
    there = json.loads(run("score", tmp_path / "text", "--pair", pair, "--dtype", "float32", "--json"))
    assert there["perplexity"]["composed"]["tokens"] == pytest.approx(
        here["perplexity"]["composed"]["tokens"], rel=1e-3
    )
    assert "base" not in there["perplexity"]
    assert served not in run("trace", QUESTIONS[0], "--pair", pair, "-o", tmp_path / "trace.json", "-t", 0)
    assert served.partition("//")[2] not in (tmp_path / "trace.json").read_text()


def test_what_has_come_is_shown_before_the_sentence(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root, rows = toy
    monkeypatch.setenv(SECONDS, "1")
    asked = 0

    def answer(path: str, body: Any) -> tuple[int, Any]:
        nonlocal asked
        asked += path == "/v1/completions"
        return (500, {}) if asked > 6 else completions(rows)(path, body)

    with answering(answer) as address:
        models = ("--base", f"{address}/v1", "--base-tokenizer", root / "base", "--aligned", root / "aligned")
        result = cli_runs.generate("Hi", "--raw", "--draft-tokens", 0, "-t", 0, *models, code=2)
        came = result.stdout.strip("\n")
        assert len(came) == 3  # the other three requests are those of the start
        assert "answers 500" in result.stderr
        asked = 0  # with colors, what p alone has decided waits for the row of q*
        result = cli_runs.generate("Hi", "--raw", "--draft-tokens", 0, "-t", 0, "--color", *models, code=2)
        assert re.sub(r"\x1b\[[0-9;]*m", "", result.stdout).strip("\n") == came
        asked = 0
        result = cli_runs.generate("Hi", "--raw", "--draft-tokens", 0, "-t", 0, "--json", *models, code=2)
        assert cli_runs.as_json(result)["finish_reason"] == "interrupted"
    assert os.environ.get(KEY) is None
