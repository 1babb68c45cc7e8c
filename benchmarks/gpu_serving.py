"""One vLLM engine with random weights: milliseconds a step by batch size, as JSON. `benchmarks.gpu` starts it.

python -m benchmarks.gpu_serving MODEL DRAFT WINDOW BATCH...
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

TOKENS = 32


def main(model: str, draft: str, window: int, batches: list[int]) -> None:
    from vllm import LLM, SamplingParams

    options: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "dtype": "float32"}
    if torch.cuda.is_available():
        options = {"dtype": "bfloat16"}
    if window:
        options["speculative_config"] = {
            "method": "draft_model", "model": draft, "num_speculative_tokens": window,
            "draft_sample_method": "probabilistic",
        }  # fmt: skip
    engine = LLM(model=model, load_format="dummy", skip_tokenizer_init=True, max_model_len=512,
                 max_num_seqs=max(batches), enable_prefix_caching=False, seed=0, **options)  # fmt: skip
    params = SamplingParams(temperature=1.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    found = {}
    for batch in batches:
        prompts = [{"prompt_token_ids": [3 + (7 * i + j) % 500 for j in range(32)]} for i in range(batch)]
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            engine.generate(prompts, params, use_tqdm=False)
            seconds.append(time.perf_counter() - start)
        found[str(batch)] = round(1000 * min(seconds) / TOKENS, 3)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(batch) for batch in sys.argv[4:]])
