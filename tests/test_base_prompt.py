"""A prompt of its own for the base model: how it is written, and every path against separate full sequences."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kad
from conftest import make_tokenizer
from kad import tiny
from kad.engines.scorers import OwnPrompt, Restricted
from kad.errors import KadError, UsageError
from kad.method.distribution import joined
from kad.pair.base_prompt import WHO_ENDS, BasePrompt
from kad.text.batch import generate_all
from kad.text.contexts import Asking, Context
from kad.text.sampling import end_tokens
from kad.text.scoring import score_tokens
from kad.tokens import TokenBytes
from kad.tokens.never_kept import NONE, OVER, PART, Ends, NeverKept
from speculative_tables import TableScorer

Prompt = Callable[..., Tensor]
GREEDY = kad.Sampling(temperature=0, max_new_tokens=10)
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi {system}"},
    {"role": "assistant", "content": "Hello. "},
    {"role": "user", "content": "Why?"},
]


# ---------------------------------------------------------------------- how it is written


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("qa", "Be kind.\n\nQuestion: Hi {system}\nAnswer: Hello.\n\nQuestion: Why?\nAnswer: "),
        ("chat", "Be kind.\n\nUser: Hi {system}\nAssistant: Hello. \nUser: Why?\nAssistant: "),
        ("plain", "Be kind.\n\nHi {system}\nHello.\n\nWhy?\n"),
        ("Q: {question}\\nA:", "Q: Hi {system}\nA: Hello.\n\nQ: Why?\nA:"),
        ("<{messages}|{question}>", "<User: Hi {system}\nAssistant: Hello. \nUser: Why?\n|Why?>"),
    ],
)
def test_a_template_writes_the_whole_conversation(given: str, text: str) -> None:
    made = BasePrompt.parse(given)
    assert made is not None
    assert made.render(TALK) == text
    assert BasePrompt.parse(json.loads(json.dumps(made.to_dict()))) == made


def test_stops_come_from_the_line_of_the_question() -> None:
    stops = [BasePrompt.parse(given).stops for given in ("qa", "chat", "plain", "{system}Q: {question}\nA:")]  # type: ignore[union-attr]
    assert stops == [("\n\nQuestion:", "\nQuestion:"), ("\nUser:",), (), ("\n\nQ:", "\nQ:")]


def test_a_base_prompt_is_named_by_one_text_where_one_says_it() -> None:
    form = "Q: {question}\nA:"
    assert [BasePrompt.named(given) for given in ("qa", "same", form, None, [5, 6])] == ["qa", "same", form, None, None]
    assert BasePrompt.named(BasePrompt(form, ("##",))) is None
    for given in ("qa:ends=base", f"{form}:ends=base"):
        assert BasePrompt.named(BasePrompt.parse(given)) == given


def test_who_ends_stands_after_any_text_that_names_a_form(tmp_path: Path) -> None:
    (tmp_path / "form.txt").write_text("Frage: {question}\nAntwort:\n")
    for form in ("qa", "Q: {question}\\nA:", str(tmp_path / "form.txt")):
        plain, ended = BasePrompt.parse(form), BasePrompt.parse(f"{form}:ends=base")
        assert plain is not None
        assert ended == replace(plain, ends="base")
        assert BasePrompt.parse(json.loads(json.dumps(ended.to_dict()))) == ended


def test_examples_stand_before_the_question(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n\n{"question": "2+2?", "answer": "4"}\n')
    made = BasePrompt.parse(f"few-shot:{tmp_path / 'some.jsonl'}")
    assert made is not None
    question = [{"role": "user", "content": "3+3?"}]
    head = "Question: 1+1?\nAnswer: 2\n\nQuestion: 2+2?\nAnswer: 4\n\nQuestion: 3+3?\nAnswer: "
    assert made.render(question) == head
    assert made.line_break_for_space().render(question) == head.replace("Answer: ", "Answer:\n")


def test_files_hold_a_template_or_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "form.txt").write_text("Frage: {question}\nAntwort:\n")
    (tmp_path / "form.json").write_text('{"template": "{question}", "stops": ["##"]}')
    assert BasePrompt.parse(tmp_path / "form.txt") == BasePrompt(
        "Frage: {question}\nAntwort:", ("\n\nFrage:", "\nFrage:")
    )
    assert BasePrompt.parse(tmp_path / "form.json") == BasePrompt("{question}", ("##",))
    assert BasePrompt.parse("same") is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("qq", "Unknown base prompt 'qq'. Choose from: qa, chat, plain, few-shot:FILE, same"),
        ("{question} {name}", "has {name}"),
        ({"template": "no place"}, "has no place for the question"),
        ({"template": "{question}", "stops": [""]}, "A stop of a base prompt is a text"),
        ({"template": "{question}", "stop": ["x"]}, "has no 'stop'"),
        ("qa:ends=me", "`ends` of a base prompt is one of rule, aligned, base, not 'me'"),
        ("same:ends=base", "is no form of its own, so it has no `ends`"),
        ({}, "has at least a template"),
        ("few-shot:nowhere.jsonl", "Cannot read the base prompt nowhere.jsonl"),
    ],
)
def test_a_bad_base_prompt_says_what_is_wrong(given: Any, said: str) -> None:
    with pytest.raises(KadError, match=said.replace("(", "\\(")):
        BasePrompt.parse(given)


# ---------------------------------------------------------------------- every path is the definition


@pytest.fixture
def pair(model: kad.KadForCausalLM) -> kad.KadForCausalLM:
    model.tokenizer = make_tokenizer()
    return model


def log_pi(model: kad.KadForCausalLM, base_ids: list[int], ids: list[int], answer: Sequence[int]) -> Tensor:
    """The definition: full sequences, no cache, composed at the last position."""
    with torch.no_grad():
        base, aligned = (
            part(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, -1]
            for part, prompt in ((model.base, base_ids), (model.aligned, ids))
        )
    return kad.compose(model.composition, base, aligned)


def greedy(model: kad.KadForCausalLM, base_ids: list[int], ids: list[int], count: int = 10) -> list[int]:
    answer: list[int] = []
    while len(answer) < count and (not answer or answer[-1] != 1):
        answer.append(int(log_pi(model, base_ids, ids, answer).argmax()))
    return answer


@pytest.mark.parametrize("lengths", [(9, 4), (3, 8), (5, 5), (1, 6), (7, 1)], ids=str)
def test_an_answer_on_any_path_is_composed_of_full_sequences(
    lengths: tuple[int, int], pair: kad.KadForCausalLM, prompt: Prompt
) -> None:
    base_ids, ids = (prompt(length, seed=seed)[0].tolist() for seed, length in enumerate(lengths))
    expected = greedy(pair, base_ids, ids)
    assert expected != greedy(pair, ids, ids)
    for drafts in (0, 1, 4):
        answer = kad.generate(pair, ids, base_prompt=base_ids, sampling=GREEDY, num_draft_tokens=drafts)
        assert answer.token_ids == expected
    found = score_tokens(pair, answer.prompt, expected, pair.composition)
    rows = [log_pi(pair, base_ids, ids, expected[:count])[token] for count, token in enumerate(expected)]
    torch.testing.assert_close(found.log_pi, torch.stack(rows), atol=2e-5, rtol=1e-5)
    direct = {"base_input_ids": torch.tensor([base_ids]), "max_new_tokens": 10, "do_sample": False}
    for options in ({}, {"custom_generate": kad.speculative, "num_draft_tokens": 3}, {"use_cache": False}):
        made = pair.generate(torch.tensor([ids]), **direct, **options)
        assert made[0, len(ids) :].tolist() == expected


def test_batches_and_beams(pair: kad.KadForCausalLM, prompt: Prompt) -> None:
    contexts = [
        Context(prompt(length, seed=i)[0].tolist(), prompt(own, seed=9 + i)[0].tolist())
        for i, (length, own) in enumerate([(3, 7), (8, 2), (5, 5)])
    ]
    expected = [greedy(pair, context.base_ids or [], context.ids) for context in contexts]
    answers = generate_all(pair, pair.tokenizer, contexts, sampling=GREEDY)
    assert [answer.token_ids for answer in answers] == expected

    one = {"base_input_ids": torch.tensor([contexts[0].base_ids]), "max_new_tokens": 6, "num_beams": 3}
    ids = torch.tensor([contexts[0].ids])
    cached, whole = (pair.generate(ids, use_cache=use, do_sample=False, **one) for use in (True, False))
    assert torch.equal(cached, whole)


def test_sampled_speculation_is_exact(pair: kad.KadForCausalLM, prompt: Prompt) -> None:
    """First and second token of sampled answers against pi, by a chi-square test that fails once in 10^6 runs."""
    base_ids, ids = prompt(6, seed=1)[0].tolist(), prompt(3, seed=2)[0].tolist()
    first = log_pi(pair, base_ids, ids, []).exp()
    token = int(first.argmax())
    counts = torch.zeros(2, len(first))
    pair.generation_config.eos_token_id = None
    for seed in range(400):
        how = kad.Sampling(temperature=1.0, seed=seed, max_new_tokens=2)
        found = kad.generate(pair, ids, base_prompt=base_ids, sampling=how, num_draft_tokens=2, origins=False).token_ids
        counts[0, found[0]] += 1
        if found[0] == token:
            counts[1, found[1]] += 1
    for row, pi in zip(counts, (first, log_pi(pair, base_ids, ids, [token]).exp()), strict=True):
        likely = pi * row.sum() >= 5
        expected = torch.cat((pi[likely], pi[~likely].sum().reshape(1))) * row.sum()
        seen = torch.cat((row[likely], row[~likely].sum().reshape(1)))
        statistic = float(((seen - expected) ** 2 / expected.clamp(min=1e-9)).sum())
        degrees = len(seen) - 1
        assert statistic < degrees + 5 * (2 * degrees) ** 0.5 + 25, "further off than chance allows"


@pytest.mark.parametrize("form", ["chat", "chat:ends=base"])
def test_a_conversation_reads_only_what_is_new_of_both_prompts(form: str) -> None:
    model = tiny.pair()
    questions = ["Ann has 5 pens. She buys 8 more. How many?", "And if she loses 3?"]
    talk = kad.Conversation(model, base_prompt=form, sampling=GREEDY, num_draft_tokens=2)
    said: list[dict[str, str]] = []
    for question in questions:
        before = {role: read.scorer.processed for entry in talk.kept._kept for role, read in entry.items()}
        answer = talk.say(question).finish()
        said.append({"role": "user", "content": question})
        fresh = kad.generate(model, said, base_prompt=form, sampling=GREEDY, num_draft_tokens=0)
        assert answer.token_ids == fresh.token_ids
        said.append({"role": "assistant", "content": answer.text})
    assert all(count > 5 for count in before.values()), "the second turn began with empty caches"


def test_the_trace_has_both_prompts() -> None:
    made = kad.trace(tiny.pair(), "Ann has 5 pens. She buys 8 more. How many?", base_prompt="qa", sampling=GREEDY)
    assert made.base_prompt is not None
    assert made.base_prompt.endswith("How many?\nAnswer:\n")
    assert "Answer:" not in made.prompt
    assert made.generation["asked"]["base_prompt"] == "qa"
    assert type(made).from_json(made.to_json()) == made


# ---------------------------------------------------------------------- stops


def kind_of(text: str, piece: str, stops: Sequence[str]) -> int:
    """By the definition, letter by letter: what a token with this piece does to the end of an answer so far."""
    whole = text + piece
    for end in range(len(text) + 1, len(whole) + 1):
        complete = [stop for stop in stops if whole[:end].endswith(stop)]
        if complete:
            return OVER if end - max(map(len, complete)) <= len(text) else PART
    begun = (stop[:count] for stop in stops for count in range(1, len(stop)))
    return PART if piece and any(whole.endswith(beginning) for beginning in begun) else NONE


def kinds_of(tokenizer: Any, text: str, stops: Sequence[str], ends: Sequence[int] = ()) -> Tensor:
    """`kind_of` each token; `ends` end any text."""
    pieces = [tokenizer.decode([token], skip_special_tokens=True) for token in range(len(tokenizer))]
    kinds = torch.tensor([kind_of(text, piece, stops) for piece in pieces])
    kinds[list(ends)] = OVER
    return kinds


def test_stops_are_what_the_definition_says() -> None:
    tokenizer = tiny.pair().tokenizer
    view, stops, size = TokenBytes.of(tokenizer, len(tokenizer)), ("\nAnn", "13.", "A\nA", "3", "nnX"), len(tokenizer)
    ends, met = Ends((1,), size, [stop.encode() for stop in stops], view), set()
    for text in ("", "So it is", "First, 5 + 8 = 1", "So\n", "So\nA", "\n\nAn", "A\nAnn"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        expected = kinds_of(tokenizer, text, stops, (1,))
        assert torch.equal(ends.after(ids).long(), expected), text
        met |= set(expected.tolist())
    assert met == {NONE, PART, OVER}
    assert Ends((1, 4), size).after(ids).nonzero().flatten().tolist() == [1, 4], "without stops no tokenizer is needed"


def test_the_largest_stops_cost_no_more_than_a_look_at_each_token() -> None:
    """They come with a request. A look at every beginning of a stop for every token would take minutes."""
    draw = random.Random(0)
    pieces = ["".join(draw.choices("abcdefghij ", k=draw.randint(1, 8))) for _ in range(30_000)]
    view = TokenBytes(None, [piece.encode() for piece in pieces] + [b"a" * 60], splits=False)
    stops = BasePrompt("{question}", tuple("a" * (184 + count) for count in range(16))).stops
    began = time.perf_counter()
    kinds = Ends((), len(view.pieces), [stop.encode() for stop in stops], view).after([30_000] * 2)
    assert time.perf_counter() - began < 5
    assert [kinds[pieces.index(piece)] for piece in ("a", "b")] == [PART, NONE]


@pytest.mark.parametrize("end", [None, 2, 9], ids=["to the rest", "to a token", "to a foreign token"])
def test_foreign_tokens_and_ends_move_together(end: int | None) -> None:
    tokenizer = tiny.pair().tokenizer
    view, size = TokenBytes.of(tokenizer, len(tokenizer)), len(tokenizer) + 2
    never_kept = NeverKept((7, 9), Ends((2, 3), size, [b"13."], view), end)
    prompt, answer = [5, 6], tokenizer("So it is 1", add_special_tokens=False).input_ids
    restricted = Restricted(TableScorer("base", size), never_kept, 2, 1.3)
    rows = restricted.advance(torch.tensor([*prompt, *answer]), 2)
    restricted.rollback(len(prompt) + len(answer) - 1)
    again = restricted.advance(torch.tensor(answer[-1:]), 1)
    assert torch.equal(joined(again), joined(rows)[1:])
    for row, count in enumerate((len(answer) - 1, len(answer))):
        kinds = [*kinds_of(tokenizer, tokenizer.decode(answer[:count]), ("13.",), (2, 3)).tolist(), PART, PART]
        plain = TableScorer("base", size).advance(torch.tensor([*prompt, *answer[:count]]), 1)[0]
        p, rest = (plain / 1.3).double().softmax(-1), 0.0
        expected = p.clone()
        for token, kind in enumerate(kinds):
            if kind != NONE or token in (7, 9):
                expected[token] = 0.0
        for token, kind in enumerate(kinds):
            if kind == OVER and end is not None:
                expected[end] += p[token]
            elif kind != NONE or token in (7, 9):
                rest += float(p[token])
        found = (joined(rows[row]) / 1.3).double().softmax(-1)
        torch.testing.assert_close(found[:-1], expected, atol=1e-6, rtol=1e-5)
        assert float(found[-1]) == pytest.approx(rest, abs=1e-6)


@pytest.mark.parametrize("ends", WHO_ENDS)
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "base_only", "mixture:weight=0.7"])
def test_who_ends_an_answer_on_every_path(rule: str, ends: str) -> None:
    """Greedy: argmax of pi with p's mass on its own ends deferred, or q*'s end token's."""
    model, question = tiny.pair(), "Ann has 5 pens. She buys 8 more. How many?"
    model.rule = rule
    form = BasePrompt("Ask: {question}\n", ("13", "\n"), ends=ends)
    context = Asking(question, base_prompt=form).context(model.pair)
    assert context.base_ids is not None
    expected: list[int] = []
    eos, own = (end_tokens(config) for config in (model.generation_config, model.pair.models["base"].generation_config))
    end = model.tokenizer.eos_token_id
    for _ in range(12):
        with torch.no_grad():
            p, q = (
                part(torch.tensor([[*ids, *expected]]), use_cache=False).logits[0, -1].softmax(-1)
                for part, ids in ((model.base, context.base_ids), (model.aligned, context.ids))
            )
        kinds = kinds_of(model.tokenizer, model.tokenizer.decode(expected), form.stops, {*eos, *own})
        kinds = torch.nn.functional.pad(kinds, (0, len(p) - len(kinds)), value=PART)
        over = p[kinds == OVER].sum()
        p = p.masked_fill(kinds != NONE, 0.0)
        if ends != "aligned":
            p[end] = over
        if ends == "base":
            q[eos] = 0.0
            q /= q.sum()
        kept = {"dual": p * (p >= 0.4), "base_only": p, "mixture": 0.7 * p}[rule.partition(":")[0]]
        expected.append(int((kept + (1 - kept.sum()) * q).argmax()))
        if expected[-1] in eos:
            break
    how = kad.Sampling(temperature=0, max_new_tokens=12)
    for drafts in (0, 3):
        answer = kad.generate(model, question, base_prompt=form, sampling=how, num_draft_tokens=drafts)
        assert answer.token_ids == expected
    together = generate_all(model, model.tokenizer, [context, context], sampling=how)
    assert [answer.token_ids for answer in together] == [expected, expected]
    made = kad.trace(model, question, base_prompt=form, sampling=how)
    assert [position.token for position in made.positions] == expected
    assert made.ended_by == (
        None if expected[-1] not in eos else "base" if kept[end] > (1 - kept.sum()) * q[end] else "aligned"
    )


