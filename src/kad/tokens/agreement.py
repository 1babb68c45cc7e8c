"""Do the tokenizers of a pair agree, or must the base model be read through the aligned model's?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kad.errors import VocabularyError
from kad.tokens.token_bytes import token_bytes
from kad.tokens.vocabulary import OWN, Common, common_vocabulary

_LOG = logging.getLogger(__name__)


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
        others = [role for role in sizes if role != "base"]
        found = common_vocabulary(
            {role: sizes[role] for role in others}, {role: tokenizers[role] for role in others if role in tokenizers}
        )
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
    return replace(found, base_tokenizer=OWN)
