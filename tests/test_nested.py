"""A pair in the place of a model, against the composition of its models' logits by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from scipy.optimize import linprog
from transformers import AutoModelForCausalLM, GenerationConfig
from typer.testing import CliRunner

import kad
from conftest import make_model, make_tokenizer
from kad.cli.main import app
from kad.engines.nested import ComposedScorer, PairAsModel
from kad.engines.pair import Pair
from kad.engines.protocols import Facts
from kad.engines.transformers.host import cache_of
from kad.errors import PairError
from kad.evaluation.engine import Engine, SampleRequest
from kad.evaluation.methods import parse_method
from kad.method import knapsack
from kad.method.composition import compose
from kad.method.distribution import EXCLUDED
from kad.method.replay import Replay
from kad.method.speculation.statistics import SpeculationStatistics
from kad.method.verification import verify_block
from kad.pair.config import KadConfig
from kad.pair.folder import pack, resolve
from kad.pair.parts import leaves_of, parts_of, read_config
from kad.pair.sources import Source
from kad.rules import parse_rule, registry
from kad.text.batch import generate_all
from kad.text.contexts import Asking
from speculative_tables import PROMPT, ROLES, OnlyForward, TableScorer, exact_distribution, table_row, total_variation
from test_translated import trained

EVERY_RULE = [
    "dual:threshold=0.3", "primal:budget=0.6", "nudging:threshold=0.5", "confidence_bet:margin=0.1",
    "relative:margin=0.2", "aligned_only", "base_only", "mixture:weight=0.4", "lp:budget=0.5",
    "veto:threshold=0.2,plausibility=0.3", "blend:threshold=0.6", "product:base=0.8,aligned=1.2",
    "product:plausibility=0.4", "implicit_reward", "contrastive", "experts:base=-0.5,aligned=1.5",
]  # fmt: skip
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def leaves() -> list[Any]:
    models = [make_model(seed, layers=1, hidden=32, eos_token_id=None) for seed in range(5)]
    for model in models:
        model.generation_config.eos_token_id = None
    return models


@pytest.fixture(scope="module")
def pairs(leaves: list[Any]) -> dict[str, kad.KadForCausalLM]:
    """By role, an outer pair with an inner pair of three models in that role."""
    made = {}
    for role in ROLES:
        within = kad.KadForCausalLM.from_models(leaves[0], leaves[1], reference=leaves[2])
        others = iter(leaves[3:])
        parts: dict[str, Any] = {name: within if name == role else next(others) for name in ROLES}
        made[role] = kad.KadForCausalLM.from_models(**parts)
        made[role].tokenizer = within.tokenizer = make_tokenizer()
    return made


@contextmanager
def composed_by(pair: kad.KadForCausalLM, role: str, inner: str, outer: str) -> Iterator[None]:
    with pair.using(outer), pair.parts[role].using(inner):
        yield


def by_hand(leaves: list[Any], inner: str, outer: str, role: str, ids: torch.Tensor) -> torch.Tensor:
    """log pi (positions, vocab): every model reads the whole text, without a cache, and the rows are composed."""
    with torch.no_grad():
        rows = [leaf(ids).logits[0] for leaf in leaves]
    within = compose(inner, *rows[:3])
    within[within < EXCLUDED / 2] = -torch.inf
    others = iter(rows[3:])
    return compose(outer, *(within if name == role else next(others) for name in ROLES))


def text(seed: int, length: int = 12) -> torch.Tensor:
    return torch.randint(3, 96, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "role", ["aligned", *(pytest.param(role, marks=pytest.mark.slow) for role in ("base", "reference"))]
)
@pytest.mark.parametrize("outer", EVERY_RULE)
def test_every_rule_inside_every_rule(outer: str, role: str, leaves: list[Any], pairs: dict[str, Any]) -> None:
    """One pass over the text, and scorers that read it in parts, agree with the composition of whole texts by hand."""
    pair = pairs[role]
    for seed, inner in enumerate(EVERY_RULE):
        ids = text(seed, 8)
        expected = by_hand(leaves, inner, outer, role, ids).exp()
        with composed_by(pair, role, inner, outer), torch.no_grad():
            whole = pair(ids).logits[0].exp()
            found = kad.score(pair, ids[0, :1].tolist(), ids[0, 1:].tolist(), raw=True).log_pi.exp()
        # What is excluded has a place for order alone.
        torch.testing.assert_close(whole, expected, atol=2e-5, rtol=1e-4)
        at = expected[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1)
        torch.testing.assert_close(found, at, atol=2e-5, rtol=1e-4)


def test_every_rule_is_nested() -> None:
    assert {parse_rule(rule).name for rule in EVERY_RULE} == set(registry())


@pytest.mark.parametrize("role", ROLES)
def test_a_scorer_goes_back_as_one_model_does(role: str, pairs: dict[str, Any]) -> None:
    """Drafts that are rejected leave nothing behind, at any depth."""
    inner = PairAsModel(pairs[role].pair)
    model = PairAsModel(Pair(KadConfig(rule="experts"), {"base": inner, "aligned": PairAsModel(pairs["base"].pair)}))
    generator = torch.Generator().manual_seed(3)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    scorer, ids, checked = model.scorer(96, torch.device("cpu")), text(8, 40)[0], 0
    for _ in range(60):
        if scorer.processed < 40:
            end = number(scorer.processed + 1, 41)
            keep = number(1, end - scorer.processed + 1)
            rows = scorer.advance(ids[scorer.processed : end], keep)
            fresh = model.scorer(96, torch.device("cpu")).advance(ids[:end], keep)
            torch.testing.assert_close(rows.exp(), fresh.exp(), atol=2e-5, rtol=1e-4)
            checked += 1
        scorer.rollback(number(0, scorer.processed + 1))
        ids = torch.cat((ids[: scorer.processed], text(checked, 40)[0, scorer.processed :]))
    assert checked > 30


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("rules", [("mixture:weight=0.4", "dual:threshold=0.2"), ("dual:threshold=0.3", "experts")])
def test_every_way_to_decode_writes_one_text(
    rules: tuple[str, str], role: str, leaves: list[Any], pairs: dict[str, Any]
) -> None:
    pair, prompt = pairs[role], text(1, 6)
    written = prompt
    for _ in range(24):
        best = by_hand(leaves, *rules, role, written)[-1:].argmax(-1, keepdim=True)
        written = torch.cat((written, best), dim=-1)
    expected, counts = written[0].tolist(), SpeculationStatistics()
    prompts = [prompt[0].tolist(), text(5, 6)[0].tolist(), text(6, 9)[0].tolist()]
    plain = kad.Sampling(temperature=0, max_new_tokens=24)
    with composed_by(pair, role, *rules):
        assert pair.generate(prompt, **GREEDY)[0].tolist() == expected
        for drafts, drafter in product((1, 4), ("aligned", "reference")):
            drafted = partial(kad.speculative, num_draft_tokens=drafts, draft_model=drafter, statistics=counts)
            assert pair.generate(prompt, **GREEDY, custom_generate=drafted)[0].tolist() == expected
        alone = [
            kad.generate(pair, ids, raw=True, sampling=plain, num_draft_tokens=drafts).token_ids
            for ids, drafts in zip(prompts, (0, 3, 0), strict=True)
        ]
        together = generate_all(pair, pair.tokenizer, prompts, sampling=plain)
    assert alone[0] == expected[6:]
    assert [answer.token_ids for answer in together] == alone
    assert counts.corrections > 5


def test_beams_padding_and_a_cache_that_is_given(pairs: dict[str, Any]) -> None:
    pair, prompt = pairs["aligned"], text(2, 6)
    beams = {"num_beams": 3, "do_sample": False, "max_new_tokens": 8}
    with_cache, without = (pair.generate(prompt, **beams, use_cache=cache) for cache in (True, False))
    assert with_cache.tolist() == without.tolist()
    plain = pair.generate(prompt, **GREEDY)
    padded, mask = torch.cat((torch.full((1, 3), 2), prompt), dim=-1), (torch.arange(9) >= 3).long().unsqueeze(0)
    assert pair.generate(padded, attention_mask=mask, **GREEDY)[0, 3:].tolist() == plain[0].tolist()
    with torch.no_grad():
        rows = pair(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[0, 3:]
        torch.testing.assert_close(rows.exp(), pair(prompt).logits[0].exp(), atol=1e-5, rtol=1e-3)
    options = {**GREEDY, "custom_generate": kad.speculative}
    more = torch.cat((plain, text(3, 2)), dim=-1)
    expected = pair.generate(more, **GREEDY).tolist()
    for go_on in (GREEDY, options):
        cache = cache_of(pair.generate(prompt, **options, return_dict_in_generate=True))
        assert pair.generate(more, past_key_values=cache, **go_on).tolist() == expected


def test_a_pair_keeps_its_own_vocabulary(leaves: list[Any]) -> None:
    """Tokens that its models do not share stay its own affair, and rows that the outer pair lacks are cut off."""
    wide = [make_model(seed, layers=1, vocab=vocab, eos_token_id=None) for seed, vocab in ((7, 104), (8, 100))]
    inner = kad.KadForCausalLM.from_models(*wide, rule="dual:threshold=0.2")
    inner.config.foreign_ids = list(range(3, 60))
    outer = kad.KadForCausalLM.from_models(leaves[2], inner, rule="aligned_only")
    outer.tokenizer = make_tokenizer()
    assert (inner.config.vocab_size, outer.config.vocab_size) == (100, 96)
    ids = torch.cat((text(9, 6), torch.tensor([[5, 9, 50, 7]])), dim=-1)
    with torch.no_grad():
        expected = inner(ids).logits[0, :, :96].log_softmax(-1)
        torch.testing.assert_close(outer(ids).logits[0].exp(), expected.exp(), atol=2e-5, rtol=1e-4)
    found = kad.score(outer.pair, ids[0, :1].tolist(), ids[0, 1:].tolist(), raw=True).log_pi
    at = expected[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1)
    torch.testing.assert_close(found.exp(), at.exp(), atol=2e-5, rtol=1e-4)
    inner.config.foreign_ids = []
    with torch.no_grad():
        assert (inner(ids).logits[0, :, :96].log_softmax(-1).exp() - expected.exp()).abs().max() > 1e-2


# ---------------------------------------------------------------- folders


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def render(shown: Any) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined]


def packed(name: str, rule: str, **places: str) -> str:
    pack({role: Source.parse(place) for role, place in places.items()}, name, rule=rule)
    return name


QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"
SMALL = {"base": "tiny:small-base", "aligned": "tiny:small-aligned"}


def test_a_pair_in_a_folder_is_a_model(here: Path) -> None:
    """By its folder, by the name of the embedded pair, in a pair that is packed, and with Transformers' own class."""
    inner = packed("inner", "mixture:weight=0.1", **SMALL)
    outer = packed("outer", "dual:threshold=0.4", base="tiny:big-base", aligned=inner)
    assert json.loads(Path("outer/config.json").read_text())["aligned"]["model"] == "../inner"
    loaded = kad.load(outer)
    by_name = kad.load(base="tiny:big-base", aligned=inner, rule="dual:threshold=0.4")
    by_class = AutoModelForCausalLM.from_pretrained(outer)
    plain = kad.Sampling(temperature=0, max_new_tokens=60)
    answers = [kad.generate(model, QUESTION, sampling=plain) for model in (loaded, by_name, by_class)]
    assert {answer.text for answer in answers} == {answers[0].text}
    assert "boxed{28}" in answers[0].text
    parts = [kad.load(base="tiny:small-base", aligned="tiny:small-aligned"), kad.load("tiny")]
    ids = torch.tensor([answers[0].prompt_ids])
    rows = [parts[1].base(ids), parts[0].base(ids), parts[0].aligned(ids)]
    p, q, r = (output.logits[0, -1] for output in rows)
    expected = compose("dual:threshold=0.4", p, compose("mixture:weight=0.1", q, r))
    torch.testing.assert_close(loaded(ids).logits[0, -1], expected, atol=1e-4, rtol=1e-4)
    loaded.save_pretrained("again")
    assert kad.generate(kad.load("again"), QUESTION, sampling=plain).text == answers[0].text
    named = kad.load(base="tiny:big-base", aligned="tiny", rule="base_only")
    assert named.config.aligned["model"] == "tiny"


