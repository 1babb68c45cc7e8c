"""A product of three models, pi ∝ p^0.5 q1^0.5 q2: a product of a product and a model."""

import kad

two = kad.load(base="tiny:big-base", aligned="tiny:small-aligned", rule="experts:base=0.5,aligned=0.5")
model = kad.KadForCausalLM.from_models(two, "tiny:big-aligned", rule="experts:base=1,aligned=1")
answer = kad.generate(model, "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?")
print(answer.text)
