"""Speculative decoding: q* drafts, one forward pass of p checks, and the text is exactly pi's."""

from transformers import AutoTokenizer

import kad
from kad.speculation import SpeculationStatistics

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"

model = kad.tiny.pair()
tokenizer = AutoTokenizer.from_pretrained(kad.tiny.path("pair"))

chat = [{"role": "system", "content": kad.tiny.SYSTEM_PROMPT}, {"role": "user", "content": QUESTION}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
statistics = SpeculationStatistics()
plain = model.generate(**inputs, do_sample=False, max_new_tokens=80)
fast = model.generate(
    **inputs,
    do_sample=False,
    max_new_tokens=80,
    custom_generate=kad.speculative,
    num_draft_tokens=6,
    statistics=statistics,
)
print(tokenizer.decode(fast[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
print(f"the same as without drafts: {plain.equal(fast)}")
print(f"{statistics.tokens} tokens from {statistics.windows} forward passes of the base model")
print(f"{statistics.accepted} of {statistics.drafted} drafts accepted ({statistics.acceptance_rate:.0%})")
