"""Ask a served pair through the `openai` client, with a rule for one request.

In one terminal:  kad serve tiny --port 8000      (needs pip install "kad-align[server]", or [vllm])
In another:       pip install openai && python examples/openai_client.py
"""

import os

from openai import OpenAI

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"), api_key="none")
model = client.models.list().data[0].id
for rule in (None, "base_only"):
    answer = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": "Answer the question by walking through the reasoning step by step."},
            {"role": "user", "content": QUESTION},
        ],
        temperature=0,
        max_tokens=80,
        extra_body={} if rule is None else {"vllm_xargs": {"rule": rule}},
    )
    print(f"{rule or 'the rule of the pair'}: {answer.choices[0].message.content}")
