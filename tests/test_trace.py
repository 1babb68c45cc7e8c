"""Traces: their numbers against the oracle, their JSON, their text, and `kad trace` itself."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import kad
import oracle
from conftest import VOCAB, make_tokenizer
from kad.cli.main import app
from kad.errors import KadError, UsageError
from kad.rules import parse_rule
from kad.text.answer import Piece
from kad.text.answering import generate
from kad.text.prompts import pieces
from kad.text.sampling import Sampling
from kad.tracing.positions import NOTHING_KEPT
from kad.tracing.schema import Trace
from kad.tracing.terminal import overruled, visible
from kad.tracing.tracer import FLOOR, record, trace_tokens
from test_page import make_sample, surest

# Traces keep six significant digits.
DIGITS = {"rel": 6e-6, "abs": 1e-9}
RULES = {
    "dual:threshold=0.2": (oracle.keep_dual, 0.2),
    "primal:budget=0.7": (oracle.keep_primal, 0.7),
    "nudging:threshold=0.4": (oracle.keep_nudging, 0.4),
    "confidence_bet:margin=0.05": (oracle.keep_confidence_bet, 0.05),
    "mixture:weight=0.3": (oracle.keep_mixture, 0.3),
    "lp:budget=0.8": (oracle.keep_lp, 0.8),
}


def logits(seed: int, rows: int = 12, vocab: int = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def recorded(model: kad.KadForCausalLM, tokenizer: Any, prompt: Any) -> Trace:
    ids = prompt(30)[0].tolist()
    return trace_tokens(model, tokenizer, ids[:6], ids[6:])


@pytest.mark.parametrize("rule", RULES)
def test_every_number_is_the_oracles(rule: str) -> None:
    base, aligned = logits(0), logits(1)
    tokens = torch.arange(12) * 5
    keep_of, parameter = RULES[rule]
    for row, position in enumerate(record(parse_rule(rule), tokens, base, aligned)):
        p, q = oracle.softmax(base[row].tolist()), oracle.softmax(aligned[row].tolist())
        keep, token = keep_of(p, q, parameter), position.token
        pi, alpha = oracle.cascade(p, q, keep), oracle.deferred_mass(p, keep)
        assert position.deferred_mass == pytest.approx(alpha, **DIGITS)
        assert position.acceptance == pytest.approx(oracle.acceptance(pi, q), **DIGITS)
        assert [position.p, position.p_aligned, position.pi] == pytest.approx([p[token], q[token], pi[token]], **DIGITS)
        assert position.kept == pytest.approx(keep[token], **DIGITS)
        assert position.base_share == pytest.approx(keep[token] * p[token] / pi[token], **DIGITS)
        assert position.base_share + position.aligned_share == 1.0
        assert position.rank == 1 + sum(x > p[token] for x in p)
        assert position.entropy == pytest.approx(-sum(x * math.log(x) for x in p), **DIGITS)
        divergence = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        assert position.divergence == pytest.approx(divergence, **DIGITS)
        assert position.overlap == pytest.approx(sum(map(min, p, q)), **DIGITS)
        for candidate in position.candidates:
            expected = [values[candidate.token] for values in (p, q, pi)]
            assert [candidate.p, candidate.p_aligned, candidate.pi] == pytest.approx(expected, **DIGITS)


@pytest.mark.parametrize("rule", ["dual:threshold=0.2", "nudging:threshold=0.4", "aligned_only", "base_only"])
def test_tau_separates_kept_from_deferred(rule: str) -> None:
    base, aligned = logits(0), logits(1)
    for row, position in enumerate(record(parse_rule(rule), torch.arange(12), base, aligned)):
        p = oracle.softmax(base[row].tolist())
        assert position.kept == float(p[position.token] >= position.tau)
    ends = {"aligned_only": NOTHING_KEPT, "base_only": 0.0}
    assert position.tau == ends.get(rule, position.tau)


def test_no_token_above_the_floor_is_missing() -> None:
    base = torch.cat([0.2 * logits(2, 6), logits(3, 6)])
    for row, position in enumerate(record(parse_rule("dual"), torch.arange(12), base, logits(1))):
        assert position.floor == FLOOR
        head = {token for token, p in enumerate(oracle.softmax(base[row].tolist())) if p >= FLOOR}
        assert head <= {candidate.token for candidate in position.candidates}


def test_a_token_that_only_one_model_allows() -> None:
    """A mask makes the divergence infinite where q* excludes what p wants, and adds nothing where p excludes it."""
    base, aligned = logits(0, rows=2), logits(1, rows=2)
    aligned[0, 7] = base[1, 7] = -torch.inf
    first, second = record(parse_rule("dual"), torch.tensor([1, 1]), base, aligned)
    assert first.divergence is None
    p, q = (oracle.softmax(row[1].tolist()) for row in (base, aligned))
    expected = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)
    assert second.divergence == pytest.approx(expected, **DIGITS)


def test_product_rules_have_no_origin() -> None:
    base, aligned, reference = logits(0), logits(1), logits(2)
    rule = parse_rule("implicit_reward")
    for row, position in enumerate(record(rule, torch.arange(12), base, aligned, reference)):
        assert (position.base_share, position.aligned_share, position.deferred_mass, position.tau) == (None,) * 4
        pi = oracle.product(*(oracle.softmax(x[row].tolist()) for x in (base, aligned, reference)))
        assert position.pi == pytest.approx(pi[position.token], **DIGITS)


@pytest.mark.core
def test_a_trace_is_one_forward_of_the_models(
    model: kad.KadForCausalLM, recorded: Trace, prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunk by chunk with caches, or all at once: the same; and pi is the model's own."""
    ids = prompt(30)
    log_pi = model(ids).logits[0, 5:-1].gather(-1, ids[0, 6:, None]).squeeze(-1)
    assert [position.pi for position in recorded.positions] == pytest.approx(log_pi.exp().tolist(), rel=1e-4)
    monkeypatch.setattr("kad.text.scoring.LOGITS_AT_ONCE", 5 * VOCAB)
    chunked = trace_tokens(model, make_tokenizer(), ids[0, :6].tolist(), ids[0, 6:].tolist())
    for one, other in zip(chunked.positions, recorded.positions, strict=True):
        assert one.pi == pytest.approx(other.pi, rel=1e-4)
        assert one.token == other.token


