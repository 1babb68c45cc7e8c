"""p read through q*'s tokenizer: against brute force over every text of toy models, and on the ways to break it."""

from __future__ import annotations

import random
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from kad import tiny
from kad.errors import LogitsError, VocabularyError
from kad.tokens import Nodes, Reading, TokenBytes, Translation
from kad.tokens.token_bytes import whole_characters
from translation_toys import SPLITS, TableModel, all_texts, brute_force, random_tokenizer

PAIRS = [("none", "words"), ("words", "gpt2"), ("gpt2", "gpt2"), ("gpt2", "none")]
CASES = [
    pytest.param({"alphabet": b"ab "}, id="letters"),
    pytest.param({"alphabet": b"a' e", "longest": 4}, id="apostrophes"),
    pytest.param({"alphabet": b"a \n", "opened": b" "}, id="opened"),
    pytest.param({"alphabet": b"ab ", "stops": (b"ab",)}, id="stop"),
    pytest.param({"alphabet": b"a \n", "opened": b" ", "stops": (b"\n", b"a\na")}, id="stops"),
    pytest.param({"alphabet": "aé".encode(), "longest": 5}, id="characters"),
]


class Toy:
    """A toy pair: its translation, every text that p can write, and the answers to try."""

    def __init__(
        self,
        seed: int,
        splits: tuple[str, str],
        *,
        alphabet: bytes,
        longest: int = 5,
        opened: bytes = b"",
        stops: tuple[bytes, ...] = (),
        least: float = 0.0,
        least_branch: float = 0.0,
        most_branches: int = 20_000,
    ) -> None:
        base = random_tokenizer(seed, alphabet, 6, splits[0])
        self.aligned = random_tokenizer(seed + 1000, alphabet, 6, splits[1])
        self.model = TableModel(base, seed, longest)
        self.opened, self.stops = opened, stops
        self.texts = all_texts(self.model)
        self.translation = partial(
            self._translation, base, least=least, least_branch=least_branch, most_branches=most_branches
        )

    def _translation(self, base: TokenBytes, *, least: float, **options: float) -> Translation:
        model = TableModel(base, self.model.seed, self.model.longest)
        nodes = Nodes(model, (), model.logits(()), base, least)
        return Translation(nodes, self.aligned, opened=self.opened, stops=self.stops, **options)  # type: ignore[arg-type]

    def answers(self, strangers: int = 20) -> list[tuple[int, ...]]:
        """Every answer that the aligned tokenizer makes of a text of p, and some that no tokenizer makes."""
        found = set()
        for text in self.texts:
            if text.startswith(self.opened):
                rest = text[len(self.opened) :]
                ids = self.aligned.encode(rest[: whole_characters(rest)])
                found |= {ids[:count] for count in range(len(ids) + 1)}
        draw = random.Random(self.model.seed)
        ordinary = range(len(self.aligned.pieces) - 2)
        found |= {tuple(draw.choices(ordinary, k=draw.randrange(1, 4))) for _ in range(strangers)}
        return sorted(found)

    def row(self, read: Reading) -> torch.Tensor:
        """A reading as probabilities (vocab,)."""
        p = [read.p.get(token, 0.0) for token in range(len(self.aligned.pieces))]
        return torch.tensor(p, dtype=torch.float64)

    def errors(self) -> torch.Tensor:
        """phat read minus phat by brute force, for every answer that p can have written: (answers, vocab)."""
        translation, rows = self.translation(), []
        for answer in self.answers():
            text = self.opened + self.aligned.bytes_of(answer)
            tail = translation._canonical_tail(answer)
            truth = brute_force(self.texts, self.aligned, answer, tail, self.opened, self.stops)
            read = translation.read(answer)
            assert sum(read.p.values()) + read.rest == pytest.approx(1.0)
            if truth is None or whole_characters(text) < len(text):
                assert not read.p
            else:
                rows.append(self.row(read) - truth)
        return torch.stack(rows)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
@pytest.mark.parametrize("splits", PAIRS, ids="-".join)
@pytest.mark.parametrize("case", CASES)
def test_reading_is_the_definition(case: dict[str, Any], splits: tuple[str, str], seed: int) -> None:
    errors = Toy(seed, splits, **case).errors()
    assert len(errors) > 15
    assert float(errors.abs().max()) < 1e-12


