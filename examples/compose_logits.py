"""Compose the logits of two models by hand: kad.compose needs tensors and nothing else.

The loop is greedy decoding. At each step both models score the same text, and the composed distribution decides.
"""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import kad

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"

tokenizer = AutoTokenizer.from_pretrained(kad.tiny.path("small-aligned"))
base = AutoModelForCausalLM.from_pretrained(kad.tiny.path("big-base"))
aligned = AutoModelForCausalLM.from_pretrained(kad.tiny.path("small-aligned"))
rule = kad.parse_rule("dual:threshold=0.4")

chat = [{"role": "system", "content": kad.tiny.SYSTEM_PROMPT}, {"role": "user", "content": QUESTION}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
    "input_ids"
]
start = ids.shape[1]
with torch.inference_mode():
    for _ in range(80):
        p, q = base(ids).logits[:, -1], aligned(ids).logits[:, -1]  # (1, vocabulary) each
        log_pi = kad.compose(rule, p, q)  # log-probabilities, (1, vocabulary)
        token = log_pi.argmax(dim=-1, keepdim=True)
        if token == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token], dim=1)
print(tokenizer.decode(ids[0, start:]))
