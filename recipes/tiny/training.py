"""One training loop for pretraining and alignment: bfloat16 compute, float32 weights, Muon and AdamW, resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from recipes.tiny import parallel
from recipes.tiny.settings import Schedule

IGNORED = -100
Batch = tuple[torch.Tensor, torch.Tensor]  # inputs and labels, both (rows, positions)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16. A processor without them takes forty times as long as in
    float32, in which all is then computed but what Muon does inside."""
    if device.type != "cpu":
        return True
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy in nats per counted token."""
    inputs, labels = batch
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=has_bfloat16(inputs.device)):
        logits = model(input_ids=inputs, use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def backward(model: LlamaForCausalLM, batch: Batch) -> float:
    """Gradients of the mean loss of `batch`, each process computing its share of the rows, and that loss."""
    mine = slice(parallel.rank(), None, parallel.world())
    inputs, labels = batch[0][mine], batch[1][mine]
    share = (labels != IGNORED).sum() / (batch[1] != IGNORED).sum()
    loss = loss_of(model, (inputs, labels)) * share
    loss.backward()
    mean = loss.detach()
    parallel.add_up([mean, *(p.grad for p in model.parameters() if p.grad is not None)])
    return mean.item()


def make_optimizers(model: LlamaForCausalLM, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=schedule.muon, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(rest, lr=schedule.adamw, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def train(
    model: LlamaForCausalLM, batches: Callable[[int], Batch], schedule: Schedule, folder: Path, *, every: int = 250
) -> float:
    """Train for `schedule.steps` steps and return the mean loss of the last tenth.

    `batches(step)` gives the batch of a step, so that a run that was stopped goes on where its last checkpoint in
    `folder` left it, with the same text as if it had not been stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = make_optimizers(model, schedule)
    base_rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    checkpoint = folder / "checkpoint.pt"
    step, spent, losses = _resume(checkpoint, model, optimizers)
    model.train()
    started = time.process_time()
    while step < schedule.steps:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, base_rates, strict=True):
            group["lr"] = rate * schedule.factor(step)
        losses.append(backward(model, batches(step)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if parallel.rank() == 0 and (step % every == 0 or step == schedule.steps):
            seconds = spent + time.process_time() - started
            _report(folder, step, losses[-every:], seconds)
            _save(checkpoint, model, optimizers, step, seconds, losses)
    tail = losses[-max(1, schedule.steps // 10) :]
    return sum(tail) / len(tail)


def _report(folder: Path, step: int, losses: list[float], seconds: float) -> None:
    line = {"step": step, "loss": round(sum(losses) / len(losses), 4), "cpu_seconds": round(seconds)}
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(folder.name, line, flush=True)


def _save(
    path: Path,
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    spent: float,
    losses: list[float],
) -> None:
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    partial = path.with_suffix(".partial")
    torch.save(state | {"step": step, "spent": spent, "losses": losses}, partial)
    partial.replace(path)


def _resume(
    path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float, list[float]]:
    if not path.exists():
        return 0, 0.0, []
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["spent"], state["losses"]
