"""A pair whose models have tokenizers of their own, through the public door: against brute force, and in folders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

import kad
import oracle
from conftest import CHAT_TEMPLATE, make_model, make_tokenizer
from kad.engines.pair import Pair
from kad.engines.protocols import Facts
from kad.engines.scorers import Languages, Translated
from kad.errors import RuleError, UsageError, VocabularyError
from kad.evaluation.engine import Engine, SampleRequest
from kad.evaluation.methods import parse_method
from kad.figures.analysis import CheckedPrompt, answer, approximation_on
from kad.figures.probe import SURE, probe
from kad.method.composition import Composition
from kad.method.distribution import RowsWithRest, joined, move_to_token
from kad.pair.base_prompt import WHO_ENDS
from kad.pair.config import KadConfig
from kad.pair.model_files import load_tokenizer
from kad.pair.sources import Source
from kad.rules import parse_rule
from kad.text.batch import generate_all
from kad.text.contexts import Asking, Context
from kad.text.scoring import score_tokens
from kad.text.streaming import Stream
from kad.tokens import Reading, TokenBytes, Translation
from kad.tokens.never_kept import NONE, OVER, Ends
from kad.tokens.token_bytes import whole_characters
from own_rules import Wanted
from speculative_tables import PROMPT, Script, TableScorer, table_row, total_variation
from test_base_prompt import kind_of
from test_rules import parameters
from translation_toys import TableModel, all_texts, brute_force, random_tokenizer

RULES = [
    "dual:threshold=0.3", "primal:budget=0.6", "nudging:threshold=0.4", "confidence_bet:margin=0.1",
    "relative:margin=0.2", "aligned_only", "base_only", "mixture:weight=0.4", "veto:threshold=0.2", "blend", Wanted(),
]  # fmt: skip


class Base(TableModel):
    """The table model of p behind a prompt of one token. `seen` is what its cache holds."""

    reversible = True

    def logits(self, ids: tuple[int, ...]) -> torch.Tensor:
        return super().logits(ids[1:] if ids and ids[0] == len(self.tokens.pieces) - 1 else ids)

    def rollback(self, length: int) -> None:
        if length < self.processed:
            super().rollback(length)

    def release(self) -> None:
        """Nothing to do."""


class Aligned(TableScorer):
    reversible = True

    def release(self) -> None:
        """Nothing to do."""


class Words(SimpleNamespace):
    """A toy tokenizer."""

    __hash__ = object.__hash__


class Toys(Pair):
    """A pair of table models with random tokenizers of their own."""

    device, roles = torch.device("cpu"), ("base", "aligned")  # type: ignore[assignment]

    stops: tuple[bytes, ...] = ()
    ends: str | None = "aligned"

    def __init__(self, rule: str, seed: int, splits: tuple[str, str], longest: int = 4) -> None:
        base, aligned = random_tokenizer(seed, b"a ", 3, splits[0]), random_tokenizer(seed + 50, b"a ", 2, splits[1])
        self.model, self.vocab = Base(base, seed, longest), len(aligned.pieces)
        self.config = KadConfig(vocab_size=self.vocab)
        self.tokenizer = Words(
            bytes=aligned, decode=lambda ids, **_: aligned.bytes_of(ids).decode(), eos_token_id=self.vocab - 1
        )
        self.base_tokenizer = Words(bytes=base)
        self.own_composition = Composition.of(rule)
        self.generation_config = GenerationConfig(eos_token_id=self.vocab - 1)
        self.facts = {"base": Facts(100, None), "aligned": Facts(10, None)}

    def scorers(self, roles: Any) -> dict[str, Any]:
        fresh = Base(self.model.tokens, self.model.seed, self.model.longest)
        return {role: fresh if role == "base" else Aligned(role, self.vocab) for role in roles}

    @property
    def prompt(self) -> list[int]:
        return [len(self.model.tokens.pieces) - 1]

    def truth(self, count: int) -> dict[tuple[int, ...], float]:
        """Every answer of at most `count` tokens with its probability, from phat by brute force and the oracle."""
        rule, row = self.composition.rule, self.row_of_base()

        def pi(answer: tuple[int, ...]) -> list[float]:
            p, q = row(answer), table_row("aligned", PROMPT + answer, self.vocab).softmax(-1).tolist()
            if self.ends == "base":
                q = [v / (1.0 - q[-1]) for v in q[:-1]] + [0.0]
            if rule.name == "primal":
                rest = 1.0 - sum(p)
                fits = [v for v in p if rest + sum(w for w in p if w < v) <= parameters(rule)[0] + 1e-9]
                keep = [float(v >= max(fits, default=0.0)) for v in p]
            else:
                keep = oracle.KEEP[rule.name](p, q, *parameters(rule))
            kept = [k * v for k, v in zip(keep, p, strict=True)]
            return [k + (1.0 - sum(kept)) * v for k, v in zip(kept, q, strict=True)]

        def extend(answer: tuple[int, ...], mass: float) -> Iterator[tuple[tuple[int, ...], float]]:
            if len(answer) == count or (answer and answer[-1] == self.vocab - 1):
                yield answer, mass
                return
            for token, share in enumerate(pi(answer)):
                yield from extend((*answer, token), mass * share)

        return dict(extend((), 1.0))

    def row_of_base(self) -> Callable[[tuple[int, ...]], list[float]]:
        """p's row after an answer, by the definition."""
        aligned, texts = self.tokenizer.bytes, all_texts(self.model)
        nodes = SimpleNamespace(tokens=self.model.tokens)
        tail_of = Translation(nodes, aligned)._canonical_tail  # type: ignore[arg-type]
        end = None if self.ends == "aligned" else self.vocab - 1

        def row(answer: tuple[int, ...]) -> list[float]:
            found = brute_force(texts, aligned, answer, tail_of(answer), stops=self.stops, end=end)
            text = aligned.bytes_of(answer)
            unknown = found is None or whole_characters(text) < len(text)
            return [0.0] * self.vocab if unknown else found.tolist()  # type: ignore[union-attr]

        return row

    def found(self, monkeypatch: pytest.MonkeyPatch, count: int, drafts: int) -> dict[tuple[int, ...], float]:
        """The same from `kad.generate`, by enumerating every random outcome, with a search that is not cut short."""
        script = Script()
        with monkeypatch.context() as patch:
            patch.setattr("kad.text.streaming.TorchRandomness", lambda seed: script)
            patch.setattr("kad.text.contexts.token_bytes", lambda tokenizer: tokenizer.bytes)
            patch.setattr("kad.engines.scorers.LEAST", 0.0)
            patch.setattr("kad.engines.scorers.LEAST_BRANCH", 0.0)
            whole = partial(Translation, most_branches=20_000)
            patch.setattr("kad.engines.scorers.Translation", whole)
            how = kad.Sampling(max_new_tokens=count, temperature=1.0)
            answers: dict[tuple[int, ...], float] = defaultdict(float)
            stops, other = tuple(stop.decode() for stop in self.stops), self.base_tokenizer is not None
            context = Context(list(PROMPT), self.prompt, stops, translated=other, ends=self.ends)
            for _ in script.runs():
                answer = Stream(self, context, self.composition, how, drafts, origins=False).finish()
                answers[tuple(answer.token_ids)] += script.probability
        return dict(answers)


