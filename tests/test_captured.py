"""Captured forwards: the text of ordinary decoding, and no more graphs than shapes, whatever the prompt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import kad
from conftest import make_close_pair, make_model, make_tokenizer
from kad.engines.transformers.captured import Captures
from kad.errors import OptionError, UsageError
from kad.method.speculation.statistics import SpeculationStatistics
from test_text import TableEngine
from uniforms import FALSE_ALARM, p_value


class Graphs:
    """A backend of torch.compile that counts: one graph a shape means that no pass is broken into parts."""

    def __init__(self) -> None:
        self.widths: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.widths += [
            x.shape[1] for x in inputs if isinstance(x, torch.Tensor) and x.dtype == torch.long and x.ndim == 2
        ]
        return graph.forward


@pytest.fixture(scope="module")
def pair() -> kad.KadForCausalLM:
    return make_close_pair()


def decode(model: kad.KadForCausalLM, ids: torch.Tensor, **options: Any) -> list[int]:
    options = {"max_new_tokens": 24, "do_sample": False, "custom_generate": kad.speculative} | options
    return model.generate(ids, **options)[0].tolist()


@pytest.mark.parametrize("window", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_ten_prompts_are_decoded_with_three_graphs(
    pair: kad.KadForCausalLM, prompt: Callable[..., Any], window: int
) -> None:
    graphs, statistics = Graphs(), SpeculationStatistics()
    for seed in range(10):
        ids = prompt(3 + 4 * seed, seed)
        found = decode(pair, ids, num_draft_tokens=window, compile=graphs, statistics=statistics)
        assert found == pair.generate(ids, max_new_tokens=24, do_sample=False)[0].tolist()
    assert sorted(graphs.widths) == sorted([1, 2, window + 1])
    assert len(statistics.lengths) > min(window, 2)


@pytest.mark.slow
def test_auto_chooses_among_few_shapes(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    graphs = Graphs()
    found = decode(pair, prompt(7), num_draft_tokens="auto", compile=graphs, max_new_tokens=60)
    assert found == pair.generate(prompt(7), max_new_tokens=60, do_sample=False)[0].tolist()
    assert sorted(graphs.widths) == [1, 1, 2, 3, 5, 9]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "confidence_bet"])
def test_sampled_text_follows_pi(rule: str) -> None:
    base = make_model(0, hidden=48, sharpness=2.0)
    model = kad.KadForCausalLM.from_models(base, make_model(1, layers=1, sharpness=3.0), rule=rule)
    ids = torch.arange(5, 17).unsqueeze(0)
    assert p_value(model, ids, tokens=100, texts=4, num_draft_tokens=3, compile="eager") > FALSE_ALARM


def test_what_is_filled_in_is_forgotten(
    pair: kad.KadForCausalLM, prompt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of the loop is another one if a shorter pass leaves its filling in the cache."""
    from kad.engines.transformers.captured import Capture

    ids, truth = prompt(7), pair.generate(prompt(7), max_new_tokens=40, do_sample=False)[0].tolist()
    options: dict[str, Any] = {"num_draft_tokens": 4, "compile": "eager", "max_new_tokens": 40}
    assert decode(pair, ids, **options) == truth
    monkeypatch.setattr(Capture, "forget", lambda self, count: None)
    assert decode(pair, ids, **options) != truth


def test_answers_in_python_are_captured_too(pair: kad.KadForCausalLM) -> None:
    """`kad.generate`, and only on models of Transformers."""
    prompt, greedy = [5, 6, 7, 8], kad.Sampling(temperature=0, max_new_tokens=20)
    pair.tokenizer = make_tokenizer()
    for window in (0, 3):
        options: dict[str, Any] = {"sampling": greedy, "num_draft_tokens": window}
        captured = kad.generate(pair, prompt, compile="eager", **options)
        assert captured.token_ids == kad.generate(pair, prompt, **options).token_ids
    table = TableEngine("dual", vocab=3, eos=2)
    with pytest.raises(OptionError, match="Only models that Transformers runs"):
        kad.generate(table, [0, 1], compile="eager")


def test_the_flag_of_the_command_line(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--compile` reaches the loop: its passes are those that torch.compile gave, and the text stays the same."""
    from cli_runs import generate

    widths: list[int] = []

    def noted(forward: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        assert options["backend"] == "inductor"
        return lambda ids: widths.append(ids.shape[1]) or forward(ids)

    monkeypatch.setattr(torch, "compile", noted)  # compiling for real takes minutes on a CPU
    asked = ["Hi", "--base", folders["base"], "--aligned", folders["aligned"], "--rule", "dual:threshold=0.2"]
    asked += ["--temperature", "0", "--max-new-tokens", "12", "--draft-tokens", "2"]
    plain = generate(*asked).stdout
    assert widths == []
    assert generate(*asked, "--compile").stdout == plain
    assert set(widths) == {1, 2, 3}
    assert len(widths) > 12


def test_two_generations_at_once_do_not_share_a_cache(pair: kad.KadForCausalLM) -> None:
    arguments = (("base", "aligned"), "aligned", (4,), 40, "eager")
    first, second = (pair.pair.captured_scorers(*arguments)["base"] for _ in range(2))
    ids = torch.arange(5, 9)
    expected = first.advance(ids, 1)
    second.advance(ids.flip(0), 1)
    first.rollback(3)
    torch.testing.assert_close(first.advance(ids[3:], 1), expected)
    first.release()
    with pytest.raises(UsageError, match="was released"):
        first.advance(ids, 1)
    captures = pair.pair.models["base"].captures  # type: ignore[attr-defined]
    assert copy.deepcopy(captures)._free == {}
    assert isinstance(captures, Captures)


def test_a_cache_cannot_be_given(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="makes caches of its own"):
        decode(pair, prompt(5), compile="eager", past_key_values=pair.make_cache())
    output = pair.generate(
        prompt(5), custom_generate=kad.speculative, compile="eager", max_new_tokens=5, return_dict_in_generate=True
    )
    assert output.past_key_values is None


def test_models_without_static_caches_are_refused(prompt: Callable[..., Any]) -> None:
    from test_speculative import _sliding_pair

    with pytest.raises(UsageError, match="need plain static caches, but MistralForCausalLM"):
        decode(_sliding_pair(), prompt(5), compile="eager")


def test_a_backend_that_fails_is_one_sentence(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler at hand")

    with pytest.raises(UsageError, match="cannot be compiled here.*Decode without compile"):
        decode(pair, prompt(5), compile=broken)