def test_deferral_temperature_counts(model: kad.KadForCausalLM, tokenizer: Any, prompt: Any) -> None:
    ids = prompt(12)[0].tolist()
    with model.using(deferral_temperature=0.5):
        sharp = trace_tokens(model, tokenizer, ids[:4], ids[4:])
        log_pi = model(torch.tensor([ids])).logits[0, 3:-1].gather(-1, torch.tensor(ids[4:])[:, None]).squeeze(-1)
    assert sharp.deferral_temperature == 0.5
    assert [position.pi for position in sharp.positions] == pytest.approx(log_pi.exp().tolist(), rel=1e-4)


def test_json_and_back(recorded: Trace) -> None:
    marked = replace(recorded, positions=(replace(recorded.positions[0], event="corrected", rejected_draft=5),))
    for item in (recorded, marked):
        assert Trace.from_json(item.to_json()) == item
    values = json.loads(recorded.to_json())
    assert values["schema"] == "kad-trace/3"
    assert values["summary"]["tokens"] == 24 == len(values["positions"])
    assert values["family"] == "threshold"
    assert values["rule"] == {"rule": "dual", "threshold": 0.2}


def test_events_are_recorded(model: kad.KadForCausalLM, tokenizer: Any, prompt: Any) -> None:
    ids = prompt(8)[0].tolist()
    what = [("accepted",), ("corrected", 7), (), ("bonus",)]
    events = [Piece(token, "", *event) for token, event in zip(ids[4:], what, strict=True)]
    made = trace_tokens(model, tokenizer, ids[:4], ids[4:], events=events)
    assert [position.event for position in made.positions] == ["accepted", "corrected", None, "bonus"]
    assert made.positions[1].rejected_draft == 7
    assert 7 in made.vocabulary
    assert made.summary()["corrected"] == 1


def test_pieces_join_to_the_text(tokenizer: Any) -> None:
    ids = tokenizer("one two\nthree").input_ids
    assert "".join(pieces(tokenizer, ids[3:], ids[:3], special=True)) == " two\nthree"


