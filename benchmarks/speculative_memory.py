"""Peak memory of one speculative run above the models and their caches, at a vocabulary of 151,936 and window 8.

python -m benchmarks.speculative_memory

Each candidate runs in processes of its own, on models so narrow that next to everything beyond them is rows over the
vocabulary. The peak is that of the process (VmHWM), reset when the models stand and have run the same text once. glibc
gives every freed block of 64 KB or more back at once, so that it is a peak of what is alive and not of what an
allocator keeps for later.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import kad
from benchmarks.harness import save
from benchmarks.published import published

VOCAB, WINDOW, NEW_TOKENS, RUNS = 151_936, 8, 24, 3
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def model(seed: int) -> LlamaForCausalLM:
    """A model of one narrow layer over the whole vocabulary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def status(key: str) -> int:
    """Bytes under `key` in this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise KeyError(key)


def child(candidate: str) -> int:
    """The peak of one candidate, in bytes above what stood before it."""
    pair = kad.KadForCausalLM.from_models(model(0), model(1), rule="dual:threshold=0.4")
    pair.generation_config.eos_token_id, ids = None, torch.arange(3, 13).unsqueeze(0)

    def run() -> None:
        torch.manual_seed(0)
        if candidate == "published":
            published(pair, ids, NEW_TOKENS, WINDOW)
        else:
            options = {"do_sample": True, "top_k": 0, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
            if candidate == "kad":
                options |= {"custom_generate": kad.speculative, "num_draft_tokens": WINDOW}
            pair.generate(ids, **options)

    run()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def measured(candidate: str) -> int:
    """The peak of one candidate in a new process."""
    command = [sys.executable, "-m", "benchmarks.speculative_memory", candidate]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | _GIVE_BACK)
    return int(done.stdout.split()[-1])


def main() -> None:
    """All candidates, several times in turn."""
    if len(sys.argv) > 1:
        print(child(sys.argv[1]))
        return
    peaks: dict[str, list[int]] = {"plain": [], "kad": [], "published": []}
    for _ in range(RUNS):
        for candidate, seen in peaks.items():
            seen.append(measured(candidate))
    result = {
        "vocab": VOCAB,
        "window": WINDOW,
        "peak_bytes": peaks,
        "peak_rows": {name: round(median(seen) / (4 * VOCAB), 1) for name, seen in peaks.items()},
    }
    print(json.dumps(result, indent=1))
    save("speculative-memory", result)


if __name__ == "__main__":
    main()
