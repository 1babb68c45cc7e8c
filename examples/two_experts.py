"""Two experts and a general model: a pair of the experts stands in the place of the small aligned model.

The experts answer half and half. The general model keeps what it is sure of. The trace says which of the three wrote
each token.
"""

import kad

experts = kad.load(base="tiny:small-aligned", aligned="tiny:big-aligned", rule="mixture:weight=0.5")
model = kad.KadForCausalLM.from_models("tiny:big-base", experts, rule="dual:threshold=0.4")
trace = kad.trace(model, "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?")
print(trace.text)
for path in ("base", "aligned.base", "aligned.aligned"):
    print(f"{sum(position.leaves[path] for position in trace.positions) / len(trace.positions):.0%} from {path}")