def test_what_two_places_share_is_loaded_once(here: Path) -> None:
    inner = packed("inner", "mixture:weight=0.1", **SMALL)
    model = kad.load(base=inner, aligned="tiny:small-aligned", reference=inner)
    small = model.pair.models["aligned"]
    assert model.pair.models["base"].pair.models["aligned"] is small
    assert model.pair.models["reference"].pair.models["aligned"] is small
    assert len({id(leaf) for role in ("base", "reference") for leaf in model.pair.models[role].leaves}) == 2
    assert model.facts["base"].parameters == 2 * small.facts.parameters


def test_a_pair_that_is_a_part_of_itself_says_its_path(here: Path) -> None:
    packed("one", "dual", **SMALL)
    packed("two", "dual", base="one", aligned="tiny:small-aligned")
    with pytest.raises(PairError, match="a pair and a part of itself"):
        packed("one", "dual", base="two", aligned="tiny:small-aligned")
    config = json.loads(Path("one/config.json").read_text())
    config["base"]["model"] = "../two"
    Path("one/config.json").write_text(json.dumps(config))
    with pytest.raises(PairError, match=r"part of itself: \S+one -> \S+two -> \S+one\."):
        kad.load("one")
    with pytest.raises(PairError, match=r"part of itself: \S+two -> \S+one -> \S+two\."):
        kad.load(base="tiny:big-base", aligned="two")


