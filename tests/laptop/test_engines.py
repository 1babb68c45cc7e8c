"""llama.cpp and MLX against Transformers: the same tokens, numbers and texts, and nothing leaks or crashes."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes.tiny.export import to_gguf
from scipy.stats import chi2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import kad
from conftest import ALIGNED, BASE, EXACT
from kad import tiny
from kad.engines.pair import Pair
from kad.errors import PairError, UsageError
from kad.evaluation.engine import Engine, SampleRequest
from kad.evaluation.methods import parse_method
from kad.pair.model_files import load_tokenizer
from kad.pair.sources import Source
from kad.rules import registry
from speculative_tables import Script, total_variation

PROMPTS = [
    "Ann has 5 pens. She buys 8 more. How many pens does she have now?",
    "Mia has 24 apples. She eats 13 of them. How many apples does she have now?",
    "Tom has 7 boxes with 6 cups in each. How many cups does he have?",
]
GREEDY = kad.Sampling(temperature=0, max_new_tokens=48)
ENGINES = ["f32", "mlx"]
NAMES = {"f32": "llama.cpp", "mlx": "MLX"}
Load = Callable[..., Pair]


def supports(kind: str, *features: str, rules: Any = None) -> list[Any]:
    """Marks: the engine of this kind of file has these features."""
    return [pytest.mark.supports(NAMES[kind], feature, rules=rules) for feature in features]


def engines(feature: str) -> list[Any]:
    """Both engines as parameters of a test that shows a feature under some rule."""
    return [pytest.param(kind, marks=supports(kind, feature, rules=())) for kind in ENGINES]


# ---------------------------------------------------------------- tokens


def test_tokens_and_chats_of_a_gguf_file_are_those_of_transformers(load: Load) -> None:
    ours, theirs = load("f32").tokenizer, load_tokenizer(Source(str(tiny.path(ALIGNED))))
    assert ours.get_vocab() == theirs.get_vocab()
    for text in [*PROMPTS, "", " ", "a  b\n\n c", "It's 1,234.50 €, naïve 日本 🙂", "<|user|>Hi<|end|>"]:
        for special in (True, False):
            ids = theirs(text, add_special_tokens=special).input_ids
            assert ours(text, add_special_tokens=special).input_ids == ids
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
    for token in range(len(ours)):  # also the bytes of no whole character
        assert ours.decode([token]) == theirs.decode([token], clean_up_tokenization_spaces=False)
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    options = {"tokenize": False, "add_generation_prompt": True}
    assert ours.apply_chat_template(chat, **options) == theirs.apply_chat_template(chat, **options)
    assert (ours.eos_token, ours.eos_token_id, ours.pad_token_id) == ("<|end|>", 1, 0)
    assert ours.end_token_ids == [0, 1]


# ---------------------------------------------------------------- numbers and texts

TOLERANCE = {"f32": 1e-4, "f16": 1e-2, "Q8_0": 0.4, "mlx": 1e-4}


@pytest.fixture(scope="module")
def answers(truth: Any) -> dict[str, list[int]]:
    """An answer to each prompt."""
    return {prompt: kad.generate(truth, prompt, sampling=GREEDY).token_ids for prompt in PROMPTS}


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        *(pytest.param(*p, marks=supports(p[0], "log-probabilities")) for p in product(ENGINES, registry())),
        *product(["f16", "Q8_0"], ["dual:threshold=0.4", "primal:budget=0.9", "confidence_bet", "mixture:weight=0.4"]),
    ],
)
def test_log_pi_is_that_of_transformers(load: Load, truth: Any, answers: Any, kind: str, rule: str) -> None:
    """At every token. f32 differs in the order of sums; with f16 and Q8_0, llama.cpp rounds activations too.

    The second prompt is scored in the papers' order of temperature: 0.7 on every model's logits.
    """
    model = load(kind)
    for (prompt, ids), temperature in zip(answers.items(), cycle((1.0, 0.7)), strict=False):
        how = {"rule": rule, "deferral_temperature": temperature}
        ours, theirs = (kad.score(m, prompt, ids, **how) for m in (model, truth))
        for name in ("log_pi", "log_p", "log_aligned") if kind in ENGINES else ("log_pi",):
            assert (getattr(ours, name) - getattr(theirs, name)).abs().max() < TOLERANCE[kind]


@pytest.fixture(scope="module")
def true_text(truth: Any) -> Callable[[str, str], list[int]]:
    """true_text(prompt, rule): the greedy tokens of Transformers without drafts."""
    return cache(
        lambda prompt, rule: kad.generate(truth, prompt, sampling=GREEDY, num_draft_tokens=0, rule=rule).token_ids
    )


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        pytest.param(*p, marks=supports(p[0], "greedy", "speculative"))
        for p in product(ENGINES, ["dual:threshold=0.4", "primal:budget=0.9", "nudging"])
    ],
)
def test_greedy_texts_are_those_of_transformers(
    load: Load, true_text: Callable[[str, str], list[int]], truth: Any, kind: str, rule: str
) -> None:
    """With and without drafts. Where texts part, the two tokens are a near tie of log pi."""
    model = load(kind)
    for prompt, drafts in product(PROMPTS, (0, 1, 4, "auto")):
        ours = kad.generate(model, prompt, sampling=GREEDY, num_draft_tokens=drafts, rule=rule).token_ids
        theirs = true_text(prompt, rule)
        if ours != theirs:
            at = next(i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other)
            pi = [kad.score(truth, prompt, [*a[: at + 1]], rule=rule).log_pi[-1] for a in (ours, theirs)]
            assert abs(pi[0] - pi[1]) < 1e-4


@pytest.mark.supports("llama.cpp", "models of other engines in one pair", rules=())
@pytest.mark.supports("MLX", "models of other engines in one pair", rules=())
@pytest.mark.parametrize(("base", "aligned"), [("f32", "transformers"), ("transformers", "f32"), ("mlx", "f32")])
def test_engines_can_be_mixed_in_one_pair(load: Load, truth: Any, base: str, aligned: str) -> None:
    model = load(base, aligned)
    for drafts in (0, 3):
        ours, theirs = (kad.generate(m, PROMPTS[0], sampling=GREEDY, num_draft_tokens=drafts) for m in (model, truth))
        assert ours.text == theirs.text
        assert [p.base_share for p in ours.pieces] == pytest.approx([p.base_share for p in theirs.pieces], abs=1e-3)


@pytest.mark.supports("MLX", "quantized weights", rules=())
def test_quantized_folders_of_mlx_run(load: Load) -> None:
    model = load("mlx-4-bits")
    assert model.facts["base"].weights == "4 bits"
    assert model.facts["base"].parameters == load("mlx").facts["base"].parameters
    ids = kad.generate(model, PROMPTS[0], sampling=GREEDY, num_draft_tokens=3).token_ids
    assert ids == kad.generate(model, PROMPTS[0], sampling=GREEDY, num_draft_tokens=0).token_ids


def test_facts(load: Load, truth: Any) -> None:
    for kind in ("f32", "Q8_0", "mlx"):
        for role, facts in load(kind).facts.items():
            assert facts.parameters == truth.facts[role].parameters
            assert facts.weight_bytes is not None
            assert facts.engine == {"mlx": "mlx"}.get(kind, "llama_cpp")


# ---------------------------------------------------------------- caches


@pytest.mark.parametrize("kind", engines("rollback to any token"))
def test_rollback_at_every_depth(load: Load, kind: str) -> None:
    """After a rollback to any length, the same tokens give the same rows as in a new cache, to rounding."""
    model = load(kind)
    ids = torch.randint(5, 700, (40,), generator=torch.Generator().manual_seed(0))
    for role in ("base", "aligned"):
        scorer = model.scorers([role])[role]
        assert scorer.reversible
        whole = scorer.advance(ids, len(ids))
        for length in range(len(ids)):
            scorer.rollback(length + 1)  # in two steps
            scorer.rollback(length)
            assert scorer.processed == length
            other = torch.randint(5, 700, (3,), generator=torch.Generator().manual_seed(length))
            scorer.advance(other, 1)  # what must be forgotten
            scorer.rollback(length)
            again = scorer.advance(ids[length:], len(ids) - length)
            torch.testing.assert_close(again, whole[length:], atol=2e-4, rtol=0)


def test_logits_are_the_same_however_the_text_is_split(load: Load) -> None:
    """More rows than llama.cpp keeps at once, more tokens than it reads at once, and rows of the last ones only."""
    model = load("f32", engine_options={"context": 1500})
    ids = torch.randint(5, 700, (1200,), generator=torch.Generator().manual_seed(1))
    whole = model.scorers(["aligned"])["aligned"].advance(ids, len(ids))
    assert whole.shape == (1200, 768)
    for keep in (1, 63, 64, 65, 700):
        rows = model.scorers(["aligned"])["aligned"].advance(ids, keep)
        torch.testing.assert_close(rows, whole[-keep:], atol=5e-4, rtol=0)
    held = whole[:3].clone()
    model.scorers(["aligned"])["aligned"].advance(ids.flip(0), 5)
    assert torch.equal(whole[:3], held)  # rows are the caller's own


def test_contexts_are_used_again_and_begin_empty(load: Load) -> None:
    model = load("f32")
    ids = torch.tensor([5, 6, 7, 8])
    first = model.scorers(["base"])["base"].advance(ids, 1)
    for _ in range(3):
        assert torch.equal(model.scorers(["base"])["base"].advance(ids, 1), first)
    assert len(model.models["base"]._weights.contexts) == 1
    together = [model.scorers(["base"])["base"] for _ in range(2)]
    together[0].advance(ids.flip(0), 1)
    assert torch.equal(together[1].advance(ids, 1), first)


@pytest.mark.parametrize("kind", engines("a cache kept between turns"))
def test_chats_go_on_and_read_new_tokens_only(load: Load, truth: Any, kind: str) -> None:
    answers = []
    for model in (load(kind), truth):
        talk = kad.Conversation(model, sampling=GREEDY, num_draft_tokens=3)
        answers.append([talk.say(prompt).finish().text for prompt in PROMPTS])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("drafts", [0, 4])
def test_a_full_context_is_a_clear_end(load: Load, drafts: int) -> None:
    model = load("f32", engine_options={"context": 40})
    assert model.facts["base"].context_length == 40
    endless = kad.Sampling(temperature=0, max_new_tokens=500)
    model.generation_config.eos_token_id = None
    answer = kad.generate(model, PROMPTS[0], sampling=endless, num_draft_tokens=drafts)
    assert answer.finish_reason == "context"
    assert len(answer.prompt_ids) + len(answer.token_ids) == 40
    with pytest.raises(UsageError, match=r"The prompt has 45 tokens; the models' context holds 40"):
        kad.generate(model, [5] * 45)
    scorer = model.scorers(["base"])["base"]
    with pytest.raises(UsageError, match=r"holds 40\. Raise the option `context`"):
        scorer.advance(torch.full((41,), 5), 1)


@pytest.mark.supports("llama.cpp", "traces", rules=())
def test_traces(load: Load, truth: Any) -> None:
    traces = [kad.trace(m, PROMPTS[0], sampling=GREEDY, num_draft_tokens=2) for m in (load("f32"), truth)]
    assert [p.token for p in traces[0].positions] == [p.token for p in traces[1].positions]
    assert [p.deferred_mass for p in traces[0].positions] == pytest.approx(
        [p.deferred_mass for p in traces[1].positions], abs=1e-4
    )


# ---------------------------------------------------------------- the distribution

LETTERS = 3


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, kad.KadForCausalLM]:
    """Two random models of three tokens, in llama.cpp and in Transformers."""
    folder = tmp_path_factory.mktemp("small")
    tokens = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokens.add_special_tokens(["a"])  # something must end a text
    names = []
    for seed, name in enumerate(("base", "aligned")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=LETTERS, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=False,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            model.lm_head.weight.mul_(30)
        model.save_pretrained(folder / name)
        PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="a", pad_token="a").save_pretrained(folder / name)
        names.append(str(to_gguf(folder / name, folder / f"{name}.gguf")))
    options = {"cache_type": "f32", "flash_attention": False}
    ours: Any = kad.load(base=names[0], aligned=names[1], engine_options=options)
    theirs: Any = kad.load(base=str(folder / "base"), aligned=str(folder / "aligned"), device="cpu")
    ours.generation_config.eos_token_id = None
    return ours, theirs


START, NEW = [1, 2, 0, 1], 3


@torch.no_grad()
def true_texts(model: kad.KadForCausalLM, rule: str) -> dict[tuple[int, ...], float]:
    """The probability of every text of `NEW` tokens, by the definition, one forward pass of Transformers."""
    texts = list(product(range(LETTERS), repeat=NEW))
    with model.using(rule):
        rows = model(torch.tensor([[*START, *text] for text in texts])).logits[:, len(START) - 1 : -1]
    at = torch.tensor(texts).unsqueeze(-1)
    return dict(zip(texts, rows.double().gather(-1, at).sum(dim=(1, 2)).exp().tolist(), strict=True))


def enumerated(model: Pair, rule: str, drafts: int, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], float]:
    script, found = Script(), defaultdict[tuple[int, ...], float](float)
    monkeypatch.setattr("kad.text.streaming.TorchRandomness", lambda seed: script)
    how = kad.Sampling(max_new_tokens=NEW, temperature=1.0, top_k=0)
    for _ in script.runs():
        answer = kad.generate(model, START, sampling=how, num_draft_tokens=drafts, rule=rule, origins=False)
        found[tuple(answer.token_ids)] += script.probability
    return dict(found)


@pytest.mark.supports("llama.cpp", "sampling")
@pytest.mark.supports("llama.cpp", "speculative sampling")
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "confidence_bet:margin=0.0", "mixture:weight=0.4"])
def test_every_outcome_of_the_loop_over_llama_cpp(small: Any, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = small
    truth = true_texts(theirs, rule)
    assert sum(truth.values()) == pytest.approx(1.0)
    for drafts in (0, 2):
        assert total_variation(enumerated(ours, rule, drafts, monkeypatch), truth) < 1e-4


def test_a_cache_that_is_not_rolled_back_is_seen(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof fails where llama.cpp's cache keeps a rejected draft."""
    from kad.engines.llama_cpp.model import LlamaCppScorer

    def forgetful(self: LlamaCppScorer, length: int) -> None:
        if length >= self.processed:
            return
        last = self.processed
        self._lib.llama_memory_seq_rm(self._memory, 0, length, -1)
        self.processed = length
        if 0 < length < last:  # the token at `length - 1` is replaced by another one
            self._lib.llama_memory_seq_rm(self._memory, 0, length - 1, -1)
            self.processed = length - 1
            LlamaCppScorer.advance(self, torch.tensor([0]), 1)

    monkeypatch.setattr(LlamaCppScorer, "rollback", forgetful)
    ours, theirs = small
    rule = "dual:threshold=0.4"
    assert total_variation(enumerated(ours, rule, 2, monkeypatch), true_texts(theirs, rule)) > 1e-3


