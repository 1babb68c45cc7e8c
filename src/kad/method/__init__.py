'''The method: rules, composition, verification and the speculative loop. It needs torch alone.

Reading a rule needs not even that (`rules/__init__.py`).

To read it takes an hour. Whoever knows speculative decoding needs no other room of kad. In this order:

`distribution.py`
    Rows of logits, normalized without reading a value. A row of p may have a rest: probability that no token of q*
    stands for. Normalizer, heads of long rows and bad rows: tests/test_distribution.py.
`rules/threshold.py`
    Which tokens of p are kept. Every threshold rule is one closed form, so a rule is five numbers. Each rule against
    its definition in float64: tests/test_rules.py; another rule in every row: tests/test_row_rules.py.
`composed.py`
    pi = k p + alpha q*, or a product, in one formulation for every device. Against the oracle, with and without a rest,
    and its gradients: tests/test_composition.py.
`composition.py`
    The functions for users: log pi, deferred mass, acceptance, origin, and the errors in words. Identities between
    them, and what a deferral temperature does: tests/test_composition.py.
`verification.py`
    Which drafts stand, token by token and as a block, and what follows them. Ratio, excess and residual by their
    definitions, the block verifier by enumeration: tests/test_verification.py.
`scorer.py`
    What the loop asks of a model: read tokens, answer with logits, forget. `replay.py` is for models that cannot
    forget: tests/test_replay.py.
`speculation/policies.py`
    The answers to the loop's three questions: what to draft, which drafts stand, what an open position gets. Everything
    stays on the device; a window is read in one transfer: tests/test_verification.py, tests/test_speculative.py.
`speculation/loop.py`
    Settle, draft, verify, commit. The text follows pi exactly, for every rule, window and warper: all random outcomes
    of the real loop are enumerated in tests/test_speculative_exact.py, which also breaks the loop and sees it.

Beside it: `speculation/windows.py` (how many tokens to draft: tests/test_speculative_windows.py), `knapsack.py` (the
optimization problem that the rules approximate, with proofs of optimality: tests/test_knapsack.py) and `kernels/` (log
pi of threshold rules in one launch on a GPU, against the plain formulation: tests/test_kernels.py).

In an engine of your own: implement `Scorer`, make a policy, run the loop. Here a model is a table (tests/test_method.py
runs this, and checks the distribution of its texts by hand):

    import torch
    from kad.method.composition import Composition
    from kad.method.speculation.loop import SpeculativeLoop
    from kad.method.speculation.policies import SampledPolicy
    from kad.method.speculation.randomness import TorchRandomness
    from kad.method.speculation.windows import FixedWindow
    from kad.method.verification import verify_block

    class Table:
        """After token i, the logits are row i. A real model has a cache, which `rollback` cuts."""

        processed, reversible = 0, True

        def __init__(self, logits):
            self.logits = logits

        def advance(self, ids, keep):
            self.processed += len(ids)
            return self.logits[ids[-keep:]]

        def rollback(self, length):
            self.processed = min(self.processed, length)

        def release(self):
            """Nothing to give back."""

    def generate(scorers, prompt, count, randomness):
        policy = SampledPolicy(composition=Composition("dual:threshold=0.4"), drafter="aligned",
                               verifier=verify_block, randomness=randomness)
        loop = SpeculativeLoop(ids=torch.cat((prompt, prompt.new_zeros(count))), length=len(prompt),
                               drafter="aligned", scorers=scorers, policy=policy, window=FixedWindow(3),
                               stop=lambda ids, new: (len(new), False))
        return [emitted.token for window in loop.run() for emitted in window]

    p, q = torch.randn(2, 5, 5)
    generate({"base": Table(p), "aligned": Table(q)}, torch.tensor([0]), 20, TorchRandomness(seed=0))
'''
