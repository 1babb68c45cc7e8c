"""What a pair costs on a GPU: composing, decoding eager and captured, vLLM. One command, a table and a JSON file.

    python -m benchmarks.gpu                          on a machine with a GPU of 80 GB
    python -m benchmarks.gpu --layers 8               models cut to 8 layers, for smaller cards
    python -m benchmarks.gpu --tiny                   very small models on any machine, to see that it runs
    python -m benchmarks.gpu --parts composing        one part: composing, decoding or serving

The models have the shapes of the published pairs and random weights, because speed does not ask what the weights say.
Acceptance does: under random weights p is flat and defers, so every draft is accepted. A window's time is measured; the
tokens per second for an acceptance beta follow from it by (1 - beta^(W+1)) / (1 - beta) tokens a window, and are
called modelled. *Ideal* is the time of the bare forward passes of a window: W drafts and one pass of p.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

import kad
from benchmarks.harness import alternate, medians, save
from benchmarks.rules import published
from kad.method.composition import Composition, composed
from kad.method.speculation.statistics import SpeculationStatistics

RULE = "dual:threshold=0.4"
CALLS = 10
PARTS = ("composing", "decoding", "serving")
_WAIT = "called a synchronizing CUDA operation|Implicit GPU<->CPU sync"
_OLMO = {"model_type": "olmo2", "vocab_size": 100_352, "max_position_embeddings": 4096}
_QWEN = {"model_type": "qwen3", "vocab_size": 151_936, "max_position_embeddings": 40_960, "head_dim": 128}
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "OLMo-2 13B + 1B": {
        "base": _OLMO | {"hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40,
                         "num_attention_heads": 40, "num_key_value_heads": 40},
        "aligned": _OLMO | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                            "num_attention_heads": 16, "num_key_value_heads": 16},
    },
    "Qwen3 14B + 1.7B": {
        "base": _QWEN | {"hidden_size": 5120, "intermediate_size": 17_408, "num_hidden_layers": 40,
                         "num_attention_heads": 40, "num_key_value_heads": 8},
        "aligned": _QWEN | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
                            "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True},
    },
}  # fmt: skip
_TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 32, "vocab_size": 768}  # fmt: skip


def configs(pair: str, layers: int | None, tiny: bool) -> dict[str, PretrainedConfig]:
    """The configurations of a pair by role."""
    found = {}
    for role, shape in SHAPES[pair].items():
        shape = shape | (_TINY if tiny else {})
        full = shape["num_hidden_layers"]
        depth = {"base": 3, "aligned": 1}[role] if tiny else min(layers or full, full)
        found[role] = AutoConfig.for_model(**(shape | {"num_hidden_layers": depth, "layer_types": None}))
        found[role].bos_token_id = found[role].eos_token_id = found[role].pad_token_id = None
    return found


def load(pair: str, layers: int | None, tiny: bool, device: torch.device) -> kad.KadForCausalLM:
    """A pair with random weights."""
    dtype, parts = torch.float32 if device.type == "cpu" else torch.bfloat16, {}
    for role, config in configs(pair, layers, tiny).items():
        with device:
            parts[role] = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model = kad.KadForCausalLM.from_models(**parts, rule=RULE)
    model.generation_config.pad_token_id = 0
    return model


def timed(runs: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each run, until the device has finished it."""

    def whole(run: Callable[[], object]) -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds = alternate({name: partial(whole, run) for name, run in runs.items()}, repeats)
    return {name: 1000 * value for name, value in medians(seconds).items()}


