"""Tokens a second of each engine on one pair, beside what the engine's bare forward passes would allow.

    python -m benchmarks.engines                       SmolLM2, and itself with copies of its layers
    python -m benchmarks.engines --base BIG.gguf --aligned SMALL.gguf

The pair: q* is SmolLM2-135M-Instruct as its package has it (Q4_1); p is the same with three times its layers, the
copies of no effect, so every draft is accepted. `ideal` is made of bare forward passes: 1 / (t_p + t_q) tokens a second
for plain decoding, and for drafts the tokens of a window over the time of its forward passes. The engines alternate.
Beside them: what bare llama.cpp gains if it reads one token of each of four texts at once, and the memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import kad
from benchmarks import harness, smollm2
from kad.engines.llama_cpp.host import library
from kad.engines.llama_cpp.model import LlamaCppModel, _Batch
from kad.engines.pair import pair_of

if TYPE_CHECKING:
    from kad.engines.load import Loaded

QUESTIONS = ("Write a short poem about the sea.", "How do plants make sugar?")
# One thread: its processor time is the wall time of a quiet machine, and on a busy machine it still means something.
CLOCK = time.process_time
DRAFTS = 4
COPIES = 2
# Forward passes by name: the model, and how many tokens it reads, all rows wanted.
PASSES = {"p": ("base", 1), "q": ("aligned", 1), "p_window": ("base", DRAFTS + 1)}
TEXTS = 4


def deeper(source: Path, file: Path, copies: int = COPIES) -> Path:
    """A GGUF file with `copies` idle layers after each layer: their output projections are zero."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(source)
    writer = GGUFWriter(file, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value: Any = field.contents()
        if name.endswith(".block_count"):
            value *= copies + 1
        kinds = field.types
        writer.add_key_value(name, value, kinds[0], kinds[-1] if kinds[0] == GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        if not tensor.name.startswith("blk."):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        _, layer, rest = tensor.name.split(".", 2)
        for copy in range(copies + 1):
            idle = copy > 0 and rest in ("attn_output.weight", "ffn_down.weight")
            data = tensor.data * 0 if idle else tensor.data
            name = f"blk.{int(layer) * (copies + 1) + copy}.{rest}"
            writer.add_tensor(name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@torch.no_grad()
def bare(model: Loaded, repeats: int = 7, prefix: int = 40) -> dict[str, float]:
    """The median seconds of the `PASSES` behind a prefix, in turn: as in decoding, no model is alone in the caches."""
    scorers = pair_of(model).scorers(("base", "aligned"))
    ids = torch.randint(1000, 40_000, (prefix + DRAFTS + 1,), generator=torch.Generator().manual_seed(0))
    for scorer in scorers.values():
        scorer.advance(ids[:prefix], 1)
    seconds: dict[str, list[float]] = {name: [] for name in PASSES}
    for _ in range(repeats):
        for name, (role, read) in PASSES.items():
            started = CLOCK()
            scorers[role].advance(ids[prefix : prefix + read], read)
            seconds[name].append(CLOCK() - started)
            scorers[role].rollback(prefix)
    return {name: statistics.median(found) for name, found in seconds.items()}


def several_texts(file: Path, repeats: int = 15, prefix: int = 40) -> dict[str, float]:
    """The median milliseconds in which bare llama.cpp reads a token of each of `TEXTS` texts: at once, and in turn."""
    model, lib = LlamaCppModel(file), library()
    params = model._context_params()
    params.n_seq_max = TEXTS
    context = lib.llama_init_from_model(model._model, params)
    batch = _Batch(lib, TEXTS * prefix)

    def read(place: int, count: int, texts: list[int]) -> float:
        """Seconds to read `count` tokens of each of some texts, from a place on; one row of logits each."""
        raw = batch.raw
        raw.n_tokens = count * len(texts)
        for index, text in enumerate(text for text in texts for _ in range(count)):
            raw.token[index], raw.pos[index] = 1000 + 17 * index, place + index % count
            raw.seq_id[index][0], raw.logits[index] = text, index % count == count - 1
        started = CLOCK()
        assert lib.llama_decode(context, raw) == 0
        return CLOCK() - started

    texts = list(range(TEXTS))
    read(0, prefix, texts)
    found: dict[str, list[float]] = {"at_once": [], "in_turn": []}
    for place in range(prefix, prefix + 2 * repeats, 2):
        found["at_once"].append(read(place, 1, texts))
        found["in_turn"].append(sum(read(place + 1, 1, [text]) for text in texts))
    lib.llama_free(context)
    return {f"milliseconds_{name}": 1000 * statistics.median(seconds) for name, seconds in found.items()}


def decode(model: Loaded, question: str, drafts: int, tokens: int) -> tuple[float, int]:
    """Seconds and windows of an answer of exactly so many tokens."""
    how = kad.Sampling(temperature=0, max_new_tokens=tokens)
    started = CLOCK()
    answer = kad.generate(model, question, sampling=how, num_draft_tokens=drafts, origins=False)
    assert len(answer.token_ids) == tokens
    return CLOCK() - started, tokens if answer.statistics is None else answer.statistics.windows


def rates(model: Loaded, drafts: int, tokens: int) -> tuple[list[float], float]:
    """Tokens a second of each question, and tokens a window; both from the later tokens of the answers."""
    found, windows = [], 0
    few = DRAFTS + 1
    for question in QUESTIONS:
        (short, first), (long, all_) = (decode(model, question, drafts, count) for count in (few, tokens))
        found.append((tokens - few) / (long - short))
        windows += all_ - first
    return found, len(QUESTIONS) * (tokens - few) / windows


def measure(models: dict[str, Loaded], tokens: int, rounds: int) -> dict[str, Any]:
    """Everything about the engines, in turn."""
    found: dict[str, dict[str, list[float]]] = {name: {"plain": [], "drafts": []} for name in models}
    passes: dict[str, dict[str, list[float]]] = {name: {each: [] for each in PASSES} for name in models}
    lengths: dict[str, float] = {}
    for _ in range(rounds):
        for name, model in models.items():
            for each, seconds in bare(model).items():
                passes[name][each].append(seconds)
            found[name]["plain"] += rates(model, 0, tokens)[0]
            speeds, lengths[name] = rates(model, DRAFTS, tokens)
            found[name]["drafts"] += speeds
    return {name: _summary(found[name], passes[name], lengths[name]) for name in models}


def _summary(rates: dict[str, list[float]], passes: dict[str, list[float]], length: float) -> dict[str, float]:
    p, q, window = (statistics.median(passes[name]) for name in ("p", "q", "p_window"))
    plain, drafts = statistics.median(rates["plain"]), statistics.median(rates["drafts"])
    ideal = length / (window + DRAFTS * q)
    return {
        "milliseconds_p": 1000 * p,
        "milliseconds_q": 1000 * q,
        "milliseconds_p_window": 1000 * window,
        "plain_tokens_per_second": plain,
        "plain_of_ideal": plain * (p + q),
        "tokens_per_window": length,
        "drafts_tokens_per_second": drafts,
        "drafts_of_ideal": drafts / ideal,
    }


def memory(base: str, aligned: str, engine: str) -> float:
    """MiB at the peak of a process that loads the pair with one engine and answers once; torch and kad included."""
    command = [sys.executable, "-m", "benchmarks.engines", "--peak", engine, "--base", base, "--aligned", aligned]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measure, print, and save to results/engines.json."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--base")
    options.add_argument("--aligned")
    options.add_argument("--tokens", type=int, default=35)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--no-memory", action="store_true", help="leave out the memory of each engine")
    options.add_argument("--peak", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    aligned = chosen.aligned or str(smollm2.gguf().gguf_path)
    base = chosen.base or str(_base(Path(aligned)))
    if chosen.peak:
        decode(_load(base, aligned, chosen.peak), QUESTIONS[0], 0, 8)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    engines = ("llama_cpp", "transformers")
    result: dict[str, Any] = {"threads": 1, "tokens": chosen.tokens, "drafts": DRAFTS}
    if not chosen.no_memory:  # while this process is small: its children inherit the peak
        result["peak_mebibytes"] = {engine: memory(base, aligned, engine) for engine in engines}
    models = {engine: _load(base, aligned, engine) for engine in engines}
    result["engines"] = measure(models, chosen.tokens, chosen.rounds)
    result["several_texts"] = {"texts": TEXTS} | several_texts(Path(aligned))
    print(json.dumps(result, indent=1))
    harness.save("engines", result)


def _load(base: str, aligned: str, engine: str) -> Loaded:
    model = kad.load(base=base, aligned=aligned, engine=engine, dtype="float32", device="cpu")
    model.generation_config.eos_token_id = None
    return model


def _base(aligned: Path) -> Path:
    file = smollm2.cache_folder() / f"smollm2-times-{COPIES + 1}.gguf"
    if not file.exists():
        scratch = file.with_suffix(".tmp")
        deeper(aligned, scratch).replace(file)
    return file


if __name__ == "__main__":
    main()