@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_text_has_the_distribution_of_the_definition(
    rule: str, drafts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys = Toys(rule, 3, ("none", "words") if drafts else ("gpt2", "none"))
    assert total_variation(toys.found(monkeypatch, 2, drafts), toys.truth(2)) < 1e-5


@pytest.mark.parametrize("seed", range(4, 8))
def test_random_tokenizers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    toys = Toys("dual:threshold=0.3", seed, ("words", "gpt2") if seed % 2 else ("none", "none"))
    assert total_variation(toys.found(monkeypatch, 2, 1), toys.truth(2)) < 1e-5


def test_rows_at_a_deferral_temperature_are_those_of_a_sharper_model() -> None:
    toys, rows = Toys("dual:threshold=0.3", 3, ("none", "words")), []
    for temperature, sharpness in ((0.5, 1.5), (1.0, 3.0)):
        scorer = Base(toys.model.tokens, 3, 4, sharpness)
        languages = Languages(toys.model.tokens, toys.tokenizer.bytes, toys.vocab)
        translated = Translated(scorer, toys.prompt, 1, languages, temperature)
        rows.append(joined(translated.advance(torch.tensor([0, 1]), 2)) / temperature)
    torch.testing.assert_close(*rows)


class OneTokenizer(Toys):
    """The same with one tokenizer, and a prompt of p's own. p's end token is not q*'s."""

    def __init__(self, rule: str, seed: int, splits: tuple[str, str], longest: int = 4) -> None:
        super().__init__(rule, seed, splits, longest)
        both = self.model.tokens
        self.vocab, self.base_tokenizer = len(both.pieces), None
        self.config = KadConfig(vocab_size=self.vocab)
        self.tokenizer.bytes, self.tokenizer.eos_token_id = both, self.vocab - 1
        self.tokenizer.decode = lambda ids, **_: both.bytes_of(ids).decode()
        self.generation_config = GenerationConfig(eos_token_id=self.vocab - 1)
        self.own_composition = Composition.of(rule)
        self.models = {"base": SimpleNamespace(generation_config=GenerationConfig(eos_token_id=self.vocab - 2))}

    def row_of_base(self) -> Callable[[tuple[int, ...]], list[float]]:
        both, stops = self.model.tokens, [stop.decode() for stop in self.stops]

        def row(answer: tuple[int, ...]) -> list[float]:
            text, p = both.bytes_of(answer).decode(), [0.0] * self.vocab
            for token, mass in enumerate(self.model.logits(answer).softmax(-1).tolist()):
                piece = both.pieces[token]
                kind = OVER if piece is None else kind_of(text, piece.decode(), stops)
                if kind == NONE:
                    p[token] += mass
                elif kind == OVER and self.ends != "aligned":
                    p[-1] += mass
            return p

        return row


@pytest.mark.parametrize(
    ("rule", "ends"),
    [
        *(("dual:threshold=0.3", ends) for ends in WHO_ENDS),
        ("primal:budget=0.6", "rule"),
        ("confidence_bet:margin=0.1", "base"),
        ("base_only", "rule"),
    ],
)
@pytest.mark.parametrize("toys", [Toys, OneTokenizer])
def test_who_ends_an_answer(toys: type[Toys], rule: str, ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = toys(rule, 3, ("none", "words"))
    found.stops, found.ends = (b" a", b"aa "), ends
    for drafts in (0, 2):
        assert total_variation(found.found(monkeypatch, 2, drafts), found.truth(2)) < 1e-5


class TestBrokenEnds:
    """Each of these breaks who ends an answer, and the comparison sees it."""

    def error(self, toys: type[Toys], monkeypatch: pytest.MonkeyPatch, ends: str = "rule") -> float:
        found = toys("dual:threshold=0.1", 3, ("none", "words"))
        found.stops, found.ends = (b" a", b"aa "), ends
        return total_variation(found.found(monkeypatch, 2, 2), found.truth(2))

    @pytest.mark.parametrize("toys", [Toys, OneTokenizer])
    def test_whole(self, toys: type[Toys], monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.error(toys, monkeypatch) < 1e-5

    def test_the_end_counted_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "kad.tokens.never_kept.move_to_token", lambda rows, over, *rest: move_twice(rows, over, *rest)
        )
        assert self.error(OneTokenizer, monkeypatch) > 1e-2

    def test_the_end_counted_twice_in_a_translation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read = Translation.read

        def twice(self: Translation, answer: Sequence[int]) -> Reading:
            found = read(self, answer)
            ended = found.p.get(self._end or 0, 0.0)
            return Reading({token: p / (1 + ended) for token, p in found.p.items()}, (found.rest + ended) / (1 + ended))

        monkeypatch.setattr(Translation, "read", twice)
        assert self.error(Toys, monkeypatch) > 1e-2

    def test_a_begun_stop_counted_as_complete(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kind = Ends._kind
        monkeypatch.setattr(Ends, "_kind", lambda self, text, piece: OVER if kind(self, text, piece) else NONE)
        assert self.error(OneTokenizer, monkeypatch) > 1e-2

    def test_a_begun_stop_counted_as_complete_in_a_translation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        following = Translation._next_token

        def complete(self: Translation, branch: Any, tail: Any, start: int, end: int) -> int | None:
            begun = branch.text.endswith(self._begun) and not branch.ended and len(branch.text) > end
            return self._end if begun else following(self, branch, tail, start, end)

        monkeypatch.setattr(Translation, "_next_token", complete)
        assert self.error(Toys, monkeypatch) > 1e-2

    @pytest.mark.parametrize("toys", [Toys, OneTokenizer])
    def test_q_that_ends_where_it_may_not(self, toys: type[Toys], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kad.text.contexts.Context.never_ends", lambda self, pair: [])
        assert self.error(toys, monkeypatch, "base") > 1e-3


def move_twice(rows: RowsWithRest, over: torch.Tensor, *rest: Any) -> RowsWithRest:
    """Where p's end is moved to a token of q*, and stays where it was too."""
    moved = move_to_token(rows, over, *rest)
    return RowsWithRest(torch.where(over, rows.logits, moved.logits), moved.rest)


class TestBroken:
    """Each of these breaks the answer's distribution, and the comparison sees it."""

    def error(self, monkeypatch: pytest.MonkeyPatch, drafts: int = 2) -> float:
        toys = Toys("base_only", 3, ("none", "words"))
        return total_variation(toys.found(monkeypatch, 2, drafts), toys.truth(2))

    def test_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.error(monkeypatch) < 1e-5

    def test_a_head_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TokenBytes, "is_extended", lambda self, prefix: prefix == b"")
        assert self.error(monkeypatch) > 1e-3

    def test_a_head_that_is_not_strict(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            TokenBytes, "extends", lambda self, token, prefix: (self.pieces[token] or b"").startswith(prefix)
        )
        assert self.error(monkeypatch) > 1e-3

    def test_mass_of_nobody_that_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        row = Translated._row

        def kept(self: Translated, reading: Any) -> torch.Tensor:
            made = row(self, reading)
            return torch.cat((made[-1:].logaddexp(made[:1]), made[1:-1], torch.tensor([-1e4])))

        monkeypatch.setattr(Translated, "_row", kept)
        assert self.error(monkeypatch) > 1e-3

    def test_drafts_that_stay_in_the_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def forgetful(self: Translated, length: int) -> None:
            self._read = min(self._read, length)

        monkeypatch.setattr(Translated, "rollback", forgetful)
        assert self.error(monkeypatch) > 1e-3


# ---------------------------------------------------------------------- folders of models


TEXT = ["The cat sat on the mat. The dog ran.", "What is it? It is the answer.", "one two three four five"]


def trained(size: int, end: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE. Tokenizers of different sizes have different tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT if size > 280 else TEXT[1:], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base and an aligned model with tokenizers of their own, as folders."""
    root, found = tmp_path_factory.mktemp("translated"), {}
    for seed, (role, size, end) in enumerate((("base", 290, "<end>"), ("aligned", 275, "<stop>"))):
        tokenizer = trained(size, end)
        part = make_model(seed, vocab=len(tokenizer), eos_token_id=0, bos_token_id=None, pad_token_id=None)
        part.save_pretrained(root / role)
        tokenizer.save_pretrained(root / role)
        found[role] = str(root / role)
    return found


@pytest.fixture(scope="module")
def pair(where: dict[str, str]) -> kad.KadForCausalLM:
    return kad.load(**where, rule="dual:threshold=0.2")


GREEDY = kad.Sampling(temperature=0, max_new_tokens=8)


def test_a_pair_with_two_tokenizers_says_so(where: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    model = kad.load(**where)
    assert model.config.base_tokenizer == "own"
    assert model.config.vocab_size == 275
    assert caplog.messages == [
        "The base model has a tokenizer of its own. It is read through the aligned model's tokens (docs/models.md)."
    ]


def test_an_evaluation_asks_the_base_model_alone_in_its_own_tokens(where: dict[str, str]) -> None:
    """Where nobody says how, it is asked by "qa", and never in the aligned model's tokens."""
    engine = Engine({role: Source.parse(place) for role, place in where.items()})
    method, asked = parse_method("base"), "Question: What is it?\nAnswer:"
    assert engine.renderer(method)([{"role": "user", "content": "What is it?"}]) == asked
    (found,) = engine.generate(method, [SampleRequest(asked, 0, 8, 0.0)])
    tokenizer = load_tokenizer(Source.parse(where["base"]))
    ids = tokenizer(asked, return_tensors="pt").input_ids
    wanted = engine.model("base").model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert found.text == tokenizer.decode(wanted, skip_special_tokens=True)


def test_answers_scores_and_traces_agree(pair: kad.KadForCausalLM) -> None:
    """Drafts change nothing, a score of the answer is what made it, and both prompts are in the trace."""
    for seed in range(3):
        how = kad.Sampling(temperature=1.0, seed=seed, max_new_tokens=6)
        answer = kad.generate(pair, "What is it?", sampling=how, num_draft_tokens=0)
        found = score_tokens(pair, answer.prompt, answer.token_ids, pair.composition)
        assert [piece.base_share for piece in answer.pieces] == pytest.approx(found.base_share.tolist(), abs=1e-4)
        assert [piece.deferred_mass for piece in answer.pieces] == pytest.approx(found.deferred_mass.tolist(), abs=1e-4)
    plain, drafted = (kad.generate(pair, "What is it?", sampling=GREEDY, num_draft_tokens=n) for n in (0, 3))
    assert plain.token_ids == drafted.token_ids
    made = kad.trace(pair, "What is it?", sampling=GREEDY)
    assert [position.token for position in made.positions] == plain.token_ids
    for position in made.positions:
        assert position.nobody == pytest.approx(1 - sum(row.p for row in position.candidates), abs=0.02)
        others = [0.0, *(row.p for row in position.candidates if row.token != position.token)]
        assert (position.rank is None) == any(p <= position.p < p + position.nobody for p in others)
    assert any(position.nobody > 0.1 for position in made.positions)
    assert made.base_prompt == "Question: What is it?\nAnswer:"


def test_the_playground_shows_both_prompts_and_goes_on(pair: kad.KadForCausalLM) -> None:
    pytest.importorskip("fastapi", reason='pip install "kad-align[server]"')
    from server_runs import client, detailed, running

    truth = kad.trace(pair, "What is it?", sampling=GREEDY)
    request = {"model": "pair", "messages": [{"role": "user", "content": "What is it?"}], "temperature": 0}
    begun = [position.token for position in truth.positions[:3]]
    with running(pair) as address, client(address) as http:
        for continuation, first in (([], 0), (begun, 2)):
            body = request | {"max_tokens": 8 - len(continuation)}
            tokens = detailed(http, body, continuation=continuation).tokens
            assert tokens[0]["trace"]["base_prompt"] == "Question: What is it?\nAnswer:"
            assert tokens[0]["trace"]["prompt"] == truth.prompt
            for step, position in zip(tokens, truth.positions[first:], strict=True):
                assert step["position"]["token"] == position.token
                assert step["position"]["pi"] == pytest.approx(position.pi, rel=1e-3)


def test_the_playground_asks_the_base_model_alone_in_its_own_tokens(pair: kad.KadForCausalLM) -> None:
    """The column "base alone": p's tokens and probabilities after its own prompt, "what if", and its stops."""
    pytest.importorskip("fastapi", reason='pip install "kad-align[server]"')
    from server_runs import client, detailed, running

    prompt = pair.base_tokenizer("Question: What is it?\nAnswer:", return_tensors="pt").input_ids
    ids = pair.base.generate(prompt, max_new_tokens=8, do_sample=False)
    with torch.no_grad():
        rows = pair.base(ids).logits[0, prompt.shape[1] - 1 : -1].softmax(-1)
    wanted = ids[0, prompt.shape[1] :].tolist()
    text = pair.base_tokenizer.decode(wanted, skip_special_tokens=True)
    request = {"model": "pair", "messages": [{"role": "user", "content": "What is it?"}], "temperature": 0}
    with running(pair) as address, client(address) as http:

        def ask(continuation: Sequence[int] = (), **change: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
            tokens, end, _, _ = detailed(http, request | change, of="base", continuation=list(continuation))
            trace = tokens[0]["trace"]
            assert trace["prompt"] == "Question: What is it?\nAnswer:"
            assert (list(trace["models"]), trace["generation"]["draft_tokens"]) == (["base"], 0)
            return [step["position"] for step in tokens], end

        whole, end = ask(max_tokens=8)
        assert ([position["token"] for position in whole], end["text"]) == (wanted, text)
        for position, token, row in zip(whole, wanted, rows, strict=True):
            assert position["token"] == token
            assert position["p"] == position["pi"] == pytest.approx(float(row[token]), rel=1e-3)
            assert position["p_aligned"] is position["acceptance"] is None
            assert [candidate[0] for candidate in position["candidates"]] == row.topk(8).indices.tolist()
        again, end = ask(wanted[:3], max_tokens=5)
        assert [position["token"] for position in again] == wanted[2:]
        assert end["text"] == text
        assert [position["p"] for position in again] == pytest.approx([one["p"] for one in whole[2:]], rel=1e-3)
        other = whole[2]["candidates"][1]
        (chosen, *_), _ = ask([*wanted[:2], other[0]], max_tokens=1)
        assert (chosen["token"], chosen["p"]) == (other[0], pytest.approx(other[1], rel=1e-3))
        stop = next(letter for letter in text[1:] if letter.isascii())
        _, end = ask(stop=[stop])
        assert (end["text"], end["generation"]["finish_reason"]) == (text.partition(stop)[0], "stop_string")
        for change in ({"logit_bias": {"3": 1}}, {"response_format": {"type": "json_object"}}):
            body = {**request, "stream": True, "kad": {"of": "base"}, **change}
            refused = http.post("/v1/chat/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "kad")


def test_a_probe_counts_tokens_and_not_the_mass_of_nobody(pair: kad.KadForCausalLM) -> None:
    found = probe(pair, ["What is it?", "Who?"], max_new_tokens=12)
    positions = [at for asked in ("What is it?", "Who?") for at in
                 kad.trace(pair, asked, sampling=kad.Sampling(temperature=0, max_new_tokens=12)).positions]  # fmt: skip
    assert max(at.nobody for at in positions) > 0.5
    assert "(no token)" in {row.base for row in found.disagreements}
    assert found.sure == sum(max(c.p for c in at.candidates) >= SURE for at in positions) / len(positions)
    assert found.deferred_mass == pytest.approx(
        sum(at.deferred_mass or 0.0 for at in positions) / len(positions), abs=1e-4
    )


def test_the_knapsack_of_a_pair_with_two_tokenizers_is_refused(pair: kad.KadForCausalLM) -> None:
    with pytest.raises(UsageError, match="Take a pair with one tokenizer"):  # before it generates
        answer(pair, pair.tokenizer, [CheckedPrompt("What is it?")], pair.rule, max_new_tokens=2)
    text = kad.generate(pair, "What is it?", sampling=GREEDY)
    with pytest.raises(UsageError, match="Take a pair with one tokenizer"):
        approximation_on(pair, [text], budget=0.9, threshold=0.4)


def test_a_conversation_and_a_batch(pair: kad.KadForCausalLM) -> None:
    talk, said = kad.Conversation(pair, sampling=GREEDY), []
    for question in ("What is it?", "The cat?"):
        answer = talk.say(question).finish()
        said.append({"role": "user", "content": question})
        assert answer.token_ids == kad.generate(pair, said, sampling=GREEDY).token_ids
        said.append({"role": "assistant", "content": answer.text})
    contexts = [Asking(question).context(pair.pair) for question in ("What is it?", "The dog ran")]
    together = generate_all(pair, pair.tokenizer, contexts, sampling=GREEDY)
    alone = [kad.generate(pair, question, sampling=GREEDY).token_ids for question in ("What is it?", "The dog ran")]
    assert [answer.token_ids for answer in together] == alone


def test_a_pair_folder_keeps_it(pair: kad.KadForCausalLM, tmp_path: Path) -> None:
    pair.save_pretrained(tmp_path / "pair")
    again = kad.load(str(tmp_path / "pair"))
    assert again.config.base_tokenizer == "own"
    assert kad.generate(again, "The", sampling=GREEDY).token_ids == kad.generate(pair, "The", sampling=GREEDY).token_ids


def test_without_a_chat_template_both_models_read_one_text(pair: kad.KadForCausalLM) -> None:
    context = Asking("The cat sat", raw=True).context(pair.pair)
    assert pair.base_tokenizer.decode(context.base_ids) == pair.tokenizer.decode(context.ids) == "The cat sat"


def test_what_cannot_be_done_is_said(pair: kad.KadForCausalLM, where: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Use kad\.generate, kad\.stream or kad\.Conversation"):
        pair.generate(torch.tensor([[5, 6]]), max_new_tokens=2)
    model = kad.KadForCausalLM.from_models(**where, reference=where["aligned"], rule="implicit_reward")
    with pytest.raises(RuleError, match="needs a probability of the base model for every token"):
        kad.generate(model, "The", sampling=GREEDY)
    make_model(0).save_pretrained(tmp_path / "letters")
    make_tokenizer().save_pretrained(tmp_path / "letters")
    with pytest.raises(VocabularyError, match="Nor can the base model be read.*because of the base model's tokenizer"):
        kad.load(base=str(tmp_path / "letters"), aligned=where["aligned"])


def test_every_rule_is_tried() -> None:
    cascades = {name for name, rule in kad.rules.registry().items() if issubclass(rule, kad.rules.CascadeRule)}
    assert {parse_rule(rule).name for rule in RULES} == {*cascades - {"lp"}, Wanted.name}
