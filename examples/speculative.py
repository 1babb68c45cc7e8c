"""Speculative decoding: q* drafts, one forward pass of p checks, and the text is distributed exactly as without drafts.

At temperature 0 there is one most probable text, so it is even the same text.
"""

import kad

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"

model = kad.load("tiny")
greedy = kad.Sampling(temperature=0, max_new_tokens=80)
plain = kad.generate(model, QUESTION, sampling=greedy, num_draft_tokens=0)
fast = kad.generate(model, QUESTION, sampling=greedy, num_draft_tokens=6)
counted = fast.statistics
print(fast.text)
print(f"the same as without drafts: {plain.token_ids == fast.token_ids}")
print(f"{counted.tokens} tokens from {counted.windows} forward passes of the base model")
print(f"{counted.accepted} of {counted.drafted} drafts accepted ({counted.acceptance_rate:.0%})")
