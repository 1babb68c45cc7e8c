"""Every causal language model that the installed Transformers lists is exact in every way, or refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

import architectures
import kad
from conftest import make_tokenizer
from kad.method.composition import compose
from kad.text.batch import generate_all

NEW, PROMPT, SHORT = 10, 16, 11
RULE = "mixture:weight=0.5"


def sharpened(model: Any, seed: int) -> Any:
    """The model with weights so large that every token of the text before matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
        model.get_output_embeddings().weight.mul_(2.0)
    model.generation_config = GenerationConfig(pad_token_id=2)
    return model


def truth(pair: Any, prompt: list[int]) -> tuple[list[int], Tensor]:
    """The greedy text and its log pi (new,): composed token by token from whole sequences, without a cache."""
    ids, scores = torch.tensor([prompt]), []
    for _ in range(NEW):
        rows = [model(ids, use_cache=False).logits[0, -1, : architectures.VOCABULARY] for model in (pair.base, pair.aligned)]
        log_pi = compose(pair.composition, *rows)
        scores.append(log_pi.max())
        ids = torch.cat((ids, log_pi.argmax().view(1, 1)), dim=-1)
    return ids[0, len(prompt) :].tolist(), torch.stack(scores)


def ways(pair: Any, prompts: list[list[int]]) -> Iterator[tuple[str, Callable[[], Any]]]:
    greedy = kad.Sampling(max_new_tokens=NEW, temperature=0)

    def generated(drafts: int | str) -> list[list[int]]:
        return [kad.generate(pair, p, sampling=greedy, num_draft_tokens=drafts).token_ids for p in prompts[:1]]

    def batch() -> list[list[int]]:
        return [answer.token_ids for answer in generate_all(pair, pair.tokenizer, prompts, sampling=greedy)]

    def chat() -> list[list[int]]:
        talk = kad.Conversation(pair, sampling=greedy, num_draft_tokens=0)
        list(talk.say("abc"))
        turn = talk.say("de")
        turn.finish()
        return turn.prompt_ids, turn.answer.token_ids

    def by_transformers(**options: Any) -> list[list[int]]:
        ids = torch.tensor([prompts[0]])
        return [pair.generate(ids, max_new_tokens=NEW, do_sample=False, **options)[0, PROMPT:].tolist()]

    for drafts in (0, 1, 4, 8, "auto"):
        yield f"{drafts} drafts" if drafts else "plain", lambda drafts=drafts: generated(drafts)
    yield "batch", batch
    yield "generate", by_transformers
    yield "static", lambda: by_transformers(cache_implementation="static")
    yield "chat", chat


@torch.no_grad()
def look(name: str, role: str) -> dict[str, str]:
    try:
        model = sharpened(architectures.small_model(name, 0), 0)
    except Exception as e:
        return {"build": f"{type(e).__name__}: {e}".replace("\n"," ")[:150]}
    other = sharpened(architectures.small_model("llama", 1), 1)
    models = (model, other) if role == "base" else (other, model)
    try:
        pair = kad.KadForCausalLM.from_models(*models, rule=RULE)
    except kad.KadError as e:
        return {"load": f"refused: {e}"}
    except Exception as e:
        return {"load": f"ERROR: {type(e).__name__} {e}"}
    pair.generation_config.eos_token_id, pair.generation_config.pad_token_id = None, 2
    pair.tokenizer = make_tokenizer()
    ids = torch.randint(3, 96, (PROMPT,), generator=torch.Generator().manual_seed(5)).tolist()
    prompts = [ids, ids[:SHORT]]
    found = {}
    try:
        expected = [truth(pair, p) for p in prompts]
        a = model(torch.tensor([ids]), use_cache=False).logits[0]
        b = model(torch.tensor([[*ids[:-4], ids[-4]-1, *ids[-3:]]]), use_cache=False).logits[0]
        c = model(torch.tensor([[*ids[:-1], ids[-1]-1]]), use_cache=False).logits[0]
        if (a[-1]-b[-1]).abs().max() < 1e-3: found["memory"] = "none"
        if (a[:-1]-c[:-1]).abs().max() > 1e-4: found["causal"] = "NOT"
        if not a.isfinite().all(): found["finite"]="NOT"
    except Exception as e:
        return {"truth": f"ERROR {type(e).__name__} {e}"[:200]}
    import traceback
    for way, run in ways(pair, prompts):
        try:
            got = run()
            if way == "chat":
                p, text = got
                want = truth(pair, p)[0]
                found[way] = "ok" if text == want else "WRONG"
            else:
                want = [t for t, _ in expected][: len(got)]
                found[way] = "ok" if got == want else f"WRONG"
        except kad.KadError as e:
            found[way] = f"refused: {e}"
        except Exception as e:
            tb = traceback.extract_tb(e.__traceback__)[-1]
            found[way] = f"ERROR {type(e).__name__} {str(e)[:100]!r} {tb.filename.split('/')[-1]}:{tb.lineno}"
    try:
        got = kad.score(pair, ids, expected[0][0]).log_pi
        gap = (got - expected[0][1]).abs().max().item()
        found["score"] = "ok" if gap < 1e-3 else f"WRONG {gap:.1e}"
    except kad.KadError as e:
        found["score"] = f"refused: {e}"
    except Exception as e:
        found["score"] = f"ERROR {type(e).__name__} {str(e)[:100]!r}"
    return found
