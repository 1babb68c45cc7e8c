"""An evaluation asks any engine that gives scorers, and knows nothing more of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kad import tiny
from kad.engines.protocols import Model
from kad.engines.transformers.model import TransformersModel
from kad.errors import UsageError
from kad.evaluation.engine import Completion, Engine, SampleRequest
from kad.evaluation.evaluate import Plan
from kad.evaluation.methods import Method, parse_method, parse_methods
from kad.evaluation.run_options import RunOptions
from kad.pair.parts import read_config


class OneAtATimeModel(TransformersModel):
    """A model of Transformers behind an engine that takes one prompt at a time."""

    def in_step(self, *args: Any) -> None:  # type: ignore[override]
        """None."""


class OneAtATimeEngine(Engine):
    def batch_size(self, method: Method, limit: int) -> int:
        return 1

    def model(self, role: str) -> Model:
        if role not in self._models:
            model: Any = super().model(role)
            self._models[role] = OneAtATimeModel(model.model, model.source)
        return self._models[role]


@pytest.fixture(scope="module")
def engines() -> tuple[Engine, Engine]:
    """The same models: each by its own engine, as where one of them is a GGUF file; and all of them by Transformers."""
    torch.set_num_threads(1)
    sources = read_config("tiny").model_sources()
    return OneAtATimeEngine(sources, options={"dtype": "float32"}), Engine(sources, options={"dtype": "float32"})


def draw(engine: Engine, name: str, temperature: float) -> list[Completion]:
    method = parse_method(name)
    render = engine.renderer(method)
    asked = [SampleRequest(render(one.messages()), 7, 24, temperature) for one in tiny.problems("development", 2)]
    if engine.batch_size(method, 2) == 2:
        return engine.generate(method, asked)
    return [found for one in asked for found in engine.generate(method, [one])]


@pytest.mark.parametrize("name", ["base", "aligned", "dual:threshold=0.2", "dual:threshold=0.2@speculative"])
def test_answers_and_their_measures_are_those_of_transformers(name: str, engines: tuple[Engine, Engine]) -> None:
    # A model alone draws with the same random numbers too.
    for temperature in (0.0,) if "dual" in name else (0.0, 1.0):
        for ours, theirs in zip(*(draw(engine, name, temperature) for engine in engines), strict=True):
            assert (ours.text, ours.tokens, ours.finished) == (theirs.text, theirs.tokens, theirs.finished)
            assert (ours.prompt_tokens, ours.accepted) == (theirs.prompt_tokens, theirs.accepted)
            assert ours.deferred_mass == pytest.approx(theirs.deferred_mass, abs=1e-5)
            assert ours.acceptance == pytest.approx(theirs.acceptance, abs=1e-5)


@pytest.mark.parametrize("name", ["aligned", "dual:threshold=0.2"])
def test_log_likelihoods_are_those_of_transformers(name: str, engines: tuple[Engine, Engine]) -> None:
    pairs = [("Ann has 5 pens and", " 8"), ("Tom", " has 7 boxes"), ("", "First")]
    found = [engine.log_likelihoods(parse_method(name), pairs) for engine in engines]
    for (ours, greedy), (theirs, greedy_too) in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert greedy == greedy_too


def test_a_text_of_one_model_ends_with_its_context(engines: tuple[Engine, Engine]) -> None:
    ours, method = engines[0], parse_method("base")
    limit = ours.model("base").facts.context_length
    prompt = " a" * (limit - 4)
    (found,) = ours.generate(method, [SampleRequest(prompt, 0, 50, 0.0)])
    assert found.prompt_tokens + found.tokens == limit
    assert not found.finished


def test_a_run_stores_the_engine_that_it_had() -> None:
    plan = Plan(models=read_config("tiny").model_sources(), methods=tuple(parse_methods("dual")))
    assert plan.engine == "auto"
    assert plan.settings([]).engine == "transformers"


def test_options_without_an_engine_that_takes_them() -> None:
    with pytest.raises(UsageError, match="--engine mlx takes none"):
        RunOptions(engine="mlx", engine_options={"threads": 1})
    with pytest.raises(UsageError, match=r"llama\.cpp or vLLM"):
        Engine(read_config("tiny").model_sources(), engine_options={"threads": 1})