def test_a_pair_of_too_many_pairs_is_refused(here: Path) -> None:
    below = packed("pair-0", "dual", **SMALL)
    for depth in range(1, 7):
        below = packed(f"pair-{depth}", "dual", base="tiny:small-base", aligned="tiny:small-aligned")
        config = json.loads(Path(below, "config.json").read_text())
        for role in ("base", "aligned"):
            config[role]["model"] = f"../pair-{depth - 1}"
        Path(below, "config.json").write_text(json.dumps(config))
    assert len(leaves_of(parts_of(read_config("pair-4")))) == 32
    with pytest.raises(PairError, match="at most 64 models and pairs"):
        kad.load(below)


def test_what_is_said_about_loading_a_pair_is_said_about_its_models(here: Path) -> None:
    inner = packed("inner", "mixture:weight=0.1", **SMALL)
    parts = {"base": Source.parse("tiny:big-base"), "aligned": Source(inner, None, {"dtype": "float32"})}
    pack(parts, "outer", rule="dual")
    facts = kad.load("outer").facts
    assert (facts["base"].weights, facts["aligned"].weights) == ("bfloat16", "float32")


def test_vllm_is_told_before_it_starts(here: Path) -> None:
    inner = packed("inner", "mixture:weight=0.1", **SMALL)
    outer = packed("outer", "dual", base="tiny:big-base", aligned=inner)
    done = CliRunner().invoke(app, ["serve", outer, "--engine", "vllm", "--dry-run"])
    assert (done.exit_code, "inner is a pair. Use another engine." in done.stderr) == (2, True)


