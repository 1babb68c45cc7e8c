"""What a pair costs in vLLM: base alone, aligned alone, pair plain, pair speculative, at several loads; alternating.

    .venv-vllm/bin/python -m benchmarks.serving [tiny | cost-shaped] [--concurrency 1 8 32] [--windows 2 4 8]

All engines live in this process and take turns, round by round, so that the machine's mood hits all alike. A run is
`concurrency` requests at once, each with its own prompt and a fixed number of new tokens, sampled at temperature 1.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import medians, save
from kad.references import resolve_pair

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0")

PROMPT_TOKENS = 48


def main() -> None:
    options = _parse()
    pair = resolve_pair("tiny") if options.pair == "tiny" else str(_cost_shaped())
    engines = {name: _engine(**settings) for name, settings in _candidates(pair, options.windows).items()}
    composing = _time_composition(engines["pair, plain"])
    rows = []
    for concurrency in options.concurrency:
        rows.append(measure(engines, composing, concurrency, options.tokens, options.repeats))
        print(json.dumps(rows[-1]), flush=True)
    print(save(f"serving-{options.pair}", {"pair": options.pair, "options": vars(options), "rows": rows}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pair", nargs="?", default="tiny", choices=("tiny", "cost-shaped"))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--tokens", type=int, default=64, help="new tokens per request")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def _candidates(pair: str, windows: list[int]) -> dict[str, dict[str, Any]]:
    from kad.config import KadConfig

    models = KadConfig.from_pretrained(pair).model_references()
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


def measure(
    engines: Mapping[str, Any], composing: Callable[[], float], concurrency: int, tokens: int, repeats: int
) -> dict[str, Any]:
    """One row: per candidate the median over the rounds of tokens per second and milliseconds per token and request."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    shares = []
    for round_ in range(repeats + 1):
        for name, engine in engines.items():
            composing()
            took = _run(engine, concurrency, tokens, seed=round_)
            if round_ == 0:
                continue  # warm-up
            seconds[name].append(took)
            if name == "pair, plain":
                shares.append(composing() / took)
    typical = medians(seconds)
    return {
        "concurrency": concurrency,
        "tokens_per_second": {name: round(concurrency * tokens / took, 1) for name, took in typical.items()},
        "milliseconds_per_token": {name: round(1000 * took / tokens, 2) for name, took in typical.items()},
        "plain_over_ideal": round((typical["base alone"] + typical["aligned alone"]) / typical["pair, plain"], 3),
        "composition_share_of_step": round(statistics.median(shares), 4),
    }


def _run(engine: Any, concurrency: int, tokens: int, seed: int) -> float:
    from vllm import SamplingParams

    prompts = [
        {"prompt_token_ids": [(7 * seed + 31 * request + 3 * i) % 500 + 5 for i in range(PROMPT_TOKENS)]}
        for request in range(concurrency)
    ]
    params = SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    start = time.process_time()
    engine.generate(prompts, params, use_tqdm=False)
    return time.process_time() - start


def _time_composition(engine: Any) -> Callable[[], float]:
    """Count the seconds the pair spends on composing logits; the callable returns them and starts anew."""
    spent = [0.0]

    def attach(model: Any) -> None:
        compose = model._compose

        def timed(*arguments: Any) -> Any:
            start = time.process_time()
            result = compose(*arguments)
            spent[0] += time.process_time() - start
            return result

        model._compose = timed

    engine.apply_model(attach)

    def take() -> float:
        taken, spent[0] = spent[0], 0.0
        return taken

    return take


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
