"""Proxy tuning: add to the big base model what alignment changed in a small one, pi ∝ p q*/q.

This needs a third model: the reference q, the small model before it was aligned. The same three models can be composed
by a cascade too, which does not read q.
"""

from transformers import AutoTokenizer

import kad

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"

tokenizer = AutoTokenizer.from_pretrained(kad.tiny.path("small-aligned"))
model = kad.KadForCausalLM.from_models(
    kad.tiny.path("big-base"),
    kad.tiny.path("small-aligned"),
    reference=kad.tiny.path("small-base"),
    rule="implicit_reward",
)

chat = [{"role": "system", "content": kad.tiny.SYSTEM_PROMPT}, {"role": "user", "content": QUESTION}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
start = inputs["input_ids"].shape[1]
for rule in ("implicit_reward", "product:base=1,aligned=0.5", "dual:threshold=0.4"):
    ids = model.generate(**inputs, rule=rule, do_sample=False, max_new_tokens=80)
    print(f"{rule:<27}", tokenizer.decode(ids[0, start:], skip_special_tokens=True).replace("\n", " "))