def test_a_chat_goes_on_with_the_caches_of_every_part(here: Path) -> None:
    inner = packed("inner", "mixture:weight=0.1", **SMALL)
    model = kad.load(base="tiny:big-base", aligned=inner, rule="dual:threshold=0.4")
    talk = kad.Conversation(model, sampling=kad.Sampling(temperature=0, max_new_tokens=40), num_draft_tokens=3)
    for said in (QUESTION, "Ann has 5 pens. She buys 8 more. How many?"):
        answer = talk.say(said).finish()
    asked = [{"role": "user", "content": QUESTION}, talk.turns[1], talk.turns[2]]
    fresh = kad.generate(model, asked, sampling=kad.Sampling(temperature=0, max_new_tokens=40), num_draft_tokens=0)
    assert answer.token_ids == fresh.token_ids
    kept = talk.kept.take(fresh.prompt_ids, ("base", "aligned"))
    assert kept["aligned"].processed == len(fresh.prompt_ids) - 1
    assert {part.processed for part in kept["aligned"].parts.values()} == {kept["aligned"].processed}


# ---------------------------------------------------------------- every random outcome


INNER = "mixture:weight=0.3"


class Table:
    """One table model of an inner pair. That of the reference cannot go back."""

    device = torch.device("cpu")
    generation_config = GenerationConfig()
    facts = Facts(1, None)

    def __init__(self, role: str, vocab: int) -> None:
        self.role, self.vocab_size = role, vocab

    def scorer(self, vocab_size: int, device: torch.device) -> Any:
        kind: Any = OnlyForward if self.role == "reference" else TableScorer
        made = kind(self.role, vocab_size)
        return Replay(made) if self.role == "reference" else made


