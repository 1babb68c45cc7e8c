"""Speculative decoding against plain decoding, Transformers' assisted decoding and the published loop, in one run.

python -m benchmarks.speculative --pair tiny
python -m benchmarks.speculative --pair cost-shaped --windows 2,4,8

(a) the base model alone; (b) the composed model, plain; (c) with `assistant_model=`; (d) kad.speculative; (e) the
published loop. All sample at temperature 1 from the same prompts and take turns, so the machine's mood hits all alike.
Efficiency is the measured speed-up over (b) divided by the ideal one: expected tokens per window for the measured
beta, over the time of the window's forwards as measured in the same run, nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AutoTokenizer

import kad
from benchmarks.harness import save
from benchmarks.published import published
from kad.engines.transformers.host import CACHE
from kad.method.speculation.statistics import SpeculationStatistics

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
QUESTIONS = (
    "Mia has 24 apples. She buys 13 more. How many apples does she have now?",
    "Tom has 61 coins. He spends 17. How many coins are left?",
    "Ann reads 12 pages a day. How many pages does she read in 5 days?",
    "There are 48 cups in 6 equal boxes. How many cups are in each box?",
)
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def load(name: str, rule: str, dtype: str, device: str) -> tuple[kad.KadForCausalLM, list[torch.Tensor]]:
    """The composed model and the prompts (1, n)."""
    if name == "tiny":
        model, folder = kad.tiny.pair(rule=rule), kad.tiny.path("pair")
        model = model.to(getattr(torch, dtype)).to(device)
    else:
        from benchmarks.pairs import cost_shaped

        base, folder = cost_shaped()
        model = kad.KadForCausalLM.from_models(str(base), str(folder), rule=rule, dtype=dtype).to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.generation_config.eos_token_id = None
    model.aligned.generation_config.eos_token_id = None
    model.base.generation_config.eos_token_id = None
    return model, [_prompt(tokenizer, question).to(device) for question in QUESTIONS]


def _prompt(tokenizer: Any, question: str) -> torch.Tensor:
    chat = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]


def candidates(
    model: kad.KadForCausalLM, windows: list[int], new_tokens: int, pad: int
) -> tuple[dict[str, Callable[[torch.Tensor], object]], dict[str, SpeculationStatistics]]:
    """Everything that is timed, by name, and the statistics that the runs of (d) fill."""
    options = {"max_new_tokens": new_tokens, "pad_token_id": pad, **SAMPLING}
    found: dict[str, Callable[[torch.Tensor], object]] = {
        "base": partial(_generate, model.base, options),
        "plain": partial(_generate, model, options),
    }
    counts = {}
    for window in [*windows, "auto"]:
        counts[f"kad {window}"] = SpeculationStatistics()
        speculation = {
            "custom_generate": kad.speculative, "num_draft_tokens": window, "statistics": counts[f"kad {window}"]
        }  # fmt: skip
        found[f"kad {window}"] = partial(_generate, model, options | speculation)
    for window in windows:
        found[f"published {window}"] = partial(_published, model, new_tokens, window)
        found[f"assisted {window}"] = partial(_assisted, model, options, window)
    return found, counts


def _generate(model: Any, options: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def _published(model: kad.KadForCausalLM, new_tokens: int, window: int, ids: torch.Tensor) -> torch.Tensor:
    return published(model, ids, new_tokens, window)


def _assisted(model: kad.KadForCausalLM, options: dict[str, Any], window: int, ids: torch.Tensor) -> torch.Tensor:
    config = model.aligned.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = window, "constant"
    config.assistant_confidence_threshold = 0.0
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, assistant_model=model.aligned, **options)


class Forwards:
    """The models' bare forwards at the run's middle length: what the ideal is computed from."""

    def __init__(self, model: kad.KadForCausalLM, length: int, windows: list[int]) -> None:
        self._model, self._cache = model, model.make_cache()
        device = model.base.device
        self._ids = torch.randint(3, model.config.vocab_size, (1, length), device=device)
        for role, part in self._cache.parts.items():
            model.parts[role](self._ids, logits_to_keep=1, **{CACHE: part})
        self.sizes = {"aligned": [1], "base": [1, *(window + 1 for window in windows)]}

    @torch.no_grad()
    def run(self, role: str, size: int) -> None:
        """One forward of `size` tokens, taken back."""
        cache = self._cache.parts[role]
        self._model.parts[role](self._ids[:, :size], **{CACHE: cache})
        cache.crop(-size)


def measure(arguments: argparse.Namespace, windows: list[int]) -> dict[str, Any]:
    """Time everything in turn; medians, speeds, ratios, efficiency."""
    clock = CLOCKS[arguments.clock]
    model, prompts = load(arguments.pair, arguments.rule, arguments.dtype, arguments.device)
    pad = model.generation_config.pad_token_id or 0
    runs, counts = candidates(model, windows, arguments.new_tokens, pad)
    forwards = Forwards(model, prompts[0].shape[1] + arguments.new_tokens // 2, windows)
    bare = {(role, size): partial(forwards.run, role, size) for role in forwards.sizes for size in forwards.sizes[role]}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    bare_seconds: dict[tuple[str, int], list[float]] = {key: [] for key in bare}

    def timed(run: Callable[[], object], into: list[float]) -> None:
        start = clock()
        run()
        if model.base.device.type == "cuda":
            torch.cuda.synchronize()
        into.append(clock() - start)

    for _ in range(arguments.warm_up):
        for run in runs.values():
            run(prompts[0])
    for statistic in counts.values():
        statistic.__init__()
    for repeat in range(arguments.repeats):
        ids = prompts[repeat % len(prompts)]
        for name, run in runs.items():
            torch.manual_seed(repeat)
            timed(partial(run, ids), seconds[name])
        for key, forward in bare.items():
            for _ in range(4):
                timed(forward, bare_seconds[key])
        forward_seconds = {key: statistics.median(values) for key, values in bare_seconds.items()}
        result = report(arguments, windows, seconds, forward_seconds, counts) | {"repeats_done": repeat + 1}
        if arguments.save:
            save(arguments.save, result)
    return result


def report(
    arguments: argparse.Namespace,
    windows: list[int],
    seconds: dict[str, list[float]],
    forward: dict[tuple[str, int], float],
    counts: dict[str, SpeculationStatistics],
) -> dict[str, Any]:
    """Tokens per second by candidate; for each window the ratios and the efficiency."""
    speed = {name: arguments.new_tokens / statistics.mean(values) for name, values in seconds.items()}
    plain_step = forward["aligned", 1] + forward["base", 1]
    rows = {}
    for window in windows:
        name, beta = f"kad {window}", counts[f"kad {window}"].beta or 0.0
        expected = sum(beta**i for i in range(window + 1))
        ideal = expected * plain_step / (window * forward["aligned", 1] + forward["base", window + 1])
        rows[str(window)] = {
            "tokens_per_second": speed[name],
            "speed_up": speed[name] / speed["plain"],
            "ideal_speed_up": ideal,
            "efficiency": speed[name] / speed["plain"] / ideal,
            "over_published": speed[name] / speed[f"published {window}"],
            "over_assisted": speed[name] / speed[f"assisted {window}"],
            "beta": beta,
            "statistics": counts[name].to_dict(),
        }
    return {
        "settings": vars(arguments) | {"threads": torch.get_num_threads()},
        "tokens_per_second": speed,
        "forward_milliseconds": {f"{role} {size}": 1e3 * value for (role, size), value in forward.items()},
        "windows": rows,
        "auto": {"tokens_per_second": speed["kad auto"], "statistics": counts["kad auto"].to_dict()},
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    speed = result["tokens_per_second"]
    lines = [
        "| window | kad | assisted | published | × plain | ideal | efficiency | × published | × assisted | β |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for window, row in result["windows"].items():
        lines.append(
            f"| {window} | {row['tokens_per_second']:.1f} | {speed[f'assisted {window}']:.1f} "
            f"| {speed[f'published {window}']:.1f} | {row['speed_up']:.2f} | {row['ideal_speed_up']:.2f} "
            f"| {row['efficiency']:.2f} | {row['over_published']:.2f} | {row['over_assisted']:.2f} "
            f"| {row['beta']:.2f} |"
        )
    lines.append(f"| auto | {speed['kad auto']:.1f} | | | {speed['kad auto'] / speed['plain']:.2f} | | | | | |")
    return "\n".join([f"base alone {speed['base']:.1f} tok/s, composed plain {speed['plain']:.1f} tok/s", "", *lines])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=("tiny", "cost-shaped"), default="tiny")
    parser.add_argument("--rule", default="dual:threshold=0.4")
    parser.add_argument("--windows", default="1,2,4,8,12")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for a machine that is not idle")
    parser.add_argument("--save", default=None, metavar="NAME", help="write results/NAME.json")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    result = measure(arguments, [int(window) for window in arguments.windows.split(",")])
    print(table(result))


if __name__ == "__main__":
    main()
