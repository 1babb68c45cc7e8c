"""The default rule, and the default number of tokens to draft at a time. Importing this module is cheap."""

from __future__ import annotations

from kad.method.speculation.windows import AUTO

RULE = "dual:threshold=0.4"
COLDEST, HOTTEST = 0.01, 1000
"""The range of temperatures. Below, float32 decides by its rounding (and vLLM takes 0.01); above, all is one."""
TEMPERATURES = f"[{COLDEST}, {HOTTEST}]"
FIXED_DRAFT_TOKENS = 4
"""The number of drafts where it must be fixed: for a sampled text, and in vLLM, which drafts as many for every request.

It is near the best if most drafts are accepted, and pays if the aligned model costs a tenth of the base model.
docs/vllm.md says how to choose another.
"""
PUBLISHED_DRAFT_TOKENS = 8
"""The number of drafts in the published runs. Evaluation repeats them, so it drafts as many."""


def draft_tokens(sampled: bool) -> int | str:
    """How many tokens to draft: "auto", or a fixed number for a sampled text.

    "auto" depends on measured times. The ends of the windows decide which random numbers a token gets. So with "auto" a
    seed would not repeat a sampled text.
    """
    return FIXED_DRAFT_TOKENS if sampled else AUTO
