"""A base model read through the aligned model's tokenizer, where the two do not share one.

Example:
    >>> base, aligned = TokenBytes.of(base_tokenizer, base_rows), TokenBytes.of(aligned_tokenizer, aligned_rows)
    >>> nodes = Nodes(scorer, prompt, scorer.advance(prompt, keep=1)[0], base, least=0.002)
    >>> reading = Translation(nodes, aligned, opened=b" ", stops=[b"\\nQuestion:"]).read(answer)
    >>> reading.p  # by token of the aligned model, and what is left over: reading.rest
"""

from kad.tokens.reading import Nodes, Reading, Translation
from kad.tokens.token_bytes import TokenBytes

__all__ = ["Nodes", "Reading", "TokenBytes", "Translation"]