def test_a_character_of_several_tokens_comes_whole() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = tokenizer("a α🙂b").input_ids
    assert pieces(tokenizer, ids[1:], ids[:1], special=True) == [" ", "", "α", "", "", "", "🙂", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "kad-trace/0"}, r"schema 'kad-trace/0', but 'kad-trace/3' is wanted"),
        ({"positions": [{"token": 1}]}, r"damaged .*candidates"),
        ({"more": 1}, r"damaged .*more"),
    ],
)
def test_other_json_is_refused(recorded: Trace, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Trace.from_dict({**recorded.to_dict(), **change})


def test_bad_use_says_what_to_do(model: kad.KadForCausalLM, tokenizer: Any, recorded: Trace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one token before the answer and one in it"):
        trace_tokens(model, tokenizer, [1], [])
    with pytest.raises(UsageError, match="1 events for 2 tokens"):
        trace_tokens(model, tokenizer, [4], [5, 6], events=[Piece(5, "")])
    with pytest.raises(UsageError, match=r"as .html or .json, not 'trace.txt'"):
        recorded.save(tmp_path / "trace.txt")
    with pytest.raises(UsageError, match="not JSON"):
        Trace.from_json("{")


def test_terminal_view_lists_where_one_model_overruled_the_other(recorded: Trace) -> None:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(recorded)
    shown = console.export_text()
    for title, models in {"p overruled q*": ("p", "p_aligned"), "q* overruled p": ("p_aligned", "p")}.items():
        found = surest(recorded.positions, *models)
        assert overruled(recorded.positions, *models) == found
        count = f"8 of {len(found)}" if len(found) > 8 else f"{len(found)}"
        assert f"{title} (" in shown
        sample = make_sample().trace.positions
        assert overruled(sample, *models) == surest(sample, *models)
        assert len(surest(sample, *models)) > 8
        [listed] = (
            [""] if not found else re.findall(rf"{re.escape(title)} \(\w+\): {count} *\n.*\n((?: *\d+ .*\n)*)", shown)
        )
        assert [int(line.split()[0]) - 1 for line in listed.splitlines()] == found[:8]
    assert "dual:threshold=0.2" in shown
    console.print(recorded.in_terminal(every_position=True))
    assert len([line for line in console.export_text().splitlines() if "%" in line]) >= len(recorded.positions)


def test_control_characters_never_reach_the_terminal() -> None:
    assert visible("a\x1b[31mb\n") == "a�[31mb⏎"
    assert visible("") == "∅"


def test_notebooks_get_the_page_in_a_frame(recorded: Trace) -> None:
    frame = recorded._repr_html_()
    assert frame.startswith("<iframe")
    assert "&lt;!doctype html&gt;" in frame
    assert "<script" not in frame


@pytest.mark.core
class TestCommand:
    """`kad trace` on the embedded pair."""

    run = CliRunner()
    question = "Mia has 24 apples. She buys 13 more. How many apples does she have now?"

    def call(self, *arguments: str) -> Any:
        return self.run.invoke(app, ["trace", *arguments], standalone_mode=False)

    def test_page_and_data(self, tmp_path: Path) -> None:
        result = self.call(self.question, "-t", "0", "--max-new-tokens", "8", "-o", str(tmp_path / "t.json"))
        assert result.exception is None
        assert "Wrote" in result.stderr
        made = Trace.from_json((tmp_path / "t.json").read_text())
        assert made.generation["source"] == "generated"
        assert self.question in made.prompt
        assert made.models == {"base": "big-base", "aligned": "small-aligned"}
        again = self.call(str(tmp_path / "t.json"), "-o", str(tmp_path / "t.html"))
        assert again.exception is None
        assert (tmp_path / "t.html").read_text().startswith("<!doctype html>")

    def test_json_is_the_trace(self) -> None:
        result = self.call(self.question, "-t", "0", "--max-new-tokens", "4", "--json")
        assert Trace.from_dict(json.loads(result.stdout)).summary()["tokens"] == 4

    def test_a_given_text_is_scored(self, tmp_path: Path) -> None:
        (tmp_path / "answer.txt").write_text("The answer is 37.")
        result = self.call(self.question, "--text", str(tmp_path / "answer.txt"), "--json")
        made = Trace.from_dict(json.loads(result.stdout))
        assert made.text == "The answer is 37."
        assert made.generation == {"source": "given", "asked": {"prompt": self.question, "pair": "tiny"}}

    def test_another_rule_beside_it(self, tmp_path: Path) -> None:
        out, few = str(tmp_path / "two.html"), ("-t", "0", "--max-new-tokens", "4")
        assert self.call(self.question, *few, "--beside", "aligned_only", "-o", out).exception is None
        page = (tmp_path / "two.html").read_text()
        data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.S)
        first, second = (Trace.from_dict(values) for values in json.loads(data[1]))
        assert [first.rule_text, second.rule_text] == ["dual:threshold=0.4", "aligned_only"]
        assert first.prompt == second.prompt
        second.save(tmp_path / "second.json")
        files = (str(tmp_path / "second.json"), "--beside", str(tmp_path / "second.json"), "-o", out)
        assert self.call(*files).exception is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--beside", "aligned_only"), r"add -o NAME\.html"),
            (("--beside", "aligned_only", "-o", "two.json"), r"add -o NAME\.html"),
            (("--beside", "duel", "-o", "two.html"), "Unknown rule 'duel'"),
        ],
    )
    def test_a_wrong_second_trace_is_refused_before_anything_is_loaded(
        self, arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result = self.call(self.question, *arguments, "--pair", str(tmp_path / "no-pair"))
        assert isinstance(result.exception, KadError)
        assert re.search(message, str(result.exception))

    def test_wrong_suffix_is_refused_before_anything_is_loaded(self) -> None:
        result = self.call(self.question, "-o", "trace.pdf")
        assert isinstance(result.exception, UsageError)
        assert "as .html or .json, not 'trace.pdf'" in str(result.exception)


class TestSpeculation:
    """What the loop says of each token against what the run counted and what the distributions say."""

    @pytest.fixture
    def speaking(self, model: kad.KadForCausalLM) -> kad.KadForCausalLM:
        """The model with a tokenizer, and without an end of a text."""
        model.tokenizer, model.generation_config.eos_token_id = make_tokenizer(), None
        return model

    @pytest.mark.parametrize("sampled", [False, True])
    @pytest.mark.parametrize("window", [1, 3, 5])
    def test_events_agree_with_the_counts(
        self, speaking: kad.KadForCausalLM, prompt: Any, window: int, sampled: bool
    ) -> None:
        sampling = Sampling(max_new_tokens=60, temperature=1.0 if sampled else 0.0, seed=0)
        answer = generate(speaking, prompt(6)[0].tolist(), sampling=sampling, num_draft_tokens=window)
        counted = answer.statistics
        assert counted is not None
        assert len(answer.pieces) == 60
        events = Counter(piece.event for piece in answer.pieces)
        # The last window may be cut by the end.
        assert 0 <= counted.accepted - events["accepted"] <= window
        assert 0 <= counted.corrections - events["corrected"] <= 1
        assert 0 <= counted.bonus_deferred - events["deferred"] <= 1
        assert counted.corrections > 0
        assert events[None] <= 1  # one token of room leaves nothing to draft
        fallen = sum(1 + len(piece.dropped_drafts) for piece in answer.pieces if piece.event == "corrected")
        assert 0 <= counted.drafted - counted.accepted - fallen <= window
        for piece in answer.pieces:
            assert (piece.rejected_draft is not None) == (piece.event == "corrected")
            assert piece.event == "corrected" or not piece.dropped_drafts
            if piece.event == "corrected":
                assert piece.rejected_draft != piece.token or sampled

    def test_greedy_events_follow_from_the_distributions(self, speaking: kad.KadForCausalLM, prompt: Any) -> None:
        """A draft is accepted exactly where q*'s argmax is pi's; a rejected one is q*'s argmax, those after it are
        q*'s argmax after them."""
        ids = prompt(6)[0].tolist()
        made = kad.trace(speaking, ids, sampling=Sampling(max_new_tokens=40, temperature=0), num_draft_tokens=4)
        assert "corrected" in {position.event for position in made.positions}
        assert max(len(position.dropped_drafts) for position in made.positions) == 3
        for position in made.positions:
            draft = max(position.candidates, key=lambda row: row.p_aligned).token
            if position.event == "accepted":
                assert draft == position.token
            if position.event == "corrected":
                assert draft == position.rejected_draft != position.token
            drafted = [*ids, position.rejected_draft]
            for token in position.dropped_drafts:
                assert int(speaking.aligned(torch.tensor([drafted])).logits[0, -1].argmax()) == token
                assert token in made.vocabulary
                drafted.append(token)
            ids.append(position.token)


def test_a_trace_of_another_version_is_refused(recorded: Trace, tmp_path: Path) -> None:
    later = json.loads(recorded.to_json()) | {"schema": "kad-trace/9"}
    (tmp_path / "later.json").write_text(json.dumps(later))
    done = CliRunner().invoke(app, ["trace", str(tmp_path / "later.json")])
    assert done.exit_code == 2
    assert "schema 'kad-trace/9', but 'kad-trace/3' is wanted" in done.stderr


def test_a_trace_is_read_under_another_threshold_without_a_model(tiny: kad.KadForCausalLM) -> None:
    """As docs/trace.md does it."""
    question = "Ann has 5 pens. She buys 8 more. How many pens does she have now?"
    found = kad.trace(tiny, question, temperature=0)
    for threshold in (0.2, 0.6, 0.95):
        assert all(one.floor <= threshold for one in found.positions)
        read = [1 - sum(row.p for row in one.candidates if row.p >= threshold) for one in found.positions]
        answer = [one.token for one in found.positions]
        expected = kad.score(tiny, question, answer, rule=f"dual:{threshold}").deferred_mass
        assert read == pytest.approx(expected.tolist(), abs=1e-4)