def enumerated(rule: str, window: int, role: str) -> tuple[dict[Any, float], dict[Any, float]]:
    """The distribution over all texts of three tokens: of the real loop, and by the definition.

    The model of the role is a pair of the tables of the reference and of that role.
    """
    vocab, parsed = 3, parse_rule(rule)
    models: Any = {"base": Table("reference", vocab), "aligned": Table(role, vocab)}
    inner = PairAsModel(Pair(KadConfig(rule=INNER, vocab_size=vocab), models))

    def scorer_of(name: str, size: int) -> Any:
        return inner.scorer(size, torch.device("cpu")) if name == role else TableScorer(name, size)

    found = exact_distribution(
        parsed, vocab=vocab, new_tokens=3, window=window, verifier=verify_block, scorer=scorer_of
    )
    truth: dict[Any, float] = {}
    for tokens in product(range(vocab), repeat=3):
        probability = 1.0
        for end in range(3):
            rows = {name: table_row(name, PROMPT + tokens[:end], vocab) for name in ROLES}
            rows[role] = compose(INNER, rows["reference"], rows[role])
            probability *= float(compose(parsed, rows["base"], rows["aligned"]).exp()[tokens[end]])
        truth[tokens] = probability
    return found, truth


@pytest.mark.parametrize("role", ["base", "aligned"])
@pytest.mark.parametrize("window", [0, 1, 2])
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "confidence_bet:margin=0.0", "experts:base=0.5,aligned=0.5"])
def test_every_random_outcome(rule: str, window: int, role: str) -> None:
    """Of a pair that drafts, and of one that judges drafts."""
    found, truth = enumerated(rule, window, role)
    assert total_variation(found, truth) < 1e-6


def test_a_part_that_is_not_rolled_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: ComposedScorer, length: int) -> None:
        self.parts["base"].rollback(length)
        self.parts["aligned"].processed = min(self.parts["aligned"].processed, length)

    monkeypatch.setattr(ComposedScorer, "rollback", forgetful)
    assert total_variation(*enumerated("dual:threshold=0.4", 2, "aligned")) > 1e-3


# ---------------------------------------------------------------- prompts of its own


@pytest.fixture(scope="module")
def asked_twice() -> Pair:
    """Guidance: one model with two prompts."""
    small = kad.load(base="tiny:small-aligned", aligned="tiny:small-aligned", rule="experts:base=-0.5,aligned=1.5")
    small.base_prompt = "Sue has 90 pens. She buys 5 more. {question} The answer is"
    return small.pair