@pytest.mark.parametrize(("ends", "reason"), [("rule", "stop"), ("base", "length")])
def test_q_ends_no_answer_that_p_alone_may_end(ends: str, reason: str) -> None:
    model, question = tiny.pair(), "Ann has 5 pens. She buys 8 more. How many?"
    model.rule = "aligned_only"
    form, how = f"Ask {{question}}\n:ends={ends}", kad.Sampling(temperature=0, max_new_tokens=60)
    context = Asking(question, base_prompt=form).context(model.pair)
    answers = [
        *(kad.generate(model, question, base_prompt=form, sampling=how, num_draft_tokens=drafts) for drafts in (0, 3)),
        *generate_all(model, model.tokenizer, [context, context], sampling=how),
    ]
    assert [answer.finish_reason for answer in answers] == [reason] * 4
    assert all(answer.token_ids == answers[0].token_ids for answer in answers)


# ---------------------------------------------------------------------- pairs and errors


def test_a_pair_keeps_its_base_prompt(folders: dict[str, Path], tmp_path: Path) -> None:
    where = {role: str(folders[role]) for role in ("base", "aligned")}
    model = kad.KadForCausalLM.from_models(**where, base_prompt="plain:ends=base")
    model.save_pretrained(tmp_path / "pair")
    assert kad.load(str(tmp_path / "pair")).base_prompt == BasePrompt.parse("plain:ends=base")
    assert kad.load(str(tmp_path / "pair"), base_prompt="same").base_prompt is None
    answer = kad.generate(model, "Hi", sampling=GREEDY)
    assert answer.context is not None
    assert model.tokenizer.decode(answer.context.base_ids) == "Hi\n"
    assert kad.generate(model, "Hi", base_prompt="same", sampling=GREEDY).context == Context(answer.prompt_ids)


