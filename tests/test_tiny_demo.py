"""`kad demo`: what it prints, and that its JSON is one object with the figures it showed."""

import io
import json
from contextlib import redirect_stdout

import pytest

from kad import tiny
from kad.cli import demo


@pytest.fixture(scope="module")
def printed():
    """What `kad demo` prints of one measurement: the page, and the JSON."""
    found, measure = [], demo._measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        patch.setattr(demo, "_measure", lambda *asked: found.append(measure(*asked)) or found[0])
        page = said(as_json=False)
        patch.setattr(demo, "_measure", lambda *asked: found[0])
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
    assert [shown["question"] for shown in found["problems"]] == [p.question for p in tiny.problems("held-out", 3)]
    for shown in found["problems"]:
        assert set(shown["answers"]) == {demo.BASE, demo.ALIGNED, demo.COMPOSED}
        composed = shown["answers"][demo.COMPOSED]
        assert composed["correct"] == (tiny.boxed(composed["text"]) == str(shown["answer"]))
        assert max(shown["base_share"]) > 0.5
        assert min(shown["base_share"]) < 0.5
    assert found["tokens_per_second"] > 0


def test_page_shows_three_problems_the_accuracies_and_what_to_try_next(printed):
    page = printed[0]
    for problem in tiny.problems("held-out", 3):
        assert problem.question.split(".")[0] in page
    assert "4 held-out problems, greedy" in page
    for name in (demo.BASE, demo.ALIGNED, demo.COMPOSED, demo.BOUND):
        assert name in page
    assert "tokens per second" in page
    assert "kad generate --pair tiny" in page.split("Next:")[1]


def test_composed_tokens_are_colored_by_who_decided_them():
    answer = tiny_answer()
    text = demo._colored(answer, [1.0, 0.0] + [0.5] * (len(answer.token_ids) - 2))
    assert text.plain == answer.text
    styles = [span.style for span in text.spans]
    assert styles[:3] == [demo._STYLES[demo.BASE], demo._STYLES[demo.ALIGNED], demo._STYLES[demo.BASE]]


def test_origins_follow_the_deferral_temperature():
    """What the demo says of an answer is what its trace says."""
    import kad
    from kad.tiny.measure import attempt

    pair = kad.KadForCausalLM.from_pretrained("tiny", deferral_temperature=3.0, dtype="float32")
    written = attempt(pair, pair.tokenizer, tiny.problems("held-out", 1))[0]
    positions = kad.trace(pair, written.prompt_ids, written.token_ids).positions
    traced = [position.base_share for position in positions]
    assert demo._base_shares(pair, written) == pytest.approx(traced, abs=1e-4)
    cold = kad.score(pair, written.prompt_ids, written.token_ids, deferral_temperature=1.0).base_share
    assert max(abs(one - other) for one, other in zip(traced, cold.tolist(), strict=True)) > 0.1


def tiny_answer():
    from transformers import AutoTokenizer

    from kad.tiny.measure import Attempt

    text = "First, 24 + 13 = 37. The answer is \\boxed{37}."
    ids = AutoTokenizer.from_pretrained(tiny.path("small-aligned"))(text)["input_ids"]
    return Attempt(tiny.problems("held-out", 1)[0], [], ids, text)
