"""Proxy tuning: add to the big base model what alignment changed in a small one, pi ∝ p q*/q.

This needs a third model: the reference q, the small model before it was aligned. The same three models can be composed
by a cascade too, which does not read q.
"""

import kad

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"

model = kad.load(base="tiny:big-base", aligned="tiny:small-aligned", reference="tiny:small-base")
for rule in ("implicit_reward", "product:base=1,aligned=0.5", "dual:threshold=0.4"):
    answer = kad.generate(model, QUESTION, rule=rule, sampling=kad.Sampling(temperature=0, max_new_tokens=80))
    print(f"{rule:<27}", answer.text)