def test_the_same_model_twice_is_loaded_once(folders: dict[str, Path]) -> None:
    model = kad.load(base=str(folders["aligned"]), aligned=str(folders["aligned"]))
    assert model.base is model.aligned
    answer = kad.generate(model, "Hi", base_prompt="plain", sampling=GREEDY)
    context = answer.context
    assert context is not None
    assert answer.token_ids == greedy(model, context.base_ids or [], context.ids)


def test_one_model_with_two_prompts_is_guided(folders: dict[str, Path]) -> None:
    """Classifier-free guidance by its own formula: log p0 + 1.5 (log p1 - log p0)."""
    model = kad.load(
        base=str(folders["aligned"]), aligned=str(folders["aligned"]), rule="experts:base=-0.5,aligned=1.5"
    )
    answer = kad.generate(model, "Hi", system="Be kind", base_prompt="plain", sampling=GREEDY, num_draft_tokens=2)
    context, said = answer.context, []
    assert context is not None
    for token in answer.token_ids:
        with torch.no_grad():
            without, with_ = (
                model.aligned(torch.tensor([[*ids, *said]]), use_cache=False).logits[0, -1].log_softmax(-1)
                for ids in (context.base_ids or [], context.ids)
            )
        assert token == int((without + 1.5 * (with_ - without)).argmax())
        said.append(token)