@pytest.mark.parametrize("splits", PAIRS, ids="-".join)
def test_a_search_cut_short_is_a_lower_bound(splits: tuple[str, str]) -> None:
    errors = Toy(3, splits, alphabet=b"ab ", least_branch=0.1).errors()
    assert float(errors.max()) < 1e-12
    assert float(errors.min()) < -1e-3, "nothing was cut"


def test_one_tokenizer_on_both_sides_gives_p_itself() -> None:
    toy = Toy(4, ("words", "words"), alphabet=b"ab ")
    toy.aligned = toy.model.tokens
    translation = toy.translation()
    checked = 0
    for answer in toy.answers(strangers=0):
        node = translation._nodes.at(answer)
        read = translation.read(answer)
        ordinary = [index for index, piece in enumerate(toy.aligned.pieces) if piece is not None]
        p = node.weights / node.whole
        torch.testing.assert_close(toy.row(read)[ordinary], p[ordinary], rtol=0, atol=1e-12)
        checked += 1
    assert checked > 30


def test_a_reading_depends_on_the_answer_alone() -> None:
    toy = Toy(5, ("gpt2", "words"), alphabet=b"ab ", least=0.01, least_branch=0.05)
    answers = toy.answers()
    used = toy.translation()
    random.Random(0).shuffle(answers)
    for answer in answers + answers[::-1]:
        fresh, again = toy.translation().read(answer), used.read(answer)
        assert fresh == again


@pytest.mark.parametrize("sharpness", [3.0, 0.3], ids=["few likely tokens", "many"])
def test_a_long_row_in_float32_is_the_softmax(sharpness: float) -> None:
    """Few likely tokens are found by blocks of the row, many by a look at all of it."""
    vocab, least = 8192, 2e-4
    specials = TokenBytes(None, [None] * (vocab - 1))
    row = sharpness * torch.randn(vocab, generator=torch.Generator().manual_seed(0))
    row[-1] = 5.0  # no token
    node = Nodes(SimpleNamespace(), (0,), row, specials, least, temperature=0.7).at(())  # type: ignore[arg-type]
    truth = (row.double() / 0.7).softmax(dim=-1)[:-1]
    weights = row.div(0.7).softmax(dim=-1)[:-1]
    assert list(node.likely) == [
        u for u in weights.argsort(descending=True, stable=True).tolist() if weights[u] >= least
    ]
    assert len(node.likely) > 10
    truth /= truth.sum()
    assert list(node.likely.values()) == pytest.approx(truth[list(node.likely)].tolist(), rel=1e-5)
    assert node.p(torch.arange(vocab - 1)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_no_distribution_is_an_error(bad: float) -> None:
    tokens = TokenBytes(None, [None] * 4)
    with pytest.raises(LogitsError, match=r"^the base model's logits of shape \(4,\): row 0 has .* at token 2\."):
        Nodes(SimpleNamespace(), (0,), torch.tensor([0.0, 1.0, bad, 0.0]), tokens, 0.1)  # type: ignore[arg-type]


class TestBroken:
    """Each way to break the translation that the design warns of is seen by the comparison with brute force."""

    def worst(self, most_branches: int = 1000) -> float:
        toys = [
            Toy(seed, ("none", "words"), alphabet=b"ab ", longest=4, most_branches=most_branches) for seed in (1, 6)
        ]
        return max(float(toy.errors().abs().max()) for toy in toys)

    def test_whole(self) -> None:
        assert self.worst() < 1e-12

    def test_a_head_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TokenBytes, "is_extended", lambda self, prefix: prefix == b"")
        assert self.worst() > 1e-2

    def test_a_head_that_is_not_strict(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            TokenBytes, "extends", lambda self, token, prefix: (self.pieces[token] or b"").startswith(prefix)
        )
        assert self.worst() > 1e-2

    def test_a_special_token_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        grow = Translation._cut_at_stop
        monkeypatch.setattr(
            Translation,
            "_cut_at_stop",
            lambda self, mass, ids, text, piece, end: grow(self, mass, ids, text, piece or b"a", end),
        )
        with pytest.raises(AssertionError):
            assert self.worst(most_branches=20) < 1e-2

    def test_a_branch_settled_too_early(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TokenBytes, "settled", lambda tokens, text, known=(): tokens.encode(text))
        assert self.worst() > 1e-2

    def test_a_cache_that_is_not_rolled_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def forgetful(self: TableModel, length: int) -> None:
            self.processed = min(self.processed, length)

        monkeypatch.setattr(TableModel, "rollback", forgetful)
        assert self.worst() > 1e-2


