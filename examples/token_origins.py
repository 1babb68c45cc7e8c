"""Where each token of an answer comes from: which share of its probability is the base model's.

Under a cascade pi_v = k_v p_v + alpha q*_v. The first part comes from the base model, the second from the aligned one.
"""

import torch
from transformers import AutoTokenizer

import kad

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"

model = kad.tiny.pair(rule="dual:threshold=0.4")
tokenizer = AutoTokenizer.from_pretrained(kad.tiny.path("pair"))

chat = [{"role": "system", "content": kad.tiny.SYSTEM_PROMPT}, {"role": "user", "content": QUESTION}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
start = inputs["input_ids"].shape[1]
ids = model.generate(**inputs, do_sample=False, max_new_tokens=80)
with torch.inference_mode():
    p, q = model.base(ids).logits[0, start - 1 : -1], model.aligned(ids).logits[0, start - 1 : -1]
    from_base, _ = kad.origin_shares(model.rule, p, q)  # (tokens, vocabulary)
    alpha = kad.deferred_mass(model.rule, p, q)  # (tokens,)
written = ids[0, start:]
shares = from_base.gather(-1, written[:, None]).squeeze(-1)
for token, share, deferred in zip(written, shares, alpha, strict=True):
    print(f"{tokenizer.decode(token)!r:<12} from base {share:4.2f}   deferred mass {deferred:4.2f}")
