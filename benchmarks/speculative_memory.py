"""Peak memory of one speculative run above the models and their caches, at a vocabulary of 151,936 and window 8.

python -m benchmarks.speculative_memory

Each candidate runs in a process of its own, on models so narrow that next to everything beyond them is rows over the
vocabulary. The peak is that of the process (VmHWM, reset when the models stand and have run once).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import kad
from benchmarks.harness import save
from benchmarks.published import published

VOCAB, WINDOW, NEW_TOKENS = 151_936, 8, 24


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

    def run(tokens: int) -> None:
        torch.manual_seed(0)
        if candidate == "published":
            published(pair, ids, tokens, WINDOW)
        else:
            options = {"do_sample": True, "top_k": 0, "max_new_tokens": tokens, "pad_token_id": 0}
            if candidate == "kad":
                options |= {"custom_generate": kad.speculative, "num_draft_tokens": WINDOW}
            pair.generate(ids, **options)

    run(1)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run(NEW_TOKENS)
    return status("VmHWM") - before


def main() -> None:
    """All candidates, each in its own process."""
    if len(sys.argv) > 1:
        print(child(sys.argv[1]))
        return
    peaks = {}
    for candidate in ("plain", "kad", "published"):
        command = [sys.executable, "-m", "benchmarks.speculative_memory", candidate]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[candidate] = int(done.stdout.split()[-1])
    row = 4 * VOCAB
    result = {
        "vocab": VOCAB,
        "window": WINDOW,
        "peak_bytes": peaks,
        "peak_rows": {name: round(peak / row, 1) for name, peak in peaks.items()},
    }
    print(json.dumps(result, indent=1))
    save("speculative-memory", result)


if __name__ == "__main__":
    main()
