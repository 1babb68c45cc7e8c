"""The only place that decides whether vocabularies match, and how padded vocabularies are trimmed."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kad.errors import VocabularyError
from kad.tokens.token_bytes import token_bytes
from kad.words import counted

if TYPE_CHECKING:
    from torch import Tensor


_LOG = logging.getLogger(__name__)
_SHOWN = 5
OWN = "own"
"""The value of a pair's `base_tokenizer` if the base model has another tokenizer than the aligned model."""

# Names that tokenizers give to ids kept for later: <unused12>, <|reserved_special_token_3|>, [reserved_7].
_RESERVED = re.compile(r"[<\[]\|?[a-z_]*(?:unused|reserved)[a-z_]*\d*\|?[>\]]", re.IGNORECASE)


@dataclass(frozen=True)
class TokenMap:
    """The tokens of a tokenizer."""

    tokens: Mapping[int, str]  # id -> token
    special: Collection[int]  # the ids of tokens that are not text: special ones, and those that are kept for later

    @classmethod
    def of(cls, tokenizer: Any) -> TokenMap:
        """The tokens of a Transformers tokenizer."""
        tokens = {index: token for token, index in tokenizer.get_vocab().items()}
        added = getattr(tokenizer, "added_tokens_decoder", {})
        marked = {index for index, token in added.items() if token.special}
        return cls(tokens, marked | {index for index, token in tokens.items() if _RESERVED.fullmatch(token)})


@dataclass(frozen=True)
class Common:
    """What the vocabularies of a pair's models have in common."""

    vocab_size: int  # the number of tokens that all models share
    foreign_ids: list[int]  # those among them that are not the same token for all models, see `foreign_ids`
    # `OWN` if the base model has a tokenizer of its own, and is none of these models. Else None.
    base_tokenizer: str | None = None


def common_size(sizes: Mapping[str, int]) -> int:
    """The vocabulary of the composition: the smallest number of output rows among the models.

    Models of one tokenizer may pad their embeddings differently (Qwen2.5 0.5B has 151,936 rows, 7B has 152,064). Rows
    that some model lacks stand for no token, and are cut off.
    """
    return min(sizes.values())


def trim(logits: Tensor, size: int) -> Tensor:
    """The first `size` entries of (..., vocab) logits, as a view."""
    return logits[..., :size] if logits.shape[-1] != size else logits


def foreign_ids(
    first: TokenMap, second: TokenMap, rows: tuple[int, int], names: tuple[str, str] = ("base", "aligned")
) -> list[int]:
    """The ids below the smaller number of rows that do not stand for the same token in both maps.

    They may differ in tokens that are not text: special and reserved ones. A token that only one map knows is allowed
    if both models have a row for it (chat markers that were added during alignment). A token past the rows of one model
    is allowed if it is not text, and the aligned model does not alone know it (Gemma 3's `<image_soft_token>`): its row
    is cut off. The first model's mass on the ids that differ must never be kept: they mean something else to the
    second, or nothing.

    Args:
        first: the tokens of the base (or the reference) model.
        second: the tokens of the aligned model.
        rows: the number of output rows of each model.
        names: what to call the two in an error.

    Raises:
        VocabularyError: an ordinary token differs, or has no row in one of the models.
    """
    differing = sorted(
        index
        for index in first.tokens.keys() | second.tokens.keys()
        if first.tokens.get(index) != second.tokens.get(index)
    )
    both = [index for index in differing if index in first.tokens and index in second.tokens]
    ordinary = [i for i in both if i not in first.special or i not in second.special]
    if ordinary:
        examples = "; ".join(f"id {i}: {first.tokens[i]!r} / {second.tokens[i]!r}" for i in ordinary[:_SHOWN])
        raise VocabularyError(
            f"The {names[0]} and {names[1]} models have different vocabularies: {len(ordinary)} ids stand for "
            f"different tokens ({names[0]} / {names[1]}): {examples}. Both models must share one tokenizer."
        )
    size = min(rows)
    past = {i: m.tokens[i] for m in (first, second) for i in m.tokens if i >= size and i not in m.special}
    past |= {i: token for i, token in second.tokens.items() if size <= i < rows[1] and i not in first.tokens}
    if past:
        examples = "; ".join(f"id {i}: {past[i]!r}" for i in sorted(past)[:_SHOWN])
        raise VocabularyError(
            f"{len(past)} tokens lie past the {size} rows that the {names[0]} and {names[1]} models share: {examples}. "
            "Resize the smaller model's embeddings, or take a model of the same family."
        )
    return [index for index in differing if index < size]


def common_vocabulary(sizes: Mapping[str, int], tokenizers: Mapping[str, Any]) -> Common:
    """What the models' vocabularies have in common. Says so, once, if they are not one.

    Args:
        sizes: the number of output rows of each model, by role.
        tokenizers: by role. The ids of a model without one are taken to agree.

    Raises:
        VocabularyError: as `foreign_ids`.
    """
    size, differing = common_size(sizes), set()
    for role, own in tokenizers.items():
        if role == "aligned" or "aligned" not in tokenizers:
            continue
        vocab, rows = own.get_vocab(), (sizes[role], sizes["aligned"])
        if vocab == tokenizers["aligned"].get_vocab() and max(vocab.values()) < min(rows):
            continue
        foreign = foreign_ids(TokenMap.of(own), TokenMap.of(tokenizers["aligned"]), rows, (role, "aligned"))
        differing.update(foreign)
        if foreign:
            _LOG.warning(
                "The %s and aligned models share one tokenizer except for %s. "
                "The aligned model alone decides about these.",
                role,
                counted(len(foreign), "special or reserved token"),
            )
    return Common(size, sorted(index for index in differing if index < size))


def agree(sizes: Mapping[str, int], tokenizers: Mapping[str, Any]) -> Common:
    """What the models' vocabularies have in common. A base model may have a tokenizer of its own. Says so, once.

    Args:
        sizes: the number of output rows of each model, by role.
        tokenizers: by role. The ids of a model without one are taken to agree.

    Raises:
        VocabularyError: the tokens differ, and one of the two tokenizers does not give the bytes of a text back.
    """
    try:
        return common_vocabulary(sizes, tokenizers)
    except VocabularyError as error:
        if not {"base", "aligned"} <= tokenizers.keys():
            raise
        common = common_vocabulary(_without_base(sizes), _without_base(tokenizers))
        for role in ("base", "aligned"):
            try:
                token_bytes(tokenizers[role])
            except VocabularyError as reason:
                raise VocabularyError(
                    f"{error} Nor can the base model be read through the aligned model's tokens, because of the {role} "
                    f"model's tokenizer. {reason}"
                ) from reason
    _LOG.warning(
        "The base model has a tokenizer of its own. It is read through the aligned model's tokens (docs/models.md)."
    )
    return replace(common, base_tokenizer=OWN)


def _without_base(by_role: Mapping[str, Any]) -> dict[str, Any]:
    return {role: value for role, value in by_role.items() if role != "base"}
