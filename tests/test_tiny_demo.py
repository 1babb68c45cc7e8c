"""`kad demo`: what it prints, and that its JSON is one object with the figures it showed."""

import io
import json
from contextlib import redirect_stdout

import pytest
from typer.testing import CliRunner

import kad
from kad import tiny
from kad.cli import demo
from kad.cli.main import app


@pytest.fixture(scope="module")
def printed():
    """What `kad demo` prints of one measurement: the page, and the JSON."""
    replies, ask = [], demo.ask
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        patch.setattr(demo, "ask", lambda *subject: replies.append(ask(*subject)) or replies[0])
        page = said(as_json=False)
        patch.setattr(demo, "ask", lambda *subject: replies[0])
        return page, said(as_json=True)


def said(**options):
    with redirect_stdout(io.StringIO()) as out:
        demo.command(problems=4, **options)
    return out.getvalue()


def test_json_is_one_object_with_answers_origins_and_accuracies(printed):
    found = json.loads(printed[1])
    assert found["rule"] == "dual:threshold=0.4"
    assert set(found["accuracy"]) == {demo.BASE, demo.ALIGNED, demo.COMPOSED, demo.BOUND}
    assert all(share * 4 == round(share * 4) for share in found["accuracy"].values())
    held_out = tiny.problems("held-out", 100)
    assert [shown["question"] for shown in found["questions"]] == [held_out[n].question for n in demo.SHOWN]
    for shown in found["questions"]:
        assert set(shown["answers"]) == {demo.BASE, demo.ALIGNED, demo.COMPOSED}
        composed = shown["answers"][demo.COMPOSED]
        assert (composed["problem"] is None) == (tiny.boxed(composed["text"]) == shown["answer"])
        assert max(share for _, share in composed["pieces"]) > 0.5
        assert min(share for _, share in composed["pieces"]) < 0.5
    assert found["tokens_per_second"] > 0


def test_each_shown_problem_shows_what_kad_is_for(printed):
    """The base model is right, without the box; the aligned one is wrong, in it; together they are right, in it."""
    for shown in json.loads(printed[1])["questions"]:
        base, aligned, composed = (shown["answers"][name] for name in (demo.BASE, demo.ALIGNED, demo.COMPOSED))
        assert f"answer is {shown['answer']}." in base["text"]
        assert base["problem"] == "no boxed answer"
        assert aligned["problem"] == "wrong"
        assert composed["problem"] is None
        token, share = composed["pieces"][composed["deciding"]]
        assert share > 0.99
        assert not aligned["text"].startswith(
            "".join(text for text, _ in composed["pieces"][: composed["deciding"] + 1])
        )
        assert token.strip()
    assert printed[0].count("✓ right") == 3


def test_page_shows_three_problems_the_accuracies_and_what_to_try_next(printed):
    page = printed[0]
    for number in demo.SHOWN:
        assert tiny.problems("held-out", 100)[number].question.split(".")[0] in page
    assert "4 held-out problems, greedy" in page
    for name in (demo.BASE, demo.ALIGNED, demo.COMPOSED, demo.BOUND):
        assert name in page
    assert "tokens per second" in page
    assert "kad generate --pair tiny" in page.split("Next:")[1]


def test_composed_tokens_are_colored_by_who_decided_them():
    pieces = [("First, 24 + 13 = ", 0.0), ("37", 1.0), (". The answer is", 0.5)]
    text = demo._cell(demo.COMPOSED, demo.Reply("First, 24 + 13 = 37. The answer is", "wrong", True, pieces=pieces))
    assert text.plain.splitlines()[0] == "First, 24 + 13 = 37. The answer is"
    styles = [str(span.style) for span in text.spans]
    assert styles[:2] == [f"{demo._STYLES[demo.ALIGNED]} underline", demo._STYLES[demo.BASE]]
    assert "underline" not in styles[2]
    decided = demo._cell(demo.COMPOSED, demo.Reply("", None, True, pieces=pieces, deciding=1))
    assert [decided.plain[span.start : span.end] for span in decided.spans if span.style == demo._DECIDING] == ["37"]


def test_the_answers_are_those_of_kad_generate(printed):
    for shown in json.loads(printed[1])["questions"]:
        for name, rule in ((demo.COMPOSED, "dual:0.4"), (demo.BASE, "base_only"), (demo.ALIGNED, "aligned_only")):
            done = CliRunner().invoke(app, ["generate", shown["question"], "--pair", "tiny", "--rule", rule])
            assert done.stdout.strip() == shown["answers"][name]["text"]


def test_origins_follow_the_deferral_temperature():
    """What the demo says of an answer is what its trace says."""
    pair = kad.KadForCausalLM.from_pretrained("tiny", deferral_temperature=3.0, dtype="float32")
    question = tiny.problems("held-out", 1)[0].question
    subject = demo.Subject(pair, "", (), [(question, "277")], "problems", demo.lacks_box, 112, "")
    [reply] = demo._replies(subject, demo.COMPOSED, subject.questions)
    written = kad.generate(pair, question, sampling=kad.Sampling(max_new_tokens=112, temperature=0))
    assert written.text.strip() == reply.text
    traced = [position.base_share for position in kad.trace(pair, written.prompt_ids, written.token_ids).positions]
    assert [share for _, share in reply.pieces] == pytest.approx(traced, abs=1e-4)
    cold = kad.score(pair, written.prompt_ids, written.token_ids, deferral_temperature=1.0).base_share
    assert max(abs(one - other) for one, other in zip(traced, cold.tolist(), strict=True)) > 0.1
