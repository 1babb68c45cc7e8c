"""Guidance in a pair: what the small model says with its chat template, less what it says without it.

One model with two prompts is a pair, and its weights are loaded once. Here this pair leads a big base model, as a small
aligned model would. Its answers are its own: the base model reads the chat template.
"""

import kad

small = "tiny:small-aligned"
guided = kad.load(base=small, aligned=small, base_prompt="plain", rule="experts:base=-0.5,aligned=1.5")
model = kad.KadForCausalLM.from_models("tiny:big-base", guided, rule="dual:threshold=0.4")
answer = kad.generate(model, "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?")
print(answer.text)
print(f"{answer.base_share:.0%} of it comes from the big base model")
