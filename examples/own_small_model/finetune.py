"""Fine-tune a small base model on conversations: all its weights, or a LoRA adapter (--lora, needs peft).

python finetune.py SMALL_BASE conversations.jsonl --out my-small
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

IGNORED = -100  # the label of a token that is read and not learned


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id of the small base model")
    parser.add_argument("data", type=Path, help='JSON lines: {"prompt": [messages], "completion": [the answer]}')
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", type=int, default=16, help="conversations in one step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--lora", type=int, metavar="RANK", help="train an adapter of this rank instead")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def encode(tokenizer: Any, example: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Tokens and labels. Only the answer and its end are learned."""
    asked, answered = example["prompt"], example["prompt"] + example["completion"]
    before = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    tokens = tokenizer.apply_chat_template(answered, return_dict=False)
    return tokens, [IGNORED] * len(before) + tokens[len(before) :]


def batch(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Rows of equal length, filled on the right. What is filled in is not learned."""
    longest = max(len(tokens) for tokens, _ in rows)
    return {
        "input_ids": torch.tensor([tokens + [pad] * (longest - len(tokens)) for tokens, _ in rows]),
        "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows]),
    }


def adapter(model: PreTrainedModel, rank: int) -> Any:
    """The model with a LoRA adapter, whose weights are the only ones that are trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def main() -> None:
    given = options()
    torch.manual_seed(given.seed)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model: Any = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    if given.lora:
        model = adapter(model, given.lora)
    examples = [encode(tokenizer, json.loads(line)) for line in given.data.read_text("utf-8").splitlines()]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=given.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / given.steps)
    draw = random.Random(given.seed)
    model.train()
    for step in range(given.steps):
        loss = model(**batch(draw.sample(examples, given.rows), tokenizer.pad_token_id)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 50 == 0 or step + 1 == given.steps:
            print(f"step {step + 1} of {given.steps}, loss {float(loss.detach()):.3f}", flush=True)
    # The base model ends a document. An aligned model ends its answer.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    for part in (model, model.generation_config, tokenizer):
        part.save_pretrained(given.out)


if __name__ == "__main__":
    main()