def test_sampled_speculation_follows_pi(small: Any) -> None:
    """Chi-square over all texts; a false alarm once in a million runs."""
    ours, theirs = small
    truth, count, seen = true_texts(theirs, "dual:threshold=0.4"), 1500, defaultdict[tuple[int, ...], int](int)
    for seed in range(count):
        how = kad.Sampling(max_new_tokens=NEW, temperature=1.0, top_k=0, seed=seed)
        seen[tuple(kad.generate(ours, START, sampling=how, num_draft_tokens=2, origins=False).token_ids)] += 1
    common = {text: p for text, p in truth.items() if p * count >= 5}
    rare = 1 - sum(common.values())
    cells = [(seen[text], p * count) for text, p in common.items()]
    cells.append((count - sum(seen[text] for text in common), rare * count))
    statistic = sum((found - expected) ** 2 / expected for found, expected in cells if expected > 0)
    assert chi2.sf(statistic, len(cells) - 1) > 1e-6


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.supports(NAMES[kind], "evaluation", rules=())) for kind in ENGINES]
)
@pytest.mark.parametrize("name", ["base", "dual:threshold=0.2", "dual:threshold=0.2@speculative"])
def test_an_evaluation_is_that_of_transformers(name: str, kind: str, files: Callable[[str, str], Any]) -> None:
    """What lm-eval is not needed for: prompts, greedy answers, their measures, log-likelihoods."""
    options: dict[str, Any] = {"engine_options": EXACT} if kind == "f32" else {}
    named = {"base": BASE, "aligned": ALIGNED}
    ours = Engine({role: Source.parse(str(files(model, kind))) for role, model in named.items()}, **options)
    theirs = Engine(
        {role: Source.parse(f"tiny:{model}") for role, model in named.items()}, options={"dtype": "float32"}
    )
    method = parse_method(name)
    assert (ours.batch_size(method, 2), theirs.batch_size(method, 2)) == (1, 1 if "@" in name else 2)
    found = []
    for engine in (ours, theirs):
        prompt = engine.renderer(method)([{"role": "user", "content": PROMPTS[0]}])
        (answer,) = engine.generate(method, [SampleRequest(prompt, 0, 24, 0.0)])
        likelihoods = engine.log_likelihoods(method, [(prompt, "First, 5"), (prompt, " 13")])
        found.append((prompt, answer.text, answer.tokens, answer.finished, [one[1] for one in likelihoods]))
        measures = [answer.deferred_mass or 0.0, answer.acceptance or 0.0, *(one[0] for one in likelihoods)]
        found.append(measures)
    assert found[0] == found[2]
    assert found[1] == pytest.approx(found[3], abs=1e-3)


def test_code_in_a_folder_of_mlx_does_not_run(files: Callable[[str, str], Path], tmp_path: Path) -> None:
    folder, marker = tmp_path / "mlx", tmp_path / "it-ran"
    shutil.copytree(files("small-aligned", "mlx"), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_file": "own.py"}), encoding="utf-8")
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n", encoding="utf-8")
    with pytest.raises(PairError, match="requires importing and running a custom module"):
        kad.load(base=str(folder), aligned=str(folder), engine="mlx")
    assert not marker.exists()
