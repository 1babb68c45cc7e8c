"""On a GPU: every rule against the oracle's precision, no wait but one a window, captured forwards that change no text.

Everything else is proven on CPUs; here it runs where launches are asynchronous and CUDA graphs are real.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import kad
from conftest import make_close_pair, make_model, make_tokenizer
from kad.errors import LogitsError
from kad.method.composition import acceptance, compose, deferred_mass, origin_shares, raise_if_bad
from kad.method.speculation.statistics import SpeculationStatistics
from kad.rules import CascadeRule, RowRules, registry
from kad.text.batch import generate_all
from uniforms import FALSE_ALARM, p_value

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def pair() -> kad.KadForCausalLM:
    pair = make_close_pair().to(CUDA)
    pair.tokenizer = make_tokenizer()
    return pair


def rows_of(vocab: int, dtype: torch.dtype, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(vocab)
    return [(3 * torch.randn(*shape, vocab, generator=generator)).to(dtype) for _ in range(3)]


def test_the_guard_sees_a_wait() -> None:
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchroniz"):
        bool(torch.zeros(1, device=CUDA).any())
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [37, 4999, 151_936])
def test_every_rule_is_the_one_on_the_cpu(vocab: int, dtype: torch.dtype) -> None:
    for rule, shape in itertools.product((rule() for rule in registry().values()), ((), (8,), (2, 3))):
        rows = rows_of(vocab, dtype, *shape)
        found = compose(rule, *(row.to(CUDA) for row in rows)).double().cpu()
        expected = compose(rule, *(row.double() for row in rows))
        torch.testing.assert_close(found.exp(), expected.exp(), rtol=0, atol=5e-6)
        likely = expected > -40
        torch.testing.assert_close(found[likely], expected[likely], rtol=1e-5, atol=1e-4)


def test_no_rule_waits() -> None:
    rows = [row.to(CUDA) for row in rows_of(4999, torch.bfloat16, 8)]
    for rule in (rule() for rule in registry().values()):
        compose(rule, *rows, check=False)  # the first time compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            compose(rule, *rows, check=False)
            acceptance(rule, *rows)
            if isinstance(rule, CascadeRule):
                deferred_mass(rule, *rows[:2])
                origin_shares(rule, *rows[:2])
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_rule_for_each_row() -> None:
    rules = [rule() for rule in registry().values() if RowRules.takes(rule())]
    rows = rows_of(4999, torch.float32, len(rules))[:2]
    found = compose(RowRules.of(rules, CUDA), *(row.to(CUDA) for row in rows)).double().cpu()
    for i, rule in enumerate(rules):
        expected = compose(rule, rows[0][i].double(), rows[1][i].double())
        torch.testing.assert_close(found[i].exp(), expected.exp(), rtol=0, atol=5e-6)


@pytest.mark.parametrize("window", [0, 1, 4, "auto"])
def test_greedy_text_is_the_same_eager_and_captured(
    pair: kad.KadForCausalLM, prompt: Callable[..., Any], window: int | str
) -> None:
    """Ten prompts of ten lengths: as plain decoding on the GPU, and on the CPU."""
    there = copy.deepcopy(pair).cpu()
    options: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    for seed in range(10):
        ids = prompt(3 + 7 * seed, seed)
        truth = there.generate(ids, **options)[0].tolist()
        assert pair.generate(ids.to(CUDA), **options)[0].tolist() == truth
        for compiled in (False, True):
            found = pair.generate(
                ids.to(CUDA), custom_generate=kad.speculative, num_draft_tokens=window, compile=compiled, **options
            )
            assert found[0].tolist() == truth, (window, compiled, seed)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "primal", "mixture"])
def test_sampled_text_follows_pi(rule: str, compiled: bool) -> None:
    base = make_model(0, hidden=48, layers=3, sharpness=2.0)
    model = kad.KadForCausalLM.from_models(base, make_model(1, sharpness=3.0), rule=rule).to(CUDA)
    ids = torch.arange(5, 17, device=CUDA).unsqueeze(0)
    assert p_value(model, ids, tokens=150, texts=6, num_draft_tokens=3, compile=compiled) > FALSE_ALARM


@pytest.mark.parametrize("compiled", [False, True])
def test_a_window_waits_once(pair: kad.KadForCausalLM, prompt: Callable[..., Any], compiled: bool) -> None:
    statistics, ids = SpeculationStatistics(), prompt(9).to(CUDA)
    options: dict[str, Any] = {
        "custom_generate": kad.speculative, "num_draft_tokens": 4, "do_sample": True, "top_k": 0, "compile": compiled,
        "max_new_tokens": 60, "statistics": statistics,
    }  # fmt: skip
    pair.generate(ids, **options)
    before = statistics.windows
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pair.generate(ids, **options)
    torch.cuda.set_sync_debug_mode("default")
    places = [str(w.filename) + ":" + str(w.lineno) for w in caught if "synchroniz" in str(w.message)]
    windows = statistics.windows - before
    assert len(places) <= windows + 12, (windows, places)


def test_answers_batches_and_traces(pair: kad.KadForCausalLM) -> None:
    texts, greedy = [[5, 6, 7], [8, 9, 10, 11, 12]], kad.Sampling(temperature=0, max_new_tokens=12)
    alone = [kad.generate(pair, text, sampling=greedy).token_ids for text in texts]
    together = generate_all(pair, pair.tokenizer, texts, sampling=greedy, batch_size=2)
    assert [answer.token_ids for answer in together] == alone
    traced = kad.trace(pair, texts[0], sampling=greedy)
    assert [position.token for position in traced.positions] == list(alone[0])


def test_a_bad_row_is_an_error_on_the_gpu_too() -> None:
    rows = rows_of(37, torch.float32, 3)[:2]
    rows[0][1, 5] = torch.nan
    found = compose("dual", *(row.to(CUDA) for row in rows))
    assert found.isnan().all(dim=-1).tolist() == [False, True, False]
    with pytest.raises(LogitsError, match="NaN"):
        raise_if_bad(found, "dual", *(row.to(CUDA) for row in rows))