@pytest.fixture(scope="module")
def two_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The base model has a tokenizer of its own, and is asked by `qa`."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, size) in enumerate({"base": 300, "aligned": 280}.items()):
        tokenizer = trained(size, f"</{name}>")
        model = make_model(seed, vocab=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
        for piece in (model, tokenizer):
            piece.save_pretrained(folder / name)
    return kad.load(base=str(folder / "base"), aligned=str(folder / "aligned"), rule="dual:threshold=0.2").pair


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ["asked_twice", "two_tokenizers"])
def test_a_pair_within_asks_its_base_model_in_its_own_way(
    name: str, depth: int, request: pytest.FixtureRequest
) -> None:
    """Under aligned_only, the outer pair is the inner pair: the same scores and the same text, in every form."""
    inner: Pair = request.getfixturevalue(name)
    assert Asking(QUESTION).context(inner).base_ids is not None
    outer = inner
    for _ in range(depth):
        parts = {"base": inner.models["aligned"], "aligned": PairAsModel(outer)}
        outer = Pair(KadConfig(rule="aligned_only"), parts)
    plain = kad.Sampling(temperature=0, max_new_tokens=12)
    expected = kad.generate(inner, QUESTION, sampling=plain, num_draft_tokens=0)
    for drafts in (0, 3):
        assert kad.generate(outer, QUESTION, sampling=plain, num_draft_tokens=drafts).token_ids == expected.token_ids
    contexts = [Asking(QUESTION).context(outer)] * 2
    together = generate_all(outer, outer.tokenizer, contexts, sampling=plain)
    assert [answer.token_ids for answer in together] == [expected.token_ids] * 2
    talk = kad.Conversation(outer, sampling=plain)
    assert [talk.say(QUESTION).finish().token_ids, talk.kept.take(contexts[0], outer.roles)] == [expected.token_ids, {}]
    found, wanted = (kad.score(pair, QUESTION, "First, 90 + 5 = 95.").log_pi for pair in (outer, inner))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    same = kad.score(inner, QUESTION, "First, 90 + 5 = 95.", base_prompt="same").log_pi
    assert (same - wanted).abs().max() > 1e-2


# ---------------------------------------------------------------- what people see


@pytest.fixture
def three(here: Path) -> str:
    """A mixture of two small models under a big one, and a small one beside it."""
    packed("experts", "mixture:weight=0.2", **SMALL)
    return packed("three", "dual:threshold=0.4", base="tiny:big-base", aligned="experts", reference="tiny:small-base")


def test_info_shows_every_model_and_counts_shared_weights_once(three: str) -> None:
    done = CliRunner().invoke(app, ["info", three, "--json"])
    found = json.loads(done.stdout)
    assert list(found["models"]) == ["base", "aligned.base", "aligned.aligned", "reference"]
    assert found["pairs"]["aligned"]["rule"] == "mixture:weight=0.2"
    sizes = {path: model["weight_bytes"] for path, model in found["models"].items()}
    assert found["memory"]["weights"] == sizes["base"] + sizes["aligned.base"] + sizes["aligned.aligned"]
    assert found["memory"]["vllm_draft"] is None
    shown = CliRunner().invoke(app, ["info", three]).stdout
    assert "aligned.base  tiny:small-base" in shown
    assert "the same weights as aligned.base" in shown


def test_a_trace_names_the_model_that_a_token_came_from(three: str) -> None:
    model = kad.load(three)
    traced = kad.trace(model, QUESTION, "First, 24 + 13 = 37.")
    assert "aligned.base 1%" in render(traced.in_terminal(every_position=True))
    assert type(traced).from_json(traced.to_json()) == traced
    inner = model.pair.models["aligned"].pair
    ids = [position.token for position in traced.positions]
    within = kad.score(inner, QUESTION, ids).base_share
    for position, share in zip(traced.positions, within.tolist(), strict=True):
        assert list(position.leaves) == ["base", "aligned.base", "aligned.aligned"]
        expected = [position.base_share, position.aligned_share * share, position.aligned_share * (1 - share)]
        assert list(position.leaves.values()) == pytest.approx(expected, abs=1e-4)
    with model.pair.using("experts"):
        assert kad.trace(model, QUESTION, "First").positions[0].leaves is None
    with inner.using("experts"):
        assert list(kad.trace(model, QUESTION, "First").positions[0].leaves) == ["base", "aligned"]
    assert kad.trace(inner, QUESTION, "First").positions[0].leaves is None


