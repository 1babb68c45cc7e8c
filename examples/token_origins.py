"""Where each token of an answer comes from: which share of its probability is the base model's.

Under a cascade pi_v = k_v p_v + alpha q*_v. The first part comes from the base model, the second from the aligned one.
alpha is the deferred mass: what the base model hands over at this token.
"""

import kad

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"

model = kad.load("tiny", rule="dual:threshold=0.4")
for piece in kad.stream(model, QUESTION, sampling=kad.Sampling(temperature=0, max_new_tokens=80)):
    print(f"{piece.text!r:<12} from base {piece.base_share:4.2f}   deferred mass {piece.deferred_mass:4.2f}")