def test_special_tokens_typed_by_a_user_stay_text() -> None:
    model = tiny.pair()
    special = model.tokenizer.all_special_tokens[0]
    ids = Asking(f"Hi {special} there", base_prompt="{question}\n").context(model.pair).base_ids or []
    assert model.tokenizer.convert_tokens_to_ids(special) not in ids[1:]
    assert special in model.tokenizer.decode(ids)


def test_what_cannot_be_done_is_said(pair: kad.KadForCausalLM, prompt: Prompt) -> None:
    with pytest.raises(UsageError, match="the prompt is token ids. Give the text"):
        kad.generate(pair, [5, 6], base_prompt="plain")
    with pytest.raises(UsageError, match="same number of rows"):
        pair.generate(prompt(4), base_input_ids=prompt(4, batch=2))
    with pytest.raises(UsageError, match="say with logits_to_keep=n"):
        pair(prompt(4), base_input_ids=prompt(6))
    pair.rule = "experts:base=-0.5,aligned=1.5"
    context = Context([5, 6], [7], ends="base")
    for ask in (partial(generate_all, pair, pair.tokenizer, [context]), partial(score_tokens, pair, context, [5])):
        with pytest.raises(KadError, match="multiplies the models' probabilities, so both end an answer"):
            ask(*([pair.composition] if ask.func is score_tokens else []))
    with pytest.raises(UsageError, match=r"Use custom_generate=kad\.speculative"):
        pair.generate(prompt(4), base_input_ids=prompt(6), prompt_lookup_num_tokens=2)


def test_a_wrong_place_in_the_own_prompt_is_seen(
    pair: kad.KadForCausalLM, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback that forgets the other length is seen by the comparison with full sequences."""
    base_ids, ids = prompt(3, seed=1)[0].tolist(), prompt(9, seed=2)[0].tolist()
    monkeypatch.setattr(OwnPrompt, "rollback", lambda self, length: self.scorer.rollback(length))
    try:
        found = kad.generate(pair, ids, base_prompt=base_ids, sampling=GREEDY, num_draft_tokens=3).token_ids
    except (RuntimeError, IndexError, KadError):
        return  # rows are missing
    assert found != greedy(pair, base_ids, ids)