def composing(vocab: int, rows: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds of composing `rows` rows in bfloat16: the public function, the plain formulation, the published one.

    Many calls follow each other, so that the launches of one overlap the work of another, as in decoding. The floor
    reads two rows and writes one in float32, as composing must.
    """
    generator = torch.Generator().manual_seed(0)
    base, aligned = ((3 * torch.randn(rows, vocab, generator=generator)).bfloat16().to(device) for _ in range(2))
    out = torch.empty(rows, vocab, device=device)
    runs: dict[str, Callable[[], object]] = {"floor": lambda: torch.add(base, aligned, out=out)}
    for rule in (RULE, "primal"):
        runs[f"kad.compose {rule}"] = partial(kad.compose, rule, base, aligned, check=False)
        runs[f"plain {rule}"] = lambda rule=rule: composed(Composition(rule), base, aligned).log_pi()
    runs["published dual"] = lambda: published("dual", 0.4, base.float(), aligned.float())
    took = {
        name: value / CALLS
        for name, value in timed({n: _often(run) for n, run in runs.items()}, repeats, device).items()
    }
    return {"vocabulary": vocab, "rows": rows, "milliseconds": took,
            "floors": {name: value / took["floor"] for name, value in took.items()}}  # fmt: skip


def _often(run: Callable[[], object]) -> Callable[[], object]:
    def calls() -> None:
        for _ in range(CALLS):
            run()

    return calls


@torch.no_grad()
def ideal(model: kad.KadForCausalLM, ids: torch.Tensor, window: int, repeats: int, backend: bool | str) -> float:
    """Milliseconds of the bare forward passes of one window: `window` drafts, one pass of p over all of them."""
    roles, drafts = ("base", "aligned"), torch.zeros(window + 1, dtype=torch.long, device=ids.device)
    length = ids.shape[1]
    if backend:
        scorers = model.pair.captured_scorers(roles, "aligned", (window,), length + 64, backend)
    else:
        scorers = model.pair.scorers(roles)
    for scorer in scorers.values():
        scorer.advance(ids[0], 1)

    def run() -> None:
        for _ in range(max(window, 1)):
            scorers["aligned"].advance(drafts[:1], 1)
        scorers["base"].advance(drafts, window + 1)
        for scorer in scorers.values():
            scorer.rollback(length)

    took = timed({"window": run}, repeats, ids.device)["window"]
    for scorer in scorers.values():
        scorer.release()
    return took


def decoding(
    model: kad.KadForCausalLM, windows: list[int], new_tokens: int, repeats: int, backends: list[bool | str]
) -> list[dict[str, Any]]:
    """Plain (window 0) and speculative decoding, eager and captured, beside the bare forward passes."""
    ids = torch.randint(3, model.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0)).to(
        model.device
    )
    rows = []
    for window in windows:
        for backend in backends:
            statistics = SpeculationStatistics()
            run = partial(
                model.generate, ids, custom_generate=kad.speculative, num_draft_tokens=window, do_sample=True, top_k=0,
                max_new_tokens=new_tokens, compile=backend, statistics=statistics,
            )  # fmt: skip
            run()
            before = statistics.windows
            run()
            count = statistics.windows - before
            took = timed({"run": run}, repeats, ids.device)["run"] / count
            bare = ideal(model, ids, window, repeats, backend)
            rows.append({
                "window": window, "captured": bool(backend), "milliseconds": took, "ideal": bare,
                "efficiency": bare / took, "tokens_per_window": statistics.tokens / statistics.windows,
                "synchronisations": _synchronisations(run, count) if ids.is_cuda else None,
                "modelled_tokens_per_second": {
                    str(beta): 1000 / took * (1 - beta ** (window + 1)) / (1 - beta) for beta in (0.7, 0.8, 0.9)
                },
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _synchronisations(run: Callable[[], object], windows: int) -> float:
    """How often a window waits for the GPU, as PyTorch warns of it."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught) / windows


def serving(pair: str, layers: int | None, tiny: bool, batches: list[int]) -> dict[str, Any]:
    """vLLM: the parts alone, the pair plain and with a window of 4; each engine in a process of its own."""
    engines = {"base": ("base", 0), "pair": (".", 0), "pair, window 4": (".", 4), "aligned": ("aligned", 0)}
    found = {}
    with tempfile.TemporaryDirectory(prefix="kad-gpu-") as folder:
        write(Path(folder), pair, layers, tiny)
        for what, engine in engines.items():
            found[what] = served(Path(folder), *engine, batches)
            print(json.dumps({what: found[what]}), flush=True)
    return found


def write(folder: Path, pair: str, layers: int | None, tiny: bool) -> None:
    """The configurations of a pair and its parts, from which vLLM makes random weights."""
    for role, config in configs(pair, layers, tiny).items():
        config.architectures = [{"olmo2": "Olmo2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[config.model_type]]
        config.save_pretrained(folder / role)
    (folder / "config.json").write_text(json.dumps({
        "model_type": "kad", "architectures": ["KadForCausalLM"], "rule": RULE, "vocab_size": config.vocab_size,
        "base": {"model": str(folder / "base")}, "aligned": {"model": str(folder / "aligned")},
    }))  # fmt: skip


def served(folder: Path, model: str, window: int, batches: list[int]) -> Any:
    """Milliseconds a token by batch size, and how often vLLM saw a wait; or the last line of what went wrong."""
    command = [sys.executable, "-m", "benchmarks.gpu_serving", str(folder / model), str(folder / "aligned")]
    done = subprocess.run(
        [*command, str(window), *map(str, batches)], capture_output=True, text=True, check=False,
        env=os.environ | {"VLLM_GPU_SYNC_CHECK": "warn", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    )  # fmt: skip
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
    answer = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
    return json.loads(answer) | {"waits": len(re.findall(_WAIT, done.stderr))}


def tables(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = []
    if result["composing"]:
        names = list(result["composing"][0]["floors"])
        lines += ["", "| vocabulary | rows | " + " | ".join(names) + " |", "|---:" * (len(names) + 2) + "|"]
        for row in result["composing"]:
            cells = " | ".join(f"{row['milliseconds'][name]:.3f} ms ({row['floors'][name]:.1f})" for name in names)
            lines.append(f"| {row['vocabulary']:,} | {row['rows']} | {cells} |")
    for pair, rows in result["decoding"].items():
        lines += ["", f"**{pair}**", "", "| window | forwards | ms a window | ideal | efficiency | waits | tokens/s at "
                  "beta 0.7 / 0.8 / 0.9, modelled |", "|---:|---|---:|---:|---:|---:|---:|"]  # fmt: skip
        for row in rows:
            rates = " / ".join(f"{rate:.0f}" for rate in row["modelled_tokens_per_second"].values())
            waits = "" if row["synchronisations"] is None else f"{row['synchronisations']:.1f}"
            how = "captured" if row["captured"] else "eager"
            lines.append(f"| {row['window']} | {how} | {row['milliseconds']:.2f} | {row['ideal']:.2f} | "
                         f"{row['efficiency']:.2f} | {waits} | {rates} |")  # fmt: skip
    for pair, engines in result["serving"].items():
        lines += ["", f"**{pair}, vLLM**, ms a token by requests at once", ""]
        lines += [f"- {what}: {json.dumps(found)}" for what, found in engines.items()]
    return "\n".join(lines)


def measure(
    parts: list[str], pairs: list[str], layers: int | None, tiny: bool, repeats: int, backend: str, windows: list[int]
) -> dict[str, Any]:
    """All that was asked for."""
    device = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
    result: dict[str, Any] = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "tiny": tiny}
    grid = [(768, 2)] if tiny else [(v, n) for v in (100_352, 151_936) for n in (1, 8, 64, 256)]
    asked = grid if "composing" in parts else []
    result["composing"] = [composing(vocab, rows, repeats, device) for vocab, rows in asked]
    result["decoding"], result["serving"] = {}, {}
    for pair in pairs:
        if "decoding" in parts:
            model = load(pair, layers, tiny, device)
            result["decoding"][pair] = decoding(model, windows, 12 if tiny else 128, repeats, [False, backend])
            del model
        if "serving" in parts:
            result["serving"][pair] = serving(pair, layers, tiny, [1, 2] if tiny else [1, 8, 64, 256])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pairs", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--layers", type=int, help="cut the models to this depth")
    parser.add_argument("--windows", type=int, nargs="+", help="windows of drafts, 0 for plain decoding")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--backend", default="inductor", help="the backend of torch.compile")
    parser.add_argument("--tiny", action="store_true", help="very small models, on the CPU")
    options = parser.parse_args()
    windows = options.windows or ([0, 2] if options.tiny else [0, 2, 4, 8])
    result = measure(
        options.parts, options.pairs, options.layers, options.tiny, options.repeats, options.backend, windows
    )
    print(tables(result))
    print("\nwritten to", save("gpu-tiny" if options.tiny else "gpu", result))


if __name__ == "__main__":
    main()
