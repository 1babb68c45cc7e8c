"""Many prompts at once: a pair is an ordinary Transformers model, so this is the usual batch padded on the left."""

from transformers import AutoTokenizer

import kad

model = kad.tiny.pair()
tokenizer = AutoTokenizer.from_pretrained(kad.tiny.path("pair"), padding_side="left")

problems = kad.tiny.problems("held-out", 8)
inputs = tokenizer.apply_chat_template(
    [problem.messages() for problem in problems],
    add_generation_prompt=True,
    padding=True,
    return_tensors="pt",
    return_dict=True,
)
ids = model.generate(**inputs, do_sample=False, max_new_tokens=100)
answers = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
for problem, answer in zip(problems, answers, strict=True):
    print(problem.question)
    print("   ", answer.replace("\n", " "), "(right)" if problem.is_correct(answer) else "(wrong)")
