"""What a pair costs in vLLM: base alone, aligned alone, pair plain, pair speculative, at several loads; alternating.

    .venv-vllm/bin/python -m benchmarks.serving [tiny | cost-shaped] [--concurrency 1 8 32] [--windows 2 4 8]

All engines live in this process and take turns, round by round, so that the machine's mood hits all alike. A run is
`concurrency` requests at once over the questions of benchmarks.speculative, a fixed number of new tokens each, sampled
at temperature 1. Tokens per window say what speculation had to work with: drafts of nonsense would not be accepted.
vLLM's own benchmark client is not used: it measures one server after the other. Times are seconds of this process's one
thread, not of the clock, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import medians, save
from benchmarks.speculative import QUESTIONS
from kad.pair.sources import resolve_pair

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0")

WARM_UP_TOKENS = 8


def main() -> None:
    options = _parse()
    pair = resolve_pair("tiny") if options.pair == "tiny" else str(_cost_shaped())
    engines = {name: _engine(**settings) for name, settings in _candidates(pair, options.windows).items()}
    composing = {name: Composing(engine) for name, engine in engines.items() if name.startswith("pair")}
    prompts = _prompts(pair)
    rows = []
    for concurrency in options.concurrency:
        rows.append(measure(engines, composing, prompts, concurrency, options.tokens, options.repeats))
        print(json.dumps(rows[-1]), flush=True)
    print(save(f"serving-{options.pair}", {"pair": options.pair, "options": vars(options), "rows": rows}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pair", nargs="?", default="tiny", choices=("tiny", "cost-shaped"))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--tokens", type=int, default=32, help="new tokens per request")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def _candidates(pair: str, windows: list[int]) -> dict[str, dict[str, Any]]:
    from kad.pair.config import KadConfig

    models = KadConfig.from_pretrained(pair).model_sources()
    aligned = models["aligned"].model
    candidates: dict[str, dict[str, Any]] = {
        "base alone": {"model": models["base"].model},
        "aligned alone": {"model": aligned},
        "pair, plain": {"model": pair},
    }
    for window in windows:
        draft = {
            "method": "draft_model",
            "model": aligned,
            "num_speculative_tokens": window,
            "draft_sample_method": "probabilistic",
        }
        candidates[f"pair, window {window}"] = {"model": pair, "speculative_config": draft}
    return candidates


def _engine(**settings: Any) -> Any:
    from vllm import LLM

    return LLM(
        **settings,
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=32,
        enforce_eager=True,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=256 << 20,
        seed=0,
    )


def _prompts(pair: str) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]


class Composing:
    """What a pair spends on composing logits: seconds and rows since the last `reset`."""

    def __init__(self, engine: Any) -> None:
        self.reset()
        engine.apply_model(self._attach)

    def reset(self) -> None:
        self.seconds, self.rows = 0.0, 0

    def _attach(self, model: Any) -> None:
        compose = model._compose

        def timed(logits: Any, columns: Any) -> Any:
            start = time.process_time()
            result = compose(logits, columns)
            self.seconds += time.process_time() - start
            self.rows += len(columns)
            return result

        model._compose = timed


def measure(
    engines: Mapping[str, Any],
    composing: Mapping[str, Composing],
    prompts: list[list[int]],
    concurrency: int,
    tokens: int,
    repeats: int,
) -> dict[str, Any]:
    """One row: per candidate the median over the rounds of tokens per second and milliseconds per token and request."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    shares, rows = [], dict.fromkeys(composing, 0)
    for round_ in range(repeats + 1):
        for name, engine in engines.items():
            if name in composing:
                composing[name].reset()
            asked = [prompts[(round_ + i) % len(prompts)] for i in range(concurrency)]
            took = _run(engine, asked, tokens if round_ else WARM_UP_TOKENS)
            if round_ == 0:
                continue
            seconds[name].append(took)
            if name in composing:
                rows[name] += composing[name].rows
            if name == "pair, plain":
                shares.append(composing[name].seconds / took)
    typical = medians(seconds)
    runs = concurrency * repeats
    return {
        "concurrency": concurrency,
        "tokens_per_second": {name: round(concurrency * tokens / took, 1) for name, took in typical.items()},
        "milliseconds_per_token": {name: round(1000 * took / tokens, 2) for name, took in typical.items()},
        "tokens_per_window": {
            # The first token of a request comes from the prompt's one row, the others from windows of drafts and one.
            name: round(runs * (tokens - 1) / ((count - runs) / (int(name.split()[-1]) + 1)), 2)
            for name, count in rows.items()
            if "window" in name
        },
        "plain_over_ideal": round((typical["base alone"] + typical["aligned alone"]) / typical["pair, plain"], 3),
        "composition_share_of_step": round(statistics.median(shares), 4),
    }


def _run(engine: Any, prompts: list[list[int]], tokens: int) -> float:
    from vllm import SamplingParams

    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    params = SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    start = time.process_time()
    engine.generate(asked, params, use_tqdm=False)
    return time.process_time() - start


def _cost_shaped() -> Path:
    """A pair folder over the two models of benchmarks.pairs: a real vocabulary, a base three times as dear."""
    from transformers import AutoTokenizer

    from benchmarks.pairs import cost_shaped

    base, aligned = cost_shaped()
    folder = Path(tempfile.mkdtemp(prefix="kad-cost-shaped-"))
    AutoTokenizer.from_pretrained(aligned).save_pretrained(folder)
    pair = {
        "model_type": "kad",
        "architectures": ["KadForCausalLM"],
        "base": {"model": str(base)},
        "aligned": {"model": str(aligned)},
        "rule": "dual:threshold=0.4",
    }
    (folder / "config.json").write_text(json.dumps(pair))
    return folder


if __name__ == "__main__":
    main()