def test_the_leaves_of_a_pair_that_is_asked_otherwise() -> None:
    """Where p has a prompt of its own and is a pair itself, its parts are read at the same tokens."""
    within = kad.load("tiny", rule="dual:threshold=0.3").pair
    outer = Pair(
        KadConfig(rule="mixture:weight=0.5"), {"base": PairAsModel(within), "aligned": within.models["aligned"]}
    )
    outer.base_prompt = "Sue has 90 pens. {question} The answer is"
    positions = kad.trace(outer, QUESTION, "First, 90 + 5 = 95.").positions
    ids, its_prompt = [position.token for position in positions], Asking(QUESTION).context(outer).base_ids
    within_p = kad.score(within, its_prompt, ids, raw=True).base_share.tolist()
    for position, share in zip(positions, within_p, strict=True):
        base = position.base_share
        expected = [share * base, (1 - share) * base, 1 - base]
        assert list(position.leaves.values()) == pytest.approx(expected, abs=1e-4)
    top = Pair(KadConfig(rule="mixture:weight=0.5"), {"base": within.models["base"], "aligned": PairAsModel(outer)})
    for position, below in zip(kad.trace(top, QUESTION, "First, 90 + 5 = 95.").positions, positions, strict=True):
        assert list(position.leaves) == ["base", "aligned.base.base", "aligned.base.aligned", "aligned.aligned"]
        expected = [position.base_share, *(position.aligned_share * share for share in below.leaves.values())]
        assert list(position.leaves.values()) == pytest.approx(expected, abs=1e-4)


def test_an_evaluation_asks_a_pair_as_one_model(three: str) -> None:
    config = resolve(three)
    engine = Engine(config.model_sources())
    request = SampleRequest(
        prompt=kad.load("tiny").tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
        ),
        seed=0,
        max_new_tokens=60,
        temperature=0.0,
        conversation=({"role": "user", "content": QUESTION},),
    )
    plain = kad.Sampling(temperature=0, max_new_tokens=60)
    for name, pair in {"aligned": "experts", "dual:threshold=0.4": three}.items():
        (done,) = engine.generate(parse_method(name), [request])
        assert done.text == kad.generate(kad.load(pair), QUESTION, sampling=plain).text


# ---------------------------------------------------------------- docs/compose.md


def test_a_product_of_three_is_a_product_of_a_product(leaves: list[Any]) -> None:
    ids = text(4)
    two = kad.KadForCausalLM.from_models(*leaves[:2], rule="experts:base=0.7,aligned=0.4")
    model = kad.KadForCausalLM.from_models(two, leaves[2], rule="experts:base=1,aligned=-0.3")
    with torch.no_grad():
        p, first, second = (leaf(ids).logits.log_softmax(-1) for leaf in leaves[:3])
        expected = (0.7 * p + 0.4 * first - 0.3 * second).softmax(-1)
        torch.testing.assert_close(model(ids).logits.exp(), expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_a_knapsack_for_each_expert_is_one_mixture_of_experts(seed: int) -> None:
    """The theorem of docs/compose.md against a solver of linear programs: its value, and its pi."""
    generator = torch.Generator().manual_seed(seed)
    size, experts = 7, 3
    p, *q = (2 * torch.randn(experts + 1, size, generator=generator, dtype=torch.float64)).softmax(-1)
    budgets = 0.3 * torch.rand(experts, generator=generator, dtype=torch.float64) + 0.01
    saved = -p * p.log()
    costs = torch.kron(torch.eye(experts, dtype=torch.float64), p)  # of d_{v,i}, one expert after the other
    once = torch.eye(size, dtype=torch.float64).repeat(1, experts)
    solved = linprog(
        (-saved).repeat(experts).numpy(), torch.cat((costs, once)).numpy(),
        torch.cat((budgets, torch.ones(size, dtype=torch.float64))).numpy(), bounds=(0, 1),
    )  # fmt: skip
    budget, parts = float(budgets.sum()), torch.tensor(solved.x).view(experts, size)
    one = knapsack.linear(p.log(), budget)
    assert -solved.fun == pytest.approx(float(one.value), abs=1e-9)
    by_solver = (1 - parts.sum(0)) * p + ((parts @ p).unsqueeze(-1) * torch.stack(q)).sum(0)
    first = float(budgets[0] / budgets[:2].sum())
    two = compose(f"mixture:weight={first}", q[0].log(), q[1].log())
    mixture = compose(f"mixture:weight={float(budgets[:2].sum()) / budget}", two, q[2].log())
    torch.testing.assert_close(compose(f"lp:budget={budget}", p.log(), mixture).exp(), by_solver, atol=1e-6, rtol=1e-6)