class TestTokenBytes:
    def test_bytes_of_the_tiny_tokenizer(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny.path("small-aligned"))
        view = TokenBytes.of(tokenizer, len(tokenizer))
        text = "Mia has 24 apples. Naïve 日本 👩‍🚀".encode()
        assert view.bytes_of(view.encode(text)) == text
        assert all(view.pieces[index] is None for index in tokenizer.all_special_ids)

    def test_a_special_token_typed_as_text_stays_text(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny.path("small-aligned"))
        view = TokenBytes.of(tokenizer, len(tokenizer))
        for index in tokenizer.all_special_ids:
            typed = tokenizer.convert_ids_to_tokens(index)
            assert index not in view.encode(typed.encode())

    def test_a_text_is_encoded_word_by_word(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny.path("small-aligned"))
        view = TokenBytes.of(tokenizer, len(tokenizer))
        text = b" ".join([b"Mia has two apples and gives one of them to her friend"] * 8)
        assert view.encode(text) == tuple(tokenizer(text.decode(), add_special_tokens=False).input_ids)
        assert view._chunks(b"Mia has 2 apples.") == [b"Mia", b" has 2 apples."]

    def test_a_text_is_encoded_whole_where_a_token_reaches_across_a_space(self) -> None:
        from tokenizers import Tokenizer, models

        pieces = [b"a", b" ", b"b", b"a ", b"a b"]
        vocab = {piece.decode().replace(" ", "Ġ"): index for index, piece in enumerate(pieces)}
        bpe = Tokenizer(models.BPE(vocab, [("a", "Ġ"), ("aĠ", "b")]))
        bpe.pre_tokenizer = SPLITS["none"]
        view = TokenBytes(bpe, pieces, splits=False)
        assert view.encode(b"a b") == (4,)
        assert view.settled(b"b a b") == ()

    def test_what_a_longer_text_splits_otherwise_is_not_settled(self) -> None:
        """GPT-2's rule splits x'r into three, and x're into two: its last words alone would settle the apostrophe."""
        from tokenizers import Tokenizer, models

        pieces = [b"x", b"'", b"r", b"e", b"'r"]
        bpe = Tokenizer(models.BPE({piece.decode(): index for index, piece in enumerate(pieces)}, [("'", "r")]))
        bpe.pre_tokenizer = SPLITS["gpt2"]
        view = TokenBytes(bpe, pieces)
        assert (view.encode(b"x'r"), view.encode(b"x're")) == ((0, 1, 2), (0, 4, 3))
        for known in ((), (0,), (0, 4), (3, 3)):
            assert view.settled(b"x'r", known) == (0,)
        assert view.settled(b"x'r", (0, 1, 2)) == (0, 1), "nothing new, so nothing is probed"

    def test_a_tokenizer_without_bytes_is_refused(self) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = Tokenizer(models.WordLevel({"the": 0, "[UNK]": 1}, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        with pytest.raises(VocabularyError, match="WordLevel.*cannot be read as bytes"):
            TokenBytes.of(PreTrainedTokenizerFast(tokenizer_object=words), 2)

    def test_a_tokenizer_that_loses_bytes_names_the_token(self) -> None:
        from tokenizers import decoders, normalizers
        from transformers import PreTrainedTokenizerFast

        tokenizer = random_tokenizer(0, bytes(range(32, 127)), 6, "gpt2")._tokenizer
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.decoder = decoders.ByteLevel()
        with pytest.raises(VocabularyError, match=r"becomes b'the cat sat.*first token that differs is 't'"):
            TokenBytes.of(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 200)
