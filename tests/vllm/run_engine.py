"""Run one vLLM engine over batches of requests: a job as JSON on standard input, results as JSON in a file.

An engine has a process to itself, so that none inherits another's state. Usage: python run_engine.py RESULT < JOB

Job: {"engine": {arguments of vllm.LLM}, "batches": [[{"prompt_token_ids" or "prompt": ..., "params": {...}}, ...]]}.
Each batch is run to its end before the next starts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    Path(sys.argv[1]).write_text(json.dumps(run(json.load(sys.stdin))))


def run(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM

    llm = LLM(**job["engine"])
    results = [run_batch(llm, batch) for batch in job["batches"]]
    counters = {m.name: m.value for m in llm.get_metrics() if hasattr(m, "value")} if llm.llm_engine.log_stats else {}
    return {"batches": results, "counters": counters}


def run_batch(llm: Any, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from vllm import SamplingParams

    prompts = [{key: request[key] for key in ("prompt", "prompt_token_ids") if key in request} for request in batch]
    params = [SamplingParams(**request["params"]) for request in batch]
    return [
        {
            "prompt_logprobs": _plain(answer.prompt_logprobs),
            "cached": answer.num_cached_tokens,
            "outputs": [
                {
                    "token_ids": list(o.token_ids),
                    "text": o.text,
                    "finish_reason": o.finish_reason,
                    "logprobs": _plain(o.logprobs),
                }
                for o in answer.outputs
            ],
        }
        for answer in llm.generate(prompts, params, use_tqdm=False)
    ]


def _plain(positions: Any) -> list[dict[str, float] | None] | None:
    if positions is None:
        return None
    return [p and {str(token): entry.logprob for token, entry in p.items()} for p in positions]


if __name__ == "__main__":
    main()
