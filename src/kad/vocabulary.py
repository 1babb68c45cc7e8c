"""The only place that decides whether vocabularies match, and how padded vocabularies are trimmed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kad.errors import VocabularyError

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN = 5


def common_size(sizes: Mapping[str, int]) -> int:
    """The vocabulary of the composition: the smallest number of output rows among the models.

    Models of one tokenizer may pad their embeddings differently (Qwen2.5 0.5B has 151,936 rows, 7B has 152,064). Rows
    that some model lacks stand for no token, and are cut off.
    """
    return min(sizes.values())


def trim(logits: Tensor, size: int) -> Tensor:
    """The first `size` entries of (..., vocab) logits, as a view."""
    return logits[..., :size] if logits.shape[-1] != size else logits


def check_token_maps(
    first: Mapping[str, int],
    second: Mapping[str, int],
    size: int,
    names: tuple[str, str] = ("base", "aligned"),
) -> None:
    """Refuse two token maps (token -> id) that give one id to different tokens.

    A token that only one map knows is allowed if both models have a row for it. Chat markers that were added during
    alignment are an example. A token after the last common row is not allowed.

    Raises:
        VocabularyError: with the first few ids that differ.
    """
    ours, theirs = ({index: token for token, index in vocab.items()} for vocab in (first, second))
    differing = [i for i in sorted(ours.keys() & theirs.keys()) if ours[i] != theirs[i]]
    if differing:
        shown = "; ".join(f"id {i}: {ours[i]!r} / {theirs[i]!r}" for i in differing[:_SHOWN])
        raise VocabularyError(
            f"The {names[0]} and {names[1]} models have different vocabularies: {len(differing)} ids stand for "
            f"different tokens ({names[0]} / {names[1]}): {shown}. Both models must share one tokenizer."
        )
    outside = sorted(i for i in ours.keys() | theirs.keys() if i >= size)
    if outside:
        shown = "; ".join(f"id {i}: {ours.get(i, theirs.get(i))!r}" for i in outside[:_SHOWN])
        raise VocabularyError(
            f"{len(outside)} tokens lie past the {size} rows that the {names[0]} and {names[1]} models share: {shown}. "
            "Resize the smaller model's embeddings, or take a model of the same family."
        )
